"""Small networks, one a way of coupling channels or of not being traceable."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from autocomp.compress.trace import Traced, trace

torch.set_num_threads(1)


def settled(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in evaluation mode, weights drawn from `seed`, batch-norm statistics away from their defaults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1.5 / fan_in) ** 0.5)
            else:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) * 0.5 - 0.1)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) and part.running_mean is not None:
                part.weight.copy_(torch.rand(part.weight.shape, generator=generator) + 0.5)
                part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=generator) * 0.2)
                part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.5)
    return module.eval()


def images(n: int = 4, channels: int = 3, side: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


def _unit(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Residual(nn.Module):
    """stem → depthwise → project → + stem → max-pool → flatten → linear: most of what an image network has."""

    def __init__(self, width: int = 16, classes: int = 10, side: int = 16) -> None:
        super().__init__()
        self.stem = _unit(3, width, 3, 2)
        self.depthwise = _unit(width, width, 3, 1, width)
        self.project = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.narrow = _unit(width, 24, 1)
        self.head = nn.Linear(24 * (side // 4) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(x))
        x = functional.max_pool2d(self.narrow(x), 2)
        return self.head(x.flatten(1))


class Pooled(nn.Module):
    """conv → conv → global average → linear."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.first = _unit(3, 16, 3, 2)
        self.second = _unit(16, 32)
        self.third = _unit(32, 24, 1)
        self.head = nn.Linear(24, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.third(self.second(self.first(x))).mean((2, 3)))


class Concatenated(nn.Module):
    """Two branches side by side, read by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left = _unit(3, 16)
        self.right = _unit(3, 8, 1)
        self.after = _unit(24, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(x, 2)
        return self.head(self.after(torch.cat([self.left(x), self.right(x)], 1)).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = _unit(3, 16)
        self.grouped = _unit(16, 16, 3, 1, 4)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.grouped(self.stem(x)).mean((2, 3)))


class Signal(nn.Module):
    """A 1-D network: (n, 2, 64) → (n, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(2, 16, 5, 2, 2), nn.BatchNorm1d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Conv1d(16, 16, 3, 1, 1), nn.BatchNorm1d(16), nn.ReLU())
        self.pool = nn.MaxPool1d(2)
        self.head = nn.Linear(16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(self.pool(x + self.second(x)).flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = _unit(3, 16)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(16, 8, 1)
        self.excite = nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = torch.sigmoid(self.excite(functional.relu(self.squeeze(self.pool(x)))))
        return self.head((x * gate).mean((2, 3)))


class Transformer(nn.Module):
    """(n, 12, 16) → (n, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x)).mean(1))


class Recurrent(nn.Module):
    """(n, 12, 8) → (n, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Shuffled(nn.Module):
    """A split whose halves meet again in another order, as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _unit(3, 16, 3, 2)
        self.branch = _unit(8, 8)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, dim=1)
        return self.head(torch.cat([self.branch(b), a], 1).mean((2, 3)))


class Dense(nn.Module):
    """Every layer reads what all before it made, as in DenseNet: the last convolution is fed by seven groups."""

    def __init__(self, stages: int = 6, growth: int = 20) -> None:
        super().__init__()
        self.stem = _unit(3, 24, 3, 2)
        self.stages = nn.ModuleList(_unit(24 + growth * i, growth) for i in range(stages))
        self.narrow = _unit(24 + growth * stages, 32, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = torch.cat([x, stage(x)], 1)
        return self.head(self.narrow(x).mean((2, 3)))


class ConvolutionThenRecurrent(nn.Module):
    """(n, 2, 32) → conv → LSTM over time → linear over the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 16, 5, 2, 2)
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.conv(x).relu().transpose(1, 2))[0].mean(1))


class Shared(nn.Module):
    """One convolution, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _unit(3, 16, 3, 2)
        self.again = nn.Conv2d(16, 16, 3, 1, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.again(self.again(x).relu()).relu().mean((2, 3)))


def signals(n: int = 4) -> Tensor:
    return torch.randn(n, 2, 64, generator=torch.Generator().manual_seed(1))


def tokens(n: int = 4, features: int = 16) -> Tensor:
    return torch.randn(n, 12, features, generator=torch.Generator().manual_seed(1))


#: Network → a function that makes an input batch for it.
INPUTS: dict[type[nn.Module], Callable[[], Tensor]] = {
    Residual: images,
    Pooled: images,
    Concatenated: images,
    Grouped: images,
    SqueezeExcite: images,
    Shuffled: images,
    Dense: images,
    Shared: images,
    Signal: signals,
    ConvolutionThenRecurrent: signals,
    Transformer: tokens,
    Recurrent: lambda: tokens(features=8),
}


@cache
def traced(kind: type[nn.Module]) -> Traced:
    """A network of that kind, traced once for all tests: tracing takes seconds. Nobody may change it."""
    return trace(settled(kind()), INPUTS[kind](), kind.__name__)
