"""Small networks drawn at random: layers with every attribute, norms, pools, splits, joins, residuals, shared modules.

A drawn network is a sequence of blocks. A block knows from the shape that it is handed (without the batch axis) what it
may be: an image (c, h, w), a signal (c, l), tokens (t, f) or a vector (f,). One seed gives one network.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Rng = np.random.Generator
Draw = Callable[[Rng, Tensor], nn.Module]


@dataclass(frozen=True)
class Drawn:
    """A network with inputs of shape (n, …), and how it was drawn."""

    network: nn.Module
    inputs: Tensor
    blocks: tuple[str, ...]


class Apply(nn.Module):
    """A function as a module; `parts` are modules that it uses."""

    def __init__(self, name: str, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.name, self.function = name, function
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)

    def extra_repr(self) -> str:
        return self.name


def chance(rng: Rng, share: float) -> bool:
    return bool(rng.random() < share)


def pick(rng: Rng, *options):
    return options[int(rng.integers(len(options)))]


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


# ---- layers ----------------------------------------------------------------------------------------------------------


def convolution(rng: Rng, x: Tensor, out: int | None = None, *, same: bool = False) -> nn.Module:
    """A convolution of an image or a signal, with its attributes drawn. same: its result has the size of its input."""
    channels, sizes = x.shape[1], x.shape[2:]
    dims = len(sizes)
    groups = pick(rng, 1, 1, 1, channels, pick(rng, *divisors(channels)))
    out = out or int(rng.integers(1, 5)) * (groups if groups > 4 else 4)
    if out % groups:
        groups = 1
    kernel, dilation, padding, stride = [], [], [], []
    for size in sizes:
        k, d = pick(rng, 1, 3, 3, 5, 2), pick(rng, 1, 1, 1, 2)
        if same:
            k = pick(rng, 1, 3, 5)
            p, s = d * (k // 2), 1
        else:
            p, s = int(rng.integers(0, k // 2 + 1)), pick(rng, 1, 1, 2, 3)
            while size + 2 * p < d * (k - 1) + 1:
                k = 1
        kernel.append(k), dilation.append(d), padding.append(p), stride.append(s)
    if same and any(
        size + 2 * p < d * (k - 1) + 1 for size, p, d, k in zip(sizes, padding, dilation, kernel, strict=True)
    ):
        kernel, dilation, padding = [1] * dims, [1] * dims, [0] * dims
    kind = nn.Conv2d if dims == 2 else nn.Conv1d
    mode = pick(rng, "zeros", "zeros", "zeros", "zeros", "replicate")
    return kind(
        channels, out, tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), groups, chance(rng, 0.6), mode
    )


def transposed_convolution(rng: Rng, x: Tensor) -> nn.Module:
    return nn.ConvTranspose2d(x.shape[1], pick(rng, 4, 8), pick(rng, 2, 3), pick(rng, 1, 2), bias=chance(rng, 0.5))


def linear(rng: Rng, x: Tensor, out: int | None = None) -> nn.Module:
    """A linear layer over the last axis."""
    return nn.Linear(x.shape[-1], out or pick(rng, 4, 8, 12, 16), bias=chance(rng, 0.7))


def by_parameter(rng: Rng, x: Tensor) -> nn.Module:
    """A linear layer that is spelt as a product with a parameter."""
    out = pick(rng, 4, 8, 12)
    linear_ = nn.Linear(x.shape[-1], out)

    def product(x: Tensor, layer: nn.Module) -> Tensor:
        return x @ layer.weight.T + layer.bias

    def functional_(x: Tensor, layer: nn.Module) -> Tensor:
        return functional.linear(x, layer.weight, layer.bias)

    def standardized(x: Tensor, layer: nn.Module) -> Tensor:
        weight = layer.weight
        return functional.linear(x, (weight - weight.mean(1, keepdim=True)) / (weight.std(1, keepdim=True) + 1e-3))

    function = pick(rng, product, functional_, standardized)
    return Apply(function.__name__, function, linear_)


def norm(rng: Rng, x: Tensor) -> nn.Module:
    channels = x.shape[1]
    if x.ndim == 4:
        return pick(
            rng, nn.BatchNorm2d(channels), nn.BatchNorm2d(channels), nn.BatchNorm2d(channels, affine=False),
            nn.GroupNorm(pick(rng, *divisors(channels)), channels), nn.LayerNorm(x.shape[1:]),
        )  # fmt: skip
    if x.ndim == 3:
        return pick(rng, nn.BatchNorm1d(channels), nn.LayerNorm(x.shape[-1]), nn.GroupNorm(1, channels))
    return pick(rng, nn.BatchNorm1d(channels), nn.LayerNorm(channels))


def activation(rng: Rng, x: Tensor) -> nn.Module:
    return pick(
        rng, nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1), nn.SiLU(), nn.GELU(), nn.Hardswish(),
        nn.Sigmoid(), nn.Tanh(), nn.ELU(), nn.Hardsigmoid(), nn.Softplus(), nn.Softmax(1), nn.PReLU(x.shape[1]),
    )  # fmt: skip


def pool(rng: Rng, x: Tensor) -> nn.Module:
    dims = x.ndim - 2
    smallest = min(x.shape[2:])
    kernel = int(rng.integers(1, min(4, smallest + 1)))
    stride, padding = int(rng.integers(1, kernel + 2)), int(rng.integers(0, kernel // 2 + 1))
    ceil = chance(rng, 0.4)
    adaptive = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d}[dims]
    most = {1: nn.MaxPool1d, 2: nn.MaxPool2d}[dims](kernel, stride, padding, ceil_mode=ceil)
    average = {1: nn.AvgPool1d, 2: nn.AvgPool2d}[dims](kernel, stride, padding, ceil, chance(rng, 0.5))
    whole = [size for size in divisors(smallest) if all(s % size == 0 for s in x.shape[2:])]
    divided = nn.AvgPool2d(kernel, stride, padding, divisor_override=pick(rng, 1, 3)) if dims == 2 else average
    return pick(rng, most, most, average, average, average, divided, adaptive(pick(rng, *whole)))


# ---- joins -----------------------------------------------------------------------------------------------------------


def residual(rng: Rng, x: Tensor) -> nn.Module:
    """Two branches of one shape that are joined; one of them may be the input itself."""
    if x.ndim in (3, 4) and chance(rng, 0.7):
        first, second = (convolution(rng, x, x.shape[1], same=True) for _ in range(2))
    else:
        first, second = linear(rng, x, x.shape[-1]), linear(rng, x, x.shape[-1])
    bodies = [nn.Sequential(first, activation(rng, x)), second if chance(rng, 0.3) else nn.Identity()]

    def added(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
        return a(x) + b(x)

    def multiplied(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
        return a(x) * b(x)

    def subtracted(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
        return b(x) - a(x)

    def concatenated(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
        return torch.cat([a(x), b(x)], dim=1 if x.ndim != 3 else 2)

    function = pick(rng, added, added, multiplied, subtracted, concatenated)
    return Apply(function.__name__, function, *bodies)


def split(rng: Rng, x: Tensor) -> nn.Module:
    """Channels in parts, some of them joined again, some of them dropped."""
    channels = x.shape[1]
    count = pick(rng, *[d for d in divisors(channels) if d > 1][:2] or [1])
    if count == 1:
        return nn.Identity()

    def gated(x: Tensor) -> Tensor:
        parts = x.chunk(count, 1)
        return parts[0] * torch.sigmoid(parts[-1])

    def dropped(x: Tensor) -> Tensor:
        return x.chunk(count, 1)[-1]

    def swapped(x: Tensor) -> Tensor:
        return torch.cat(x.chunk(count, 1)[::-1], 1)

    def summed(x: Tensor) -> Tensor:
        return torch.stack(torch.split(x, channels // count, 1)).sum(0)

    function = pick(rng, gated, dropped, swapped, summed)
    return Apply(function.__name__, function)


def shared(rng: Rng, x: Tensor) -> nn.Module:
    """One module that is called twice."""
    if x.ndim > 2 and chance(rng, 0.6):
        module: nn.Module = convolution(rng, x, x.shape[1], same=True)
    else:
        module = linear(rng, x, x.shape[-1])
    return Apply("twice", lambda x, layer: layer(torch.relu(layer(x))), module)


def squeeze_and_excite(rng: Rng, x: Tensor) -> nn.Module:
    channels = x.shape[1]
    down, up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
    gate = pick(rng, nn.Sigmoid(), nn.Hardsigmoid())
    return Apply(
        "excited", lambda x, d, u, g: x * g(u(torch.relu(d(functional.adaptive_avg_pool2d(x, 1))))), down, up, gate
    )


def attention(rng: Rng, x: Tensor) -> nn.Module:
    features = x.shape[-1]
    heads = pick(rng, *[h for h in (1, 2) if features % h == 0])
    layer = nn.MultiheadAttention(features, heads, batch_first=True)
    return Apply("attention", lambda x, layer: x + layer(x, x, x, need_weights=False)[0], layer)


# ---- what only changes the form -----------------------------------------------------------------------------------


def shuffle(rng: Rng, x: Tensor) -> nn.Module:
    groups = pick(rng, *divisors(x.shape[1]))

    def shuffled(x: Tensor) -> Tensor:
        n, c, *size = x.shape
        return x.view(n, groups, c // groups, *size).transpose(1, 2).reshape(n, c, *size)

    return Apply("shuffled", shuffled)


def resize(rng: Rng, x: Tensor) -> nn.Module:
    mode = pick(rng, "nearest", "bilinear")
    return Apply(f"resize {mode}", lambda x: functional.interpolate(x, scale_factor=2, mode=mode))


def pad(rng: Rng, x: Tensor) -> nn.Module:
    sizes = [int(v) for v in rng.integers(0, 2, 4)]
    mode, value = pick(rng, "constant", "constant", "reflect"), pick(rng, 0.0, 0.0, 0.5)
    if mode == "reflect" and min(x.shape[2:]) > 1:
        return Apply("pad reflect", lambda x: functional.pad(x, sizes, "reflect"))
    return Apply(f"pad {value}", lambda x: functional.pad(x, sizes, value=value))


def cut(rng: Rng, x: Tensor) -> nn.Module:
    step = pick(rng, 1, 2)
    return Apply("cut", lambda x: x[:, :, ::step, 1:] if x.shape[3] > 1 else x[:, :, ::step])


def named_view(rng: Rng, x: Tensor) -> nn.Module:
    c, h, w = x.shape[1:]
    return Apply("view", lambda x: x.view(x.size(0), c, h, w))


def to_tokens(rng: Rng, x: Tensor) -> nn.Module:
    if chance(rng, 0.5):
        return Apply("tokens", lambda x: x.flatten(2).transpose(1, 2))
    return Apply("tokens by permute", lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1]))


def to_vector(rng: Rng, x: Tensor) -> nn.Module:
    if x.ndim == 4:
        return pick(
            rng, Apply("mean", lambda x: x.mean((2, 3))), nn.Flatten(),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )  # fmt: skip
    return pick(rng, Apply("mean", lambda x: x.mean(1)), nn.Flatten(), Apply("last", lambda x: x[:, -1]))


# ---- networks ------------------------------------------------------------------------------------------------------


def _blocks(x: Tensor) -> list[Draw]:
    """What may follow a tensor of this shape, the frequent ones several times."""
    if x.ndim == 4:
        return [
            convolution, convolution, convolution, transposed_convolution, norm, norm, activation, activation, pool,
            pool, residual, residual, split, shared, squeeze_and_excite, shuffle, resize, pad, cut, named_view,
        ]  # fmt: skip
    if x.ndim == 3:
        return [linear, linear, by_parameter, norm, activation, residual, residual, shared, attention, convolution,
                pool, split]  # fmt: skip
    return [linear, linear, by_parameter, norm, activation, activation, residual, shared, split]


def _lively(network: nn.Module, seed: int) -> None:
    """Weights and statistics that make every layer matter and keep values near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) * (1.5 / max(1, parameter[0].numel())) ** 0.5
                )
            else:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) * 0.6 + 0.2)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)


def draw(seed: int, depth: int = 8, n: int = 16) -> Drawn:
    """The network of that seed, with n inputs."""
    rng = np.random.default_rng(seed)
    shape = pick(rng, (3, 12, 12), (3, 11, 9), (1, 8, 8), (4, 17), (6, 8), (10,))
    x = inputs = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))
    modules: list[nn.Module] = []

    def add(make: Draw) -> None:
        nonlocal x
        module = make(rng, x)
        _lively(module, seed + len(modules))
        module.eval()
        with torch.no_grad():
            try:
                after = module(x)
                module(x[:1])
            except ValueError:  # torch itself refuses norms of one value
                return
        if after.numel() > 40_000 or 0 in after.shape or not after.isfinite().all():
            return
        modules.append(module)
        x = after

    for _ in range(int(rng.integers(3, depth + 1))):
        add(pick(rng, *_blocks(x)))
        if x.ndim == 4 and chance(rng, 0.07):
            add(to_tokens)
        elif x.ndim > 2 and chance(rng, 0.07):
            add(to_vector)
    if chance(rng, 0.8):
        if x.ndim > 2:
            add(to_vector)
        add(lambda rng, x: linear(rng, x, 5))
    elif not any(True for module in modules for _ in module.parameters()):
        add(linear)
    network = nn.Sequential(*modules).eval()
    blocks = (f"{type(m).__name__} {m.name}" if isinstance(m, Apply) else type(m).__name__ for m in modules)
    return Drawn(network, inputs, tuple(blocks))
