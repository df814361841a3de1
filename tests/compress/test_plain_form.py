import copy
import threading

import pytest
import torch
from networks import images, settled
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from autocomp.compress.plain_form import plain_form
from autocomp.errors import UserError


class Small(nn.Module):
    """stem (convolution, batch-norm) → body → mean → head."""

    def __init__(self, body: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body, self.head = body or nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(functional.relu(self.body(self.stem(x))).mean((2, 3)))


def small(body: nn.Module | None = None) -> nn.Module:
    return settled(Small(body))


def called(network, x):
    with torch.no_grad():
        return network(x)


def check_same_answers(network, notes=0):
    """The plain form answers as the network does, which is as it was; it can be copied. Returns it."""
    x = images(4)
    was_training = [part.training for part in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    form = plain_form(network, x[:2])
    assert [part.training for part in network.modules()] == was_training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    twin = copy.deepcopy(form.module)
    assert not any(part.training for part in twin.modules())
    assert all(p.dtype == torch.float32 for p in twin.parameters())
    torch.testing.assert_close(called(twin, x), called(network.eval(), x), rtol=1e-5, atol=1e-5)
    assert len(form.notes) == notes
    return form


def masked(network):
    prune.l1_unstructured(network.body, "weight", 0.5)
    prune.ln_structured(network.head, "weight", 0.4, 2, 0)
    prune.random_unstructured(network.head, "bias", 0.4)


def old_norms(network):
    torch.nn.utils.weight_norm(network.body)
    torch.nn.utils.spectral_norm(network.head)


def new_norms(network):
    parametrizations.weight_norm(network.body)
    parametrizations.spectral_norm(network.head)


def norm_of_a_masked_weight(network):
    torch.nn.utils.spectral_norm(network.body)
    prune.l1_unstructured(network.body, "weight_orig", 0.4)


@pytest.mark.parametrize("change", [masked, old_norms, new_norms, norm_of_a_masked_weight], ids=lambda f: f.__name__)
def test_weights_that_are_made_at_every_call_become_stored_ones(change):
    network = small()
    change(network)
    called(network.eval(), images())  # leaves results of a computation behind, which deepcopy refuses
    form = check_same_answers(network)
    names = {name for name, _ in form.module.named_parameters()}
    assert {"body.weight", "body.bias", "head.weight", "head.bias"} <= names
    assert not any("orig" in name or "_g" in name for name in names)
    assert not form.module.body._forward_pre_hooks
    change_in_training = network.train()  # the user goes on training, with masks and norms in place
    loss = change_in_training(images()).square().mean()
    loss.backward()


def test_a_masked_weight_is_zero_where_its_mask_is():
    network = small()
    prune.l1_unstructured(network.body, "weight", 0.5)
    kept = plain_form(network, images()).module.body.weight
    assert torch.equal(kept == 0, network.body.weight_mask == 0)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        torch.compile,
        lambda network: torch.compile(nn.DataParallel(network)),
    ],
    ids=["data parallel", "averaged", "compiled", "both"],
)
def test_wrappers_are_taken_off(wrap):
    network = small()
    form = plain_form(wrap(network), images())
    assert [name for name, _ in form.module.named_parameters()] == [name for name, _ in network.named_parameters()]
    torch.testing.assert_close(form(images()), called(network, images()))


def test_compiled_parts_of_a_network_are_taken_out_of_their_wrappers():
    network = small()
    names = [name for name, _ in network.named_parameters()]
    network.body = torch.compile(network.body)
    form = plain_form(network, images())
    assert [name for name, _ in form.module.named_parameters()] == names
    assert type(network.body).__name__ == "OptimizedModule"


def test_a_wrapper_with_hooks_is_refused():
    wrapped = nn.DataParallel(small())
    wrapped.register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(UserError, match="wrapper DataParallel has forward hooks"):
        plain_form(wrapped, images())


class Keeps(Small):
    """Holds what cannot be copied: a lock, and results of a computation."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.kept = threading.Lock(), []

    def forward(self, x):
        self.kept = [x, {"stem": self.stem(x)}]
        with self.lock:
            return super().forward(x)


def test_a_network_that_cannot_be_copied_whole_is_copied_by_parts():
    network = settled(Keeps())
    network(images())  # with gradients: results, not leaves
    with pytest.raises((TypeError, RuntimeError)):
        copy.deepcopy(network)
    form = plain_form(network, images())
    torch.testing.assert_close(form(images()), called(network, images()))
    with torch.no_grad():
        form.module.head.weight.zero_()
    assert network.head.weight.any()


# ---- precision -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_float_types_are_cast_and_said(kind):
    network = small().to(kind)
    form = plain_form(network, images())
    (note,) = form.notes
    assert str(kind).removeprefix("torch.") in note and "float32" in note
    assert network.head.weight.dtype == kind
    torch.testing.assert_close(form(images()), called(copy.deepcopy(network).float(), images()))


class HalfInside(Small):
    def __init__(self) -> None:
        super().__init__()
        self.body.half()

    def forward(self, x):
        y = self.body(self.stem(x).half()).to(torch.float32)
        return self.head(functional.relu(y).mean((2, 3)))


class Autocast(Small):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.stem(x)
            assert not torch.is_autocast_enabled("cpu") or y.dtype == torch.bfloat16
        return self.head(functional.relu(self.body(y.float())).mean((2, 3)))


class ArrayInside(Small):
    def forward(self, x):
        weights = torch.linspace(0, 1, 8, dtype=torch.float64).numpy()
        return self.head((self.stem(x) * torch.from_numpy(weights).reshape(1, 8, 1, 1)).mean((2, 3)).to(x.dtype))


@pytest.mark.parametrize("kind", [HalfInside, Autocast, ArrayInside])
def test_regions_of_another_precision_run_in_float32_and_that_is_said(kind):
    network = settled(kind())
    form = plain_form(network, images())
    assert form.notes and "computes in" in form.notes[-1]
    seen = []
    form.module.stem.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    output = form(images())
    assert output.dtype == torch.float32 and seen == [torch.float32]
    with torch.no_grad():
        x = images()
        expected = ArrayInside.forward(network, x) if kind is ArrayInside else Small.forward(network.float(), x)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # outside, autocast is as it was
        assert called(network.float().head, torch.ones(1, 8)).dtype == torch.bfloat16


# ---- hooks ---------------------------------------------------------------------------------------------------------
def test_hooks_that_change_results_stay_and_others_are_left_out_and_named():
    network, seen = small(), []
    network.body.register_forward_hook(lambda module, inputs, output: output * 2)
    network.head.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    network.stem.register_forward_hook(lambda module, inputs, output: seen.append(output))
    form = check_same_answers(network, notes=1)
    assert "layer stem" in form.notes[0]
    assert len(form.module.body._forward_hooks) == len(form.module.head._forward_pre_hooks) == 1
    assert not form.module.stem._forward_hooks and network.stem._forward_hooks


def test_two_hooks_that_do_the_same_do_not_both_go():
    network = small()
    for _ in range(2):
        network.body.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    form = check_same_answers(network, notes=1)
    assert len(form.module.body._forward_hooks) == 1


def test_backward_hooks_have_no_say_in_a_result():
    network = small()
    network.body.register_full_backward_hook(lambda module, inputs, outputs: None)
    form = check_same_answers(network)
    assert not form.module.body._backward_hooks and network.body._backward_hooks


def test_a_hook_of_all_modules_is_refused():
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
    try:
        with pytest.raises(UserError, match="registered for all modules"):
            plain_form(small(), images())
    finally:
        handle.remove()


# ---- what has no plain form ----------------------------------------------------------------------------------------
def _with(value, place):
    network = small().double()
    stored = dict(network.named_parameters()) | dict(network.named_buffers())
    with torch.no_grad():
        stored[place].view(-1)[0] = value
    return network


def _lazy():
    network = small()
    network.head = nn.LazyLinear(5)
    return network


def _scripted_part():
    network = small()
    network.body = torch.jit.trace(network.body, torch.randn(1, 8, 4, 4))
    return network


def _prepared():
    network = small().train()
    network.qconfig = torch.ao.quantization.get_default_qat_qconfig()
    return torch.ao.quantization.prepare_qat(network)


def _sparse():
    network = small()
    network.head.weight = nn.Parameter(network.head.weight.detach().to_sparse())
    return network


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: torch.jit.script(small()), r"the network is compiled by torch\.jit: hand over the nn\.Module"),
        (_scripted_part, r"layer body is compiled by torch\.jit"),
        (lambda: _with(float("nan"), "body.weight"), "layer body: its weight holds NaN"),
        (lambda: _with(float("inf"), "head.bias"), "layer head: its bias holds infinity"),
        (lambda: _with(float("-inf"), "head.bias"), "layer head: its bias holds infinity"),
        (lambda: _with(float("nan"), "stem.1.running_mean"), r"layer stem\.1: its running_mean holds NaN"),
        (lambda: _with(float("inf"), "stem.1.running_var"), r"layer stem\.1: its running_var holds infinity"),
        (lambda: _with(1e300, "body.weight"), "layer body: its weight holds values beyond the range of float32"),
        (lambda: small().to("meta"), r"layer stem\.0 has no values"),
        (_lazy, "layer head has no weight yet"),
        (_prepared, r"layer stem\.0 is prepared for quantization"),
        (lambda: torch.ao.quantization.quantize_dynamic(small(), {nn.Linear}), "layer head is quantized already"),
        (_sparse, r"layer head holds a sparse tensor \(weight\)"),
    ],
)  # fmt: skip
def test_what_has_no_plain_form_is_one_line_that_says_what_to_hand_over(make, expected):
    with pytest.raises(UserError, match=expected) as caught:
        plain_form(make(), images())
    assert "\n" not in str(caught.value)


def test_a_mask_of_attention_may_hold_minus_infinity():
    network = small()
    network.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
    assert plain_form(network, images()).notes == ()


def test_the_module_of_an_exported_program_is_taken():
    network = small()
    exported = torch.export.export(network, (images(2),)).module()
    torch.testing.assert_close(plain_form(exported, images(2))(images(4)), called(network, images(4)))
