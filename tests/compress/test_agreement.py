import random

import numpy as np
import onnx
import pytest
import torch
from networks import images, settled
from torch import nn
from torch.nn import functional

from autocomp.compress.agreement import Disagreement, answers, check_agreement
from autocomp.compress.plain_form import PlainForm, distance, plain_form
from autocomp.compress.trace import Traced, trace
from autocomp.errors import UserError


class Small(nn.Module):
    """convolution → what `between` does → mean → head."""

    def __init__(self, between=lambda x: x) -> None:
        super().__init__()
        self.between = between
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.between(torch.relu(self.stem(x))).mean((2, 3)))


def small(between) -> nn.Module:
    network = settled(Small())
    network.between = between.eval() if isinstance(between, nn.Module) else between
    return network


def answered(network: nn.Module, x: torch.Tensor | None = None):
    x = images(2) if x is None else x
    return answers(plain_form(network, x), x)


class AlwaysDropout(nn.Dropout):
    def forward(self, x):
        return functional.dropout(x, self.p, training=True)


class Statistics(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)


def counting():
    calls = []

    def between(x):
        calls.append(1)
        return x * len(calls)

    return between


#: What `between` does, and the operator that is named for it.
CHANGING = {
    "functional dropout": (lambda x: functional.dropout(x, 0.5), "dropout in the forward of the network"),
    "feature dropout": (lambda x: functional.dropout2d(x, 0.5), "dropout2d in the forward of the network"),
    "module": (AlwaysDropout(0.4), "dropout in between"),
    "noise": (lambda x: x + 0.1 * torch.randn_like(x), "randn_like in"),
    "gumbel": (lambda x: functional.gumbel_softmax(x, dim=1), "gumbel_softmax in"),
    "python": (lambda x: x * (1 + random.random()), "mul in"),
    "numpy": (lambda x: x + torch.from_numpy(np.random.rand(1).astype(np.float32)), "add in"),  # noqa: NPY002
    "rarely": (lambda x: x * float(random.random() > 0.3), "mul in"),
    "counted": (counting(), "mul in"),
}


@pytest.mark.parametrize("between", CHANGING)
def test_a_network_that_changes_its_mind_is_refused_and_the_operator_named(between):
    change, where = CHANGING[between]
    network = small(change)
    random.seed(0)
    state = torch.random.get_rng_state()
    with pytest.raises(UserError, match=f"differently each time.*first in {where}") as caught:
        answered(network)
    assert "\n" not in str(caught.value)
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's random numbers are not spent


def attention_over_batch(x):
    """x: (tokens, batch, features), as if batch were the tokens."""
    return functional.scaled_dot_product_attention(x, x, x)


DEPENDENT = {
    "batch-norm without statistics": (nn.BatchNorm2d(8, track_running_stats=False), "batch_norm in between"),
    "batch-norm that trains": (Statistics(8), "batch_norm in between"),
    "functional": (lambda x: functional.batch_norm(x, None, None, training=True), "batch_norm in the forward"),
    "mean of the batch": (lambda x: x - x.mean(0, keepdim=True), "mean in"),
    "largest of the batch": (lambda x: x / x.max(), "max in"),
    "softmax over the batch": (lambda x: x.softmax(0), "softmax in"),
    "a neighbour": (lambda x: x + x.flip(0), "flip in"),
    "those before": (lambda x: x.cumsum(0), "cumsum in"),
    "tokens as batch": (
        lambda x: attention_over_batch(x.mean(2).permute(2, 0, 1)).permute(1, 2, 0)[:, :, None],
        "scaled_dot_product_attention in",
    ),
}  # fmt: skip


@pytest.mark.parametrize("between", DEPENDENT)
def test_answers_that_depend_on_the_batch_are_refused_and_the_operator_named(between):
    change, where = DEPENDENT[between]
    with pytest.raises(UserError, match=f"depends on the rest of its batch.*first in {where}"):
        answered(small(change))


@pytest.mark.parametrize(
    "between",
    [
        nn.InstanceNorm2d(8),
        lambda x: x.mul_(2),
        lambda x: x.transpose(0, 1).softmax(0).transpose(0, 1),
        lambda x: torch.where(x > 0.2, x, -x),
        nn.Dropout(0.5),
        lambda x: x * (torch.rand(1) * 0 + 1),
    ],
    ids=["instance norm", "in place", "batch second", "where", "dropout", "random numbers that do not count"],
)
def test_answers_of_a_network_that_keeps_to_its_examples(between):
    network, x = small(between), images(2)
    batches = answered(network, x).batches
    assert [len(inputs) for inputs, _ in batches] == [5, 1, 1]
    assert not torch.equal(batches[1][0], batches[2][0])
    for inputs, (output,) in batches:
        with torch.no_grad():
            torch.testing.assert_close(network(inputs.clone()), output)


@pytest.mark.parametrize(
    ("example", "what"),
    [
        (images(1), "one example"),
        (torch.zeros(2, 3, 8, 8), "examples that are alike"),
        (torch.ones(1, 3, 8, 8), "examples that read the same backwards"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_second_input_is_made_where_the_example_has_none(example, what):
    (_, first, second) = answered(small(lambda x: x), example).batches
    assert not torch.equal(first[0], second[0]), what


def test_made_inputs_keep_to_values_that_the_network_takes():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 4)

        def forward(self, ids):
            return self.embedding(ids).mean(1)

    ids = torch.tensor([[0, 6, 3, 3]])
    (several, _), *_ = answered(settled(Words()), ids).batches
    assert several.dtype == ids.dtype and int(several.min()) >= 0 and int(several.max()) <= 6
    columns = torch.tensor([[0, 6]])  # the second word of a table of one would fail

    class Columns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.few, self.many = nn.Embedding(1, 4), nn.Embedding(7, 4)

        def forward(self, ids):
            return self.few(ids[:, 0]) + self.many(ids[:, 1])

    (several, _), *_ = answered(settled(Columns()), columns).batches
    assert (several == columns).all()


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (lambda x: torch.log(x - 100), "holds NaN .*log in"),
        (lambda x: 1 / (x * 0), r"holds (NaN|infinity) .*(rdiv|reciprocal|rtruediv) in"),
        (lambda x: (1 + x) ** 1000, "holds (NaN|infinity) .*pow in"),
    ],
)
def test_an_output_that_is_not_finite_is_refused(between, expected):
    with pytest.raises(UserError, match=expected):
        answered(small(between))


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (lambda x: x.reshape(2, 8, 16, 16), "fails on a batch of 5.*avoid a fixed batch size"),
        (lambda x: x.mean((2, 3)).squeeze()[..., None, None], "a batch of 1|shape"),
    ],
)
def test_a_network_of_one_batch_size_is_refused(between, expected):
    with pytest.raises(UserError, match=expected):
        answered(small(between))


def test_an_example_that_is_not_finite_is_refused():
    x = images(2)
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="example input holds NaN"):
        answered(settled(Small()), x)


def test_distance_worked_by_hand():
    expected = torch.tensor([[4.0, -2.0], [0.0, 1.0]])
    assert distance(expected, expected) == 0
    assert distance(expected + 0.4, expected) == pytest.approx(0.1)
    assert distance(expected[:1], expected) == float("inf")
    assert distance(expected * float("nan"), expected) == float("inf")
    assert distance(torch.zeros(2), torch.zeros(2)) == 0
    assert distance(torch.full((2,), 1e-9), torch.zeros(2)) == float("inf")


# ---- the forms -----------------------------------------------------------------------------------------------------
class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.fixture(scope="module")
def chain() -> tuple[PlainForm, torch.Tensor, Traced]:
    network, x = settled(Chain()), torch.randn(2, 6, generator=torch.Generator().manual_seed(3))
    return plain_form(network, x), x, trace(network, x, "chain")


@pytest.mark.parametrize("layer", ["first", "second", "third"])
def test_a_graph_that_differs_is_refused_and_the_module_named(chain, layer):
    form, x, traced = chain
    known = answers(form, x)
    check_agreement(form, known, traced.graph, traced.template)
    weight = traced.graph.get_parameter(f"{layer}.weight")
    with torch.no_grad():
        weight[0, 0] += 0.1
        try:
            with pytest.raises(Disagreement, match=f"the traced graph .*first in linear in {layer}"):
                check_agreement(form, known, traced.graph, traced.template)
        finally:
            weight[0, 0] -= 0.1


@pytest.mark.parametrize("layer", ["first", "second", "third"])
def test_a_file_that_differs_is_refused_and_the_module_named(chain, layer):
    form, x, traced = chain
    model = onnx.load_model_from_string(traced.template)
    (stored,) = [tensor for tensor in model.graph.initializer if tensor.name == f"{layer}.bias"]
    values = onnx.numpy_helper.to_array(stored).copy()
    values[0] += 0.5
    stored.CopyFrom(onnx.numpy_helper.from_array(values, stored.name))
    with pytest.raises(Disagreement, match=f"the float ONNX file .*first in linear in {layer}"):
        check_agreement(form, answers(form, x), traced.graph, model.SerializeToString())


def test_rounding_is_no_difference(chain):
    form, x, traced = chain
    weight = traced.graph.get_parameter("second.weight")
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1 + 1e-6)
        try:
            check_agreement(form, answers(form, x), traced.graph, traced.template)
        finally:
            weight.copy_(before)


def test_what_a_network_writes_into_its_input_does_not_reach_the_data():
    class Writes(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            x.mul_(2)
            x[:, 0] = 0
            return super().forward(x)

    network, x = settled(Writes()), torch.randn(2, 6, generator=torch.Generator().manual_seed(3))
    before = x.clone()
    traced = trace(network, x, "writes")
    with torch.no_grad():
        found = traced.graph(x)
        assert torch.equal(x, before) and network.calls == 0
        torch.testing.assert_close(found, network(x.clone()))


def test_notes_of_plain_form_reach_the_network_that_is_searched(tmp_path):
    from autocomp.compress.trace import load

    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(3))
    traced = trace(settled(Chain()).double(), x, "chain", tmp_path)
    for spec in (traced.spec, load(tmp_path).spec):
        assert next(left.reason for left in spec.left_alone if left.what == "trace").startswith("weights in float64")
    assert all(parameter.dtype == torch.float32 for parameter in traced.graph.parameters())
