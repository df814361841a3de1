"""Whole networks built by hand: the ONNX graph, and the kernels that it is expected to execute.

fp32 graphs are plain Conv + Relu; int8 graphs store weights as int8 and carry QuantizeLinear / DequantizeLinear
around every operator, the form from which ONNX Runtime fuses its integer kernels.
"""

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from autocomp.kernel import Kernel, Precision


@dataclass
class Tensor:
    """Name of the float view of a tensor, with its channels and spatial size."""

    name: str
    channels: int
    size: int


@dataclass
class NetworkBuilder:
    """Adds operators one by one, and notes the kernel that each becomes."""

    precision: Precision
    seed: int = 0
    kernels: list[Kernel] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.count = 0

    @property
    def int8(self) -> bool:
        return self.precision == "int8"

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def _node(self, op: str, inputs: list[str], **attributes: object) -> str:
        self.count += 1
        output = f"t{self.count}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{op}{self.count}", **attributes))
        return output

    def _quantized(self, name: str, zero: int) -> str:
        """`name` rounded to uint8 and back to float."""
        if not self.int8:
            return name
        self.count += 1
        scale = self._constant(f"scale{self.count}", np.array(0.05, np.float32))
        zero_point = self._constant(f"zero{self.count}", np.array(zero, np.uint8))
        stored = self._node("QuantizeLinear", [name, scale, zero_point])
        return self._node("DequantizeLinear", [stored, scale, zero_point])

    def _weights(self, shape: tuple[int, ...]) -> tuple[str, str]:
        """Weight and bias of a layer, as float tensors."""
        self.count += 1
        n, out = self.count, shape[0]
        if not self.int8:
            spread = 1 / np.sqrt(np.prod(shape[1:]))
            weight = self._constant(f"w{n}", (self.rng.standard_normal(shape) * spread).astype(np.float32))
            return weight, self._constant(f"b{n}", np.zeros(out, np.float32))
        stored = self._constant(f"w{n}", self.rng.integers(-127, 128, shape).astype(np.int8))
        scale = self._constant(f"ws{n}", np.full(out, 1e-3, np.float32))
        zero = self._constant(f"wz{n}", np.zeros(out, np.int8))
        bias = self._constant(f"b{n}", self.rng.integers(-99, 99, out).astype(np.int32))
        bias_scale = self._constant(f"bs{n}", np.full(out, 5e-5, np.float32))
        bias_zero = self._constant(f"bz{n}", np.zeros(out, np.int32))
        weight = self._node("DequantizeLinear", [stored, scale, zero], axis=0)
        return weight, self._node("DequantizeLinear", [bias, bias_scale, bias_zero], axis=0)

    def input(self, channels: int, size: int) -> Tensor:
        self.shape = (1, channels, size, size)
        if self.int8:
            self.kernels.append(Kernel("quantize", "int8", channels, channels, size, size))
        return Tensor(self._quantized("x", 128), channels, size)

    def conv(
        self, x: Tensor, out: int, window: int = 1, stride: int = 1, depthwise: bool = False, relu: bool = True
    ) -> Tensor:
        groups = x.channels if depthwise else 1
        op = "depthwise" if depthwise else "conv"
        self.kernels.append(Kernel(op, self.precision, x.channels, out, x.size, x.size, window, window, stride, groups))
        weight, bias = self._weights((out, x.channels // groups, window, window))
        name = self._node(
            "Conv", [x.name, weight, bias], group=groups, kernel_shape=[window, window], strides=[stride, stride],
            pads=[window // 2] * 4,
        )  # fmt: skip
        if relu:
            name = self._node("Relu", [name])
        return Tensor(self._quantized(name, 0 if relu else 128), out, -(-x.size // stride))

    def add(self, a: Tensor, b: Tensor, relu: bool = False) -> Tensor:
        self.kernels.append(Kernel("add", self.precision, a.channels, a.channels, a.size, a.size))
        name = self._node("Add", [a.name, b.name])
        if relu:
            name = self._node("Relu", [name])
        return Tensor(self._quantized(name, 0 if relu else 128), a.channels, a.size)

    def classifier(self, x: Tensor, classes: int) -> None:
        self.kernels.append(Kernel("global_avg_pool", self.precision, x.channels, x.channels, x.size, x.size))
        pooled = self._quantized(self._node("GlobalAveragePool", [x.name]), 128)
        flat = self._quantized(self._node("Flatten", [pooled]), 128)
        weight, bias = self._weights((classes, x.channels))
        self.kernels.append(Kernel("linear", self.precision, x.channels, classes, 1, 1))
        name = self._quantized(self._node("Gemm", [flat, weight, bias], transB=1), 128)
        if self.int8:
            self.kernels.append(Kernel("dequantize", "int8", classes, classes, 1, 1))
        self.result = name

    def model(self) -> bytes:
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(self.result, TensorProto.FLOAT, None)],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return bytes(model.SerializeToString())


def kept(channels: int, width: float, multiple: int) -> int:
    """`channels` after pruning to `width`, rounded to `multiple`; 1 gives odd counts."""
    return max(multiple, round(channels * width / multiple) * multiple)


def mobilenet_v2(precision: Precision, size: int, width: float, multiple: int, seed: int = 0) -> NetworkBuilder:
    """Inverted residuals (expansion, channels, blocks, stride); at 32×32 the first strides are dropped."""
    net = NetworkBuilder(precision, seed)
    small = size <= 48
    x = net.conv(net.input(3, size), kept(32, width, multiple), 3, 1 if small else 2)
    for expand, channels, blocks, stride in (
        (1, 16, 1, 1), (6, 24, 2, 1 if small else 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):  # fmt: skip
        for block in range(blocks):
            step, out = stride if block == 0 else 1, kept(channels, width, multiple)
            hidden = kept(x.channels * expand, 1.0 - 0.03 * block, multiple) if width < 1 else x.channels * expand
            y = net.conv(x, hidden) if expand > 1 else x
            y = net.conv(y, y.channels, 3, step, depthwise=True)
            y = net.conv(y, out, relu=False)
            x = net.add(y, x) if step == 1 and x.channels == out else y
    net.classifier(net.conv(x, kept(1280, width, multiple)), 10)
    return net


def resnet(precision: Precision, size: int, width: float, multiple: int, seed: int = 0) -> NetworkBuilder:
    """Basic blocks as in ResNet-20 for 32×32 images: three stages of three blocks."""
    net = NetworkBuilder(precision, seed)
    x = net.conv(net.input(3, size), kept(16, width, multiple), 3)
    for stage, channels in enumerate((16, 32, 64)):
        for block in range(3):
            out, step = kept(channels, width, multiple), 2 if stage and not block else 1
            y = net.conv(x, kept(channels, width * (1 - 0.1 * block), multiple), 3, step)
            y = net.conv(y, out, 3, relu=False)
            shortcut = x if step == 1 and x.channels == out else net.conv(x, out, 1, step, relu=False)
            x = net.add(y, shortcut, relu=True)
    net.classifier(x, 10)
    return net


def efficientnet_lite0(precision: Precision, size: int = 224, seed: int = 0) -> NetworkBuilder:
    """EfficientNet-Lite0, with ReLU in the place of ReLU6 (the same kernel)."""
    net = NetworkBuilder(precision, seed)
    x = net.conv(net.input(3, size), 32, 3, 2)
    for expand, channels, blocks, stride, window in (
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ):  # fmt: skip
        for block in range(blocks):
            step = stride if block == 0 else 1
            y = net.conv(x, x.channels * expand) if expand > 1 else x
            y = net.conv(y, y.channels, window, step, depthwise=True)
            y = net.conv(y, channels, relu=False)
            x = net.add(y, x) if step == 1 and x.channels == channels else y
    net.classifier(net.conv(x, 1280), 1000)
    return net
