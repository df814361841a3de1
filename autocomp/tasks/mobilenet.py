"""MobileNetV2 for small images (Sandler et al. 2018), built from a search space's `network` section."""

from torch import Tensor, nn

from autocomp.tasks.spaces import MobileNetV2Spec


def rounded(channels: float, multiple: int = 8) -> int:
    """`channels` to the nearest multiple, never more than 10 % below (the reference implementation's rule)."""
    value = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return value + multiple if value < 0.9 * channels else value


def unit(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, activation: nn.Module | None = None
) -> nn.Sequential:
    """Convolution without bias, padded by kernel // 2, then batch norm and the activation where there is one."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers) if activation is None else nn.Sequential(*layers, activation)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; with a shortcut where input and output have one shape (figure 4d)."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, kernel: int = 3) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = unit(inputs, hidden, activation=nn.ReLU6()) if expansion > 1 else nn.Identity()
        self.filter = unit(hidden, hidden, kernel, stride, hidden, nn.ReLU6())
        self.project = unit(hidden, outputs)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.filter(self.expand(x)))
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """A classifier of square images: (n, in_channels, resolution, resolution) → (n, classes)."""

    def __init__(self, spec: MobileNetV2Spec, in_channels: int, classes: int) -> None:
        super().__init__()
        channels = rounded(spec.stem_channels * spec.width)
        self.stem = unit(in_channels, channels, 3, spec.stem_stride, activation=nn.ReLU6())
        blocks: list[nn.Module] = []
        for row in spec.blocks:
            outputs = rounded(row.channels * spec.width)
            for repeat in range(row.repeats):
                blocks.append(InvertedResidual(channels, outputs, row.expansion, row.stride if repeat == 0 else 1))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        head = rounded(spec.head_channels * max(1.0, spec.width))
        self.head = unit(channels, head, activation=nn.ReLU6())
        self.classifier = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]
