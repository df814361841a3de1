"""Well-known convolutional classifiers with random weights: what a device executes does not depend on the weights.

    network = build("efficientnet_lite0")
    network = build("mobilenet_v1", width=0.5, side=128, classes=10)

Definitions follow the papers cited at each; convolutions are padded by kernel // 2 throughout, so that sizes halve
evenly, where some reference implementations (SqueezeNet, TensorFlow's "SAME") pad otherwise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autocomp.errors import UserError, unknown_name
from autocomp.tasks.mobilenet import InvertedResidual, MobileNetV2, rounded, unit
from autocomp.tasks.spaces import MobileNetV2Block, MobileNetV2Spec


@dataclass(frozen=True, slots=True)
class Network:
    """A network in inference mode. input_shape: of one example, without the batch axis."""

    name: str
    module: nn.Module
    input_shape: tuple[int, int, int]

    @property
    def example(self) -> Tensor:
        """Two inputs, (2, …): what tracing needs."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand((2, *self.input_shape), generator=generator) * 2 - 1


@dataclass(frozen=True, slots=True)
class Architecture:
    """make: (width, classes) → module. side: of the square RGB input that the network was published for, in pixels.

    space: name of the search space that is meant for it.
    """

    make: Callable[[float, int], nn.Module]
    side: int
    classes: int
    space: str = "default"


class _Classifier(nn.Module):
    """Features, averaged over all positions, then one linear layer: (n, 3, side, side) → (n, classes)."""

    def __init__(self, features: list[nn.Module], channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


def _mobilenet_v1(width: float, classes: int) -> nn.Module:
    """MobileNet (Howard et al. 2017, table 1)."""
    channels = rounded(32 * width)
    layers: list[nn.Module] = [unit(3, channels, 3, 2, activation=nn.ReLU())]
    rows = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for full, stride in rows:
        outputs = rounded(full * width)
        layers.append(unit(channels, channels, 3, stride, channels, nn.ReLU()))
        layers.append(unit(channels, outputs, activation=nn.ReLU()))
        channels = outputs
    return _Classifier(layers, channels, classes)


#: Expansion t, channels c, repeats n, stride s (Sandler et al. 2018, table 2).
_MOBILENET_V2 = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def _mobilenet_v2(width: float, classes: int) -> nn.Module:
    blocks = tuple(MobileNetV2Block(expansion=t, channels=c, repeats=n, stride=s) for t, c, n, s in _MOBILENET_V2)
    spec = MobileNetV2Spec(
        width=width, resolution=224, stem_channels=32, stem_stride=2, head_channels=1280, blocks=blocks
    )
    return MobileNetV2(spec, 3, classes)


#: Expansion, channels, repeats, stride, kernel of EfficientNet-B0 (Tan & Le 2019, table 1).
_EFFICIENTNET_B0 = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)  # fmt: skip


def _efficientnet_lite(scale: float, depth: float) -> Callable[[float, int], nn.Module]:
    """EfficientNet-Lite: no squeeze-and-excitation, ReLU6, and stem, head, first and last stage are not scaled.

    Source: the release notes and code of tensorflow/tpu, models/official/efficientnet/lite.
    """

    def make(width: float, classes: int) -> nn.Module:
        stem, head = rounded(32 * width), rounded(1280 * max(1.0, width))
        layers: list[nn.Module] = [unit(3, stem, 3, 2, activation=nn.ReLU6())]
        channels = stem
        for stage, (expansion, full, repeats, stride, kernel) in enumerate(_EFFICIENTNET_B0):
            outputs = rounded(full * scale * width)
            if 0 < stage < len(_EFFICIENTNET_B0) - 1:
                repeats = math.ceil(repeats * depth)
            for repeat in range(repeats):
                layers.append(InvertedResidual(channels, outputs, expansion, stride if repeat == 0 else 1, kernel))
                channels = outputs
        layers.append(unit(channels, head, activation=nn.ReLU6()))
        return _Classifier(layers, head, classes)

    return make


class _BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, projected where the shape changes (He et al. 2016, figure 2, option B)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(unit(inputs, outputs, 3, stride, activation=nn.ReLU()), unit(outputs, outputs, 3))
        alike = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if alike else unit(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _resnet(
    stem: Callable[[int], list[nn.Module]], stages: list[int], repeats: int
) -> Callable[[float, int], nn.Module]:
    """ResNet of basic blocks (He et al. 2016): `repeats` blocks a stage, halving the image between stages."""

    def make(width: float, classes: int) -> nn.Module:
        channels = rounded(stages[0] * width)
        layers = stem(channels)
        for stage, full in enumerate(stages):
            outputs = rounded(full * width)
            for repeat in range(repeats):
                layers.append(_BasicBlock(channels, outputs, 2 if stage and repeat == 0 else 1))
                channels = outputs
        return _Classifier(layers, channels, classes)

    return make


def _imagenet_stem(channels: int) -> list[nn.Module]:
    """He et al. 2016, table 1: 7×7 of stride 2, then 3×3 max pooling of stride 2."""
    return [unit(3, channels, 7, 2, activation=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]


def _cifar_stem(channels: int) -> list[nn.Module]:
    """He et al. 2016, section 4.2: one 3×3 convolution."""
    return [unit(3, channels, 3, activation=nn.ReLU())]


def _biased(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), nn.ReLU())


class _Fire(nn.Module):
    """Squeeze to few channels, expand by 1×1 and 3×3 convolutions side by side (Iandola et al. 2016, figure 1)."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = _biased(inputs, squeezed)
        self.narrow, self.wide = _biased(squeezed, expanded), _biased(squeezed, expanded, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.narrow(x), self.wide(x)], 1)


class _SqueezeNet(nn.Module):
    """SqueezeNet 1.1 (Iandola et al. 2016, and the authors' release of that version): no linear layer."""

    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        channels = rounded(64 * width)
        layers: list[nn.Module] = [_biased(3, channels, 3, 2), nn.MaxPool2d(3, 2, 1)]
        for squeezed, expanded, pool in (
            (16, 64, False), (16, 64, True), (32, 128, False), (32, 128, True), (48, 192, False), (48, 192, False),
            (64, 256, False), (64, 256, False),
        ):  # fmt: skip
            wide = rounded(expanded * width)
            layers.append(_Fire(channels, rounded(squeezed * width), wide))
            channels = 2 * wide
            if pool:
                layers.append(nn.MaxPool2d(3, 2, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = _biased(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)).mean((2, 3))  # type: ignore[no-any-return]


ARCHITECTURES = {
    "mobilenet_v1": Architecture(_mobilenet_v1, 224, 1000),
    "mobilenet_v2": Architecture(_mobilenet_v2, 224, 1000),
    "resnet18": Architecture(_resnet(_imagenet_stem, [64, 128, 256, 512], 2), 224, 1000),
    "resnet20": Architecture(_resnet(_cifar_stem, [16, 32, 64], 3), 32, 10),
    "squeezenet": Architecture(_SqueezeNet, 224, 1000),
    "efficientnet_lite0": Architecture(_efficientnet_lite(1.0, 1.0), 224, 1000, "efficientnet_lite"),
    "efficientnet_lite1": Architecture(_efficientnet_lite(1.0, 1.1), 240, 1000, "efficientnet_lite"),
    "efficientnet_lite2": Architecture(_efficientnet_lite(1.1, 1.2), 260, 1000, "efficientnet_lite"),
}


def build(
    name: str, *, side: int | None = None, classes: int | None = None, width: float = 1.0, seed: int = 0
) -> Network:
    """An architecture with weights drawn from `seed`, in inference mode.

    side: of the square input in pixels; width: multiplier of all channels, which are rounded to multiples of 8.
    Both, and the number of classes, are as published where they are not given. UserError for a name that there is
    none of, and for sizes that no network has.
    """
    if name not in ARCHITECTURES:
        raise unknown_name("network", name, ARCHITECTURES)
    architecture = ARCHITECTURES[name]
    side = architecture.side if side is None else side
    classes = architecture.classes if classes is None else classes
    if side < 16 or classes < 2 or not 0 < width <= 4:
        raise UserError(
            f"network {name}: expected side ≥ 16, classes ≥ 2 and 0 < width ≤ 4, got {side}, {classes} and {width:g}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = architecture.make(width, classes)
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):  # keeps activations of one size through the depth (He et al. 2015)
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return Network(name, module.eval(), (3, side, side))
