"""The kernels that a table holds: those of MobileNetV2 and EfficientNet-Lite, whole and pruned, and generic ones.

Pruned layers are sampled, for the table to be interpolated between: the corners of the range of channels that pruning
can leave (a quarter of the layer's input and output channels) and its middle.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from autocomp.kernel import Kernel, Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")

#: Shares of input and output channels that a pruned layer is sampled at: every corner of the range, and its middle.
CORNERS = ((0.25, 0.25), (0.5, 0.5), (0.25, 1.0), (1.0, 0.25))
#: The same with input and output pruned alike.
DIAGONAL = ((0.25, 0.25), (0.5, 0.5))

_LOWEST_CHANNELS = 8


@dataclass(frozen=True, slots=True)
class Stage:
    """Inverted residual blocks of one width. The first block has the stride, the others have stride 1."""

    expansion: int
    channels: int
    blocks: int
    stride: int
    window: int = 3


@dataclass(frozen=True, slots=True)
class MobileNetwork:
    """A network of inverted residual blocks.

    inputs: channels and height = width of the image. head: channels of the last 1×1 convolution.
    """

    inputs: tuple[tuple[int, int], ...]
    stem_channels: int
    stem_stride: int
    stages: tuple[Stage, ...]
    head: int
    classes: tuple[int, ...]


# Table 2 of Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018).
_MOBILENET_V2 = (
    Stage(1, 16, 1, 1), Stage(6, 24, 2, 2), Stage(6, 32, 3, 2), Stage(6, 64, 4, 2), Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2), Stage(6, 320, 1, 1),
)  # fmt: skip

#: MobileNetV2 on images of 32×32, with the strides that it has for ImageNet.
MOBILENET_V2_32 = MobileNetwork(((3, 32), (1, 32)), 32, 2, _MOBILENET_V2, 1280, (10, 100))
#: The same with stride 1 in the stem and the second stage, as is usual for images that small.
MOBILENET_V2_32_FINE = replace(
    MOBILENET_V2_32,
    stem_stride=1,
    stages=(_MOBILENET_V2[0], replace(_MOBILENET_V2[1], stride=1), *_MOBILENET_V2[2:]),
)


def _efficientnet_lite(size: int, channels: Sequence[int], blocks: Sequence[int]) -> MobileNetwork:
    """Table 1 of Tan and Le, "EfficientNet" (2019), without squeeze-and-excite; stem and head are never scaled."""
    windows = (3, 3, 5, 3, 5, 5, 3)
    strides = (1, 2, 2, 2, 1, 2, 1)
    stages = tuple(
        Stage(1 if i == 0 else 6, channels[i], blocks[i], strides[i], windows[i]) for i in range(len(windows))
    )
    return MobileNetwork(((3, size),), 32, 2, stages, 1280, (1000,))


EFFICIENTNET_LITE0 = _efficientnet_lite(224, (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1))
EFFICIENTNET_LITE1 = _efficientnet_lite(240, (16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1))
EFFICIENTNET_LITE2 = _efficientnet_lite(260, (16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1))


def conv(channels_in: int, channels_out: int, size: int, window: int = 1, stride: int = 1) -> Kernel:
    return Kernel("conv", "fp32", channels_in, channels_out, size, size, window, window, stride)


def depthwise(channels: int, size: int, window: int, stride: int = 1) -> Kernel:
    return Kernel("depthwise", "fp32", channels, channels, size, size, window, window, stride, channels)


def elementwise(op: str, channels: int, size: int) -> Kernel:
    """A kernel without weights or window whose output has as many channels as its input."""
    return Kernel(op, "fp32", channels, channels, size, size)


def network_kernels(network: MobileNetwork) -> Iterator[Kernel]:
    """The kernels of a network in order, as fp32; a kernel comes as often as the network executes it."""
    for channels, size in network.inputs:
        yield elementwise("quantize", channels, size)
        yield conv(channels, network.stem_channels, size, 3, network.stem_stride)
    size = -(-network.inputs[0][1] // network.stem_stride)
    channels = network.stem_channels
    for stage in network.stages:
        for block in range(stage.blocks):
            stride = stage.stride if block == 0 else 1
            hidden = channels * stage.expansion
            if stage.expansion > 1:
                yield conv(channels, hidden, size)
            yield depthwise(hidden, size, stage.window, stride)
            size = -(-size // stride)
            yield conv(hidden, stage.channels, size)
            if stride == 1 and channels == stage.channels:
                yield elementwise("add", channels, size)
            channels = stage.channels
    yield conv(channels, network.head, size)
    yield elementwise("global_avg_pool", network.head, size)
    yield elementwise("dequantize", network.head, 1)
    for classes in network.classes:
        yield Kernel("linear", "fp32", network.head, classes, 1, 1)


def _share(channels: int, share: float) -> int:
    """A share of the channels, as a multiple of 8 and at least 8; all of them if they are fewer."""
    if share == 1.0:
        return channels
    return min(channels, max(_LOWEST_CHANNELS, round(channels * share / 8) * 8))


def pruned(kernel: Kernel, shares: Iterable[tuple[float, float]]) -> Iterator[Kernel]:
    """The kernel at shares of its input and output channels; an image's channels and classes are never pruned."""
    for share_in, share_out in shares:
        channels_in, channels_out = kernel.in_channels, kernel.out_channels
        if kernel.op == "linear":
            yield replace(kernel, in_channels=_share(channels_in, share_in))
        elif kernel.op == "conv":
            image = channels_in <= 3
            channels_in = channels_in if image else _share(channels_in, share_in)
            yield replace(kernel, in_channels=channels_in, out_channels=_share(channels_out, share_out))
        elif share_in == share_out and channels_in > 3:
            channels = _share(channels_in, share_in)
            groups = channels if kernel.op == "depthwise" else 1
            yield replace(kernel, in_channels=channels, out_channels=channels, groups=groups)


def generic_kernels() -> Iterator[Kernel]:
    """Kernels of other networks over a range of sizes: ResNet-like, VGG-like, inception-like, 1-D, tokens."""
    places = ((16, 32), (64, 32), (32, 16), (128, 16), (64, 8), (256, 8), (64, 56), (128, 28), (256, 14), (512, 7))
    for window in (3, 5, 7):
        for channels, size in places if window == 3 else places[:6]:
            yield conv(channels, channels, size, window)
            yield conv(channels // 2, channels, size * 2 if size < 32 else size, window, 2)
    for channels, size in places:
        yield conv(channels, channels, size)
        yield conv(channels, channels * 2, size, 1, 2)
        yield depthwise(channels, size, 3)
        yield depthwise(channels, size, 5, 2)
        yield replace(conv(channels, channels, size, 3), groups=4)
        for op in ("add", "mul", "concat", "activation", "quantize", "dequantize", "global_avg_pool"):
            yield elementwise(op, channels, size)
        for op in ("max_pool", "avg_pool"):
            for window, stride in ((2, 2), (3, 1), (3, 2)):
                yield replace(elementwise(op, channels, size), kernel_h=window, kernel_w=window, stride=stride)
    for channels, size in ((32, 112), (96, 112), (144, 56), (96, 16), (24, 8), (384, 4), (96, 4), (960, 2), (160, 2)):
        yield elementwise("quantize", channels, size)
        yield elementwise("dequantize", channels, size)
    for channels_in, size in ((1, 28), (1, 32), (3, 32), (3, 224)):
        yield elementwise("quantize", channels_in, size)
        for channels, window in ((16, 3), (32, 5), (64, 7)):
            yield conv(channels_in, channels, size, window)
            yield conv(channels_in, channels, size, window, 2)
    signals = ((1, 16, 1024), (16, 32, 512), (32, 64, 256), (64, 128, 128), (128, 128, 64))
    for channels_in, channels_out, width in signals:
        for window in (3, 5, 7):
            yield Kernel("conv", "fp32", channels_in, channels_out, 1, width, 1, window)
            yield Kernel("conv", "fp32", channels_in, channels_out, 1, width, 1, window, 2)
    sizes = (64, 256, 1024, 4096)
    for channels_in in sizes:
        for channels_out in (10, *sizes[:3]):
            yield Kernel("linear", "fp32", channels_in, channels_out, 1, 1)
        for op in ("add", "mul", "activation", "quantize", "dequantize"):
            yield elementwise(op, channels_in, 1)
    for channels in (64, 256, 512):
        for tokens in (16, 64, 196):
            yield Kernel("linear", "fp32", channels, channels, 1, tokens)
            yield Kernel("linear", "fp32", channels, channels * 4, 1, tokens)


def catalogue() -> list[Kernel]:
    """All kernels of the table in both precisions, most wanted first, each once."""
    small = (MOBILENET_V2_32_FINE, MOBILENET_V2_32)
    large = (EFFICIENTNET_LITE0, EFFICIENTNET_LITE1, EFFICIENTNET_LITE2)
    kernels: dict[Kernel, None] = {}

    def add(found: Iterable[Kernel]) -> None:
        for kernel in found:
            kernels.update(dict.fromkeys(replace(kernel, precision=precision) for precision in PRECISIONS))

    for network in small:
        add(network_kernels(network))
    for network in small:
        add(sample for kernel in network_kernels(network) for sample in pruned(kernel, CORNERS))
    for network in large:
        add(network_kernels(network))
    add(generic_kernels())
    for network in large:
        shares = CORNERS if network is EFFICIENTNET_LITE0 else DIAGONAL
        add(sample for kernel in network_kernels(network) for sample in pruned(kernel, shares))
    return list(kernels)
