"""A network of hardly anything but poolings, for tables: well-known networks have one or three of them each."""

import torch
from torch import Tensor, nn

#: Image that it takes, in pixels.
SIDE = 112
#: Poolings (kind, window, stride, channels, halves) of what one convolution writes, or two that are concatenated; each
#: is met again and again as its image shrinks.
_CHAINS = (
    (nn.MaxPool2d, 3, 2, 64, 1),
    (nn.MaxPool2d, 3, 2, 128, 2),
    (nn.MaxPool2d, 3, 2, 256, 1),
    (nn.MaxPool2d, 3, 2, 256, 2),
    (nn.MaxPool2d, 2, 2, 128, 1),
    (nn.MaxPool2d, 3, 1, 192, 1),
    (nn.AvgPool2d, 2, 2, 128, 1),
    (nn.AvgPool2d, 3, 1, 192, 1),
)
_LINKS = 4


class _Link(nn.Module):
    """(n, inputs, h, w) → (n, outputs, h / stride, w / stride): convolutions side by side, then a pooling."""

    def __init__(self, inputs: int, outputs: int, halves: int, pooling: nn.Module) -> None:
        super().__init__()
        self.halves = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, outputs // halves, 1), nn.ReLU()) for _ in range(halves)
        )
        self.pooling = pooling

    def forward(self, x: Tensor) -> Tensor:
        parts = [half(x) for half in self.halves]
        return self.pooling(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))  # type: ignore[no-any-return]


class Pooled(nn.Module):
    """(n, 3, side, side) → (n, 10). Chains of links side by side, each padded by (window − 1) // 2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.chains = nn.ModuleList()
        for kind, window, stride, channels, halves in _CHAINS:
            links = [
                _Link(channels if link else 16, channels, halves, kind(window, stride, (window - 1) // 2))
                for link in range(_LINKS)
            ]
            self.chains.append(nn.Sequential(*links))
        self.head = nn.Linear(sum(channels for _, _, _, channels, _ in _CHAINS), 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat([chain(x).mean((2, 3)) for chain in self.chains], dim=1))  # type: ignore[no-any-return]
