"""Operators that users' networks have under other names, or that ONNX lacks: spelt plainly, or refused in a line."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from held_together import differences
from test_users_networks import Function, Made, batch, images, tokens
from torch import Tensor, nn
from torch.nn import functional

from autocomp.compress.spelling import spell_plainly
from autocomp.compress.trace import trace
from autocomp.errors import UserError

PASSES: dict[str, Callable[[], Made]] = {}


def passes(make: Callable[[], Made]) -> Callable[[], Made]:
    PASSES[make.__name__] = make
    return make


def convolution(*behind: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), *behind)


@passes
def dropout_of_every_kind_in_evaluation() -> Made:
    return images(
        convolution(nn.Dropout2d(0.3), nn.BatchNorm2d(16), nn.ReLU(), nn.AlphaDropout(0.2), nn.FeatureAlphaDropout(0.2))
    )


@passes
def a_random_slope_in_evaluation() -> Made:
    return images(convolution(nn.RReLU(), nn.Conv2d(16, 16, 1)))


@passes
def batch_norm_behind_axes_that_were_moved() -> Made:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.wide(self.c(x).movedim(1, -1)).moveaxis(-1, 1)))
        return self.norm1(self.mixed(x.mean(3).mT).swapaxes(1, 2)).mean(2)

    network = Function(forward, c=nn.Conv2d(16, 8, 3), wide=nn.Linear(8, 12), norm=nn.BatchNorm2d(12),
                       mixed=nn.Linear(12, 16), norm1=nn.BatchNorm1d(16))  # fmt: skip
    return images(Function(lambda self, x: self.f(x)[:, :, None, None], f=network))


@passes
def weights_that_are_turned_by_other_names() -> Made:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = torch.relu(torch.linalg.matmul(x, self.a.mT))
        return torch.inner((x @ self.b.swapdims(0, 1)).mean(1), self.c)

    return tokens(forward, a=nn.Parameter(torch.zeros(16, 8)), b=nn.Parameter(torch.zeros(12, 16)),
                  c=nn.Parameter(torch.zeros(4, 12)))  # fmt: skip


@passes
def attention_of_channels_and_places() -> Made:
    """Maxima of whole maps (CBAM)."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        pools = functional.adaptive_avg_pool2d(x, 1), functional.adaptive_max_pool2d(x, 1)
        x = x * torch.sigmoid(sum(self.shared(pool) for pool in pools))
        places = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return x * torch.sigmoid(self.place(places))

    shared = nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1))
    return images(Function(forward, shared=shared, place=nn.Conv2d(2, 1, 7, padding=3)))


@passes
def adaptive_maxima_of_odd_sizes() -> Made:
    return images(convolution(nn.ReLU(), nn.AdaptiveMaxPool2d((5, 7)), nn.Conv2d(16, 16, 1), nn.AdaptiveMaxPool2d(1)))


@passes
def averages_over_cut_windows_with_a_divisor() -> Made:
    return images(convolution(nn.ReLU(), nn.AvgPool2d((5, 3), (3, 2), (2, 0), ceil_mode=True, divisor_override=7)))


@passes
def attention_without_an_axis_of_heads() -> Made:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        mask = self.mask[None].expand(x.shape[0], -1, -1)
        return self.head(functional.scaled_dot_product_attention(self.q(x), self.k(x), x, mask, scale=0.3).mean(1))

    network, x = tokens(forward, q=nn.Linear(8, 8), k=nn.Linear(8, 8), head=nn.Linear(8, 4))
    network.register_buffer("mask", torch.ones(10, 10).tril().bool())
    return network, x


@passes
def a_kernel_for_each_example() -> Made:
    """Kernels that are chosen by the input, applied to all examples at once as groups (dynamic convolution)."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        n = x.shape[0]
        share = torch.softmax(self.router(x.mean((2, 3))), 1)
        kernels = torch.einsum("nk,koihw->noihw", share, self.kernels).reshape(n * 16, 16, 3, 3)
        y = functional.conv2d(x.reshape(1, n * 16, 12, 12), kernels, stride=(2, 1), padding=1, groups=n)
        return torch.relu(y.reshape(n, 16, 6, 12))

    return images(Function(forward, router=nn.Linear(16, 3), kernels=nn.Parameter(torch.zeros(3, 16, 16, 3, 3))))


@passes
def a_kernel_for_each_channel_of_each_example() -> Made:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        n = x.shape[0]
        line, kernels = self.c(x).mean(3), self.k(x.mean((2, 3)))
        bias = self.b(x.mean((2, 3))).flatten()
        y = functional.conv1d(line.reshape(1, n * 16, 12), kernels.reshape(n * 16, 1, 3), bias, padding=2, dilation=2,
                              groups=n * 16)  # fmt: skip
        return y.reshape(n, 16, 1, 12)

    return images(Function(forward, c=nn.Conv2d(16, 16, 1), k=nn.Linear(16, 48), b=nn.Linear(16, 16)))


@pytest.mark.parametrize("name", PASSES)
def test_all_forms_of_a_network_agree(name, tmp_path):
    network, inputs = PASSES[name]()
    assert differences(network, inputs, np.random.default_rng(0), tmp_path) == []


def test_batch_norm_is_folded_and_dropout_gone():
    for make in (dropout_of_every_kind_in_evaluation, batch_norm_behind_axes_that_were_moved):
        traced = trace(*make(), name="folded")
        operators = {str(node.target) for node in traced.graph.graph.nodes}
        assert not [name for name in operators if "batch_norm" in name or "dropout" in name]


def test_products_by_other_names_are_layers():
    traced = trace(*weights_that_are_turned_by_other_names(), name="products")
    assert sorted(layer.name for layer in traced.spec.layers) == ["a", "b", "c"]


def test_shapes_stay_those_of_what_was_replaced():
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return functional.adaptive_max_pool1d(x.movedim((1, 2), (2, 1)).swapaxes(1, 2), 4)

    batches = {0: torch.export.Dim("batch")}
    graph = torch.export.export(Turned(), (torch.randn(4, 5, 6),), dynamic_shapes=(batches,), strict=False).module()
    spell_plainly(graph)
    operators = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    assert torch.ops.aten.adaptive_max_pool1d.default not in operators
    x = torch.randn(4, 5, 6)
    (output,) = [node for node in graph.graph.nodes if node.op == "output"]
    (result,) = output.all_input_nodes
    assert tuple(result.meta["val"].shape)[1:] == tuple(Turned()(x).shape)[1:]
    graph.recompile()
    assert torch.equal(torch.fx.Interpreter(graph).run(x), Turned()(x))


# ---- what is refused -------------------------------------------------------------------------------------------------


def called(**parts: nn.Module) -> nn.Module:
    """A network whose only layer has a name that cannot be written as an attribute."""
    ((name, part),) = parts.items()
    network = Function(lambda self, x: self._modules[name](x).mean(1))
    network.add_module(name, part)
    return network.eval()


def per_example_transposed(self: nn.Module, x: Tensor) -> Tensor:
    kernels = self.g(x.mean((2, 3))).reshape(-1, 8, 2, 2)
    y = functional.conv_transpose2d(x.reshape(1, -1, 12, 12), kernels, stride=2, groups=x.shape[0])
    return y.reshape(x.shape[0], 8, 24, 24).repeat(1, 2, 1, 1)


REFUSED: dict[str, tuple[str, Callable[[], Made]]] = {
    "a condition on data": (
        "cond in body",
        lambda: images(
            Function(
                lambda self, x: torch.cond(x.sum() > 0, lambda y: 2 * self.c(y), lambda y: self.c(y) * 2, (x,)),
                c=nn.Conv2d(16, 16, 1),
            )
        ),
    ),
    "an LSTM that projects its state": (
        "proj_size in r",
        lambda: tokens(
            lambda self, x: self.r(x)[0][:, -1], r=nn.LSTM(8, 16, num_layers=2, batch_first=True, proj_size=6)
        ),
    ),
    "an operator that ONNX lacks": (
        "special_bessel_j0 in body",
        lambda: images(Function(lambda self, x: torch.special.bessel_j0(self.c(x)), c=nn.Conv2d(16, 16, 1))),
    ),
    "a transposed kernel for each example": (
        "conv_transpose2d in body",
        lambda: images(Function(per_example_transposed, g=nn.Linear(16, 16 * 32))),
    ),
    "a keyword as a name": ("class .* rename", lambda: (called(**{"class": nn.Linear(8, 4)}), batch(10, 8))),
    "a name of the graph's own": ("meta .* rename", lambda: (called(meta=nn.Linear(8, 4)), batch(10, 8))),
    "numpy inside": (
        r"test_users_spellings\.py:\d+ .*numpy",
        lambda: tokens(lambda self, x: torch.from_numpy(self.a(x).detach().numpy()), a=nn.Linear(8, 4)),
    ),
    "nothing at all": ("returns its input", lambda: (nn.Identity(), batch(8))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_is_refused_in_one_line(name):
    reason, make = REFUSED[name]
    network, inputs = make()
    with pytest.raises(UserError, match=reason) as error:
        trace(network, inputs[:5], "refused")
    assert "\n" not in str(error.value)
