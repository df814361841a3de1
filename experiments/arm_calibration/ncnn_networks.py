"""Networks in ncnn's text format, as its benchmark runs them: layers without weights, which are zeros there.

A network is a list of lines `type name inputs outputs input_names output_names key=value …`; the keys are those of
ncnn's layer parameters (0 outputs or pooling kind, 1 window, 2 stride of a pooling, 3 stride or padding, …).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

_MAGIC = "7767517"


class _Network:
    """Layers as they are added; `tail` is the name of the last blob, which has `channels` channels."""

    def __init__(self, size: int) -> None:
        self.lines = [f"Input data 0 1 data 0={size} 1={size} 2=3"]
        self.blobs = 1
        self.tail = "data"
        self.channels = 3

    def _add(self, kind: str, inputs: list[str], parameters: str, outputs: int = 1) -> list[str]:
        index = len(self.lines)
        names = [f"blob{index}_{i}" for i in range(outputs)]
        joined = " ".join([*inputs, *names])
        self.lines.append(f"{kind} layer{index} {len(inputs)} {outputs} {joined} {parameters}".rstrip())
        self.blobs += outputs
        self.tail = names[-1]
        return names

    def conv(self, out: int, window: int, stride: int = 1, pad: int | None = None, relu: bool = True) -> None:
        pad = window // 2 if pad is None else pad
        weights = out * self.channels * window**2
        self._add("Convolution", [self.tail], f"0={out} 1={window} 3={stride} 4={pad} 5=1 6={weights} 9={relu:d}")
        self.channels = out

    def depthwise(self, window: int, stride: int = 1) -> None:
        out = self.channels
        sizes = f"0={out} 1={window} 3={stride} 4={window // 2} 5=1 6={out * window**2} 7={out} 9=1"
        self._add("ConvolutionDepthWise", [self.tail], sizes)

    def max_pool(self, window: int, stride: int) -> None:
        self._add("Pooling", [self.tail], f"0=0 1={window} 2={stride}")

    def classify(self, classes: int = 1000) -> None:
        self.mean()
        self.dense(self.channels, classes, relu=False)

    def dense(self, inputs: int, out: int, relu: bool = True) -> None:
        self._add("InnerProduct", [self.tail], f"0={out} 1=1 2={inputs * out} 9={relu:d}")
        self.channels = out

    def mean(self) -> None:
        """Mean over the positions."""
        self._add("Pooling", [self.tail], "0=1 4=1")

    def split(self) -> tuple[str, str]:
        first, second = self._add("Split", [self.tail], "", outputs=2)
        return first, second

    def add(self, other: str, relu: bool) -> None:
        self._add("Eltwise", [self.tail, other], "0=1")
        if relu:
            self._add("ReLU", [self.tail], "")

    def concat(self, other: str) -> None:
        self._add("Concat", [other, self.tail], "0=0")

    def text(self) -> str:
        return "\n".join([_MAGIC, f"{len(self.lines)} {self.blobs}", *self.lines]) + "\n"


def mobilenet() -> _Network:
    """Table 1 of Howard et al. (2017)."""
    net = _Network(224)
    net.conv(32, 3, 2)
    widths = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for out, stride in widths:
        net.depthwise(3, stride)
        net.conv(out, 1)
    net.classify()
    return net


def _inverted_residuals(stem: int, first: int, stages: list[tuple[int, int, int, int, int]], head: int) -> _Network:
    """stages: expansion, channels, blocks, stride and window of each."""
    net = _Network(224)
    net.conv(stem, 3, 2)
    net.depthwise(3)
    net.conv(first, 1, relu=False)
    for expansion, channels, blocks, stride, window in stages:
        for block in range(blocks):
            residual = net.channels == channels and block > 0
            shortcut, net.tail = net.split() if residual else (net.tail, net.tail)
            net.conv(net.channels * expansion, 1)
            net.depthwise(window, stride if block == 0 else 1)
            net.conv(channels, 1, relu=False)
            if residual:
                net.add(shortcut, relu=False)
    net.conv(head, 1)
    net.classify()
    return net


def mobilenet_v2() -> _Network:
    """Table 2 of Sandler et al. (2018)."""
    stages = [
        (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3), (6, 160, 3, 2, 3), (6, 320, 1, 1, 3),
    ]  # fmt: skip
    return _inverted_residuals(32, 16, stages, 1280)


def mnasnet() -> _Network:
    """MnasNet-B1: figure 7 of Tan et al. (2019), without squeeze-and-excite."""
    stages = [
        (3, 24, 3, 2, 3), (3, 40, 3, 2, 5), (6, 80, 3, 2, 5), (6, 96, 2, 1, 3), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3),
    ]  # fmt: skip
    return _inverted_residuals(32, 16, stages, 1280)


def squeezenet() -> _Network:
    """SqueezeNet 1.1 on 227×227."""
    net = _Network(227)
    net.conv(64, 3, 2, pad=0)
    fires = [(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)]
    for index, (squeezed, expanded) in enumerate(fires):
        if index in (0, 2, 4):
            net.max_pool(3, 2)
        net.conv(squeezed, 1)
        first, second = net.split()
        net.tail = first
        net.conv(expanded, 1)
        left, net.tail, net.channels = net.tail, second, squeezed
        net.conv(expanded, 3)
        net.concat(left)
        net.channels = 2 * expanded
    net.conv(1000, 1)
    net.mean()
    return net


def _resnet(blocks: tuple[int, int, int, int], bottleneck: bool) -> _Network:
    """Table 1 of He et al. (2016); a bottleneck has its stride in the first convolution, as in the original."""
    net = _Network(224)
    net.conv(64, 7, 2)
    net.max_pool(3, 2)
    for stage, count in enumerate(blocks):
        width = 64 << stage
        out = width * 4 if bottleneck else width
        for block in range(count):
            stride = 2 if stage and block == 0 else 1
            channels = net.channels
            shortcut, net.tail = net.split()
            if bottleneck:
                net.conv(width, 1, stride)
                net.conv(width, 3)
                net.conv(out, 1, relu=False)
            else:
                net.conv(width, 3, stride)
                net.conv(width, 3, relu=False)
            if channels != out or stride > 1:
                main, net.tail, net.channels = net.tail, shortcut, channels
                net.conv(out, 1, stride, relu=False)
                shortcut, net.tail = net.tail, main
            net.add(shortcut, relu=True)
    net.classify()
    return net


def resnet18() -> _Network:
    return _resnet((2, 2, 2, 2), bottleneck=False)


def resnet50() -> _Network:
    return _resnet((3, 4, 6, 3), bottleneck=True)


def vgg16() -> _Network:
    """Configuration D of Simonyan and Zisserman (2015)."""
    net = _Network(224)
    for channels, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            net.conv(channels, 3)
        net.max_pool(2, 2)
    net.dense(512 * 7 * 7, 4096)
    net.dense(4096, 4096)
    net.dense(4096, 1000, relu=False)
    return net


#: Builders by the name that ncnn's benchmark prints.
NETWORKS: Mapping[str, Callable[[], _Network]] = MappingProxyType(
    {builder.__name__: builder for builder in (squeezenet, mobilenet, mobilenet_v2, mnasnet, resnet18, resnet50, vgg16)}
)
