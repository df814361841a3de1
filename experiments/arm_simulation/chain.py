"""A chain of kernels as one ONNX model, to hold the sum of single kernels against a whole network."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from autocomp.kernel import Kernel, Precision

_MICROSOFT = "com.microsoft"


class _Chain:
    """Nodes and constants; `tail` is the name of the last result."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.tail = "x"

    def constant(self, value: NDArray[Any]) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def node(self, op: str, inputs: Sequence[str], domain: str = "", **attributes: Any) -> None:
        self.tail = f"y{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [self.tail], domain=domain, **attributes))

    def quantization(self, scale: float, zero: int) -> list[str]:
        return [self.constant(np.array(scale, np.float32)), self.constant(np.array(zero, np.uint8))]

    def int8_weights(self, shape: Sequence[int], out: int) -> list[str]:
        """Weights with one scale and zero point per output channel."""
        weights = self.rng.integers(-127, 128, tuple(shape)).astype(np.int8)
        values = (weights, np.full(out, 1e-3, np.float32), np.zeros(out, np.int8))
        return [self.constant(value) for value in values]


def _append_fp32(chain: _Chain, kernel: Kernel) -> None:
    shape = (kernel.out_channels, kernel.in_channels // kernel.groups, kernel.kernel_h, kernel.kernel_w)
    bias = np.zeros(kernel.out_channels, np.float32)
    if kernel.op == "global_avg_pool":
        chain.node("GlobalAveragePool", [chain.tail])
        chain.node("Flatten", [chain.tail])
    elif kernel.op == "linear":
        weights = chain.rng.standard_normal(shape[:2]).astype(np.float32)
        chain.node("Gemm", [chain.tail, chain.constant(weights), chain.constant(bias)], transB=1)
    else:
        weights = (chain.rng.standard_normal(shape) * 0.1).astype(np.float32)
        inputs = [chain.tail, chain.constant(weights), chain.constant(bias)]
        chain.node("Conv", inputs, group=kernel.groups, **_window(kernel))
        chain.node("Relu", [chain.tail])


def _append_int8(chain: _Chain, kernel: Kernel) -> None:
    shape = (kernel.out_channels, kernel.in_channels // kernel.groups, kernel.kernel_h, kernel.kernel_w)
    x, y = chain.quantization(0.05, 0), chain.quantization(0.05, 0)
    out = kernel.out_channels
    if kernel.op == "global_avg_pool":
        chain.node("QLinearGlobalAveragePool", [chain.tail, *x, *y], _MICROSOFT, channels_last=1)
        chain.node("Flatten", [chain.tail])
        return
    bias = chain.constant(np.zeros(out, np.int32))
    if kernel.op == "linear":
        weights = chain.int8_weights((kernel.in_channels, out), out)
        chain.node("QGemm", [chain.tail, *x, *weights, bias, *y], _MICROSOFT)
    else:
        inputs = [chain.tail, *x, *chain.int8_weights(shape, out), *y, bias]
        chain.node("QLinearConv", inputs, _MICROSOFT, channels_last=1, group=kernel.groups, **_window(kernel))


def _window(kernel: Kernel) -> dict[str, list[int]]:
    return {
        "kernel_shape": [kernel.kernel_h, kernel.kernel_w],
        "strides": [kernel.stride] * 2,
        "pads": [kernel.kernel_h // 2, kernel.kernel_w // 2] * 2,
    }


def chain_model(kernels: Sequence[Kernel], precision: Precision) -> bytes:
    """The kernels one after the other: convolutions, a global pooling, a linear layer. int8: channels last."""
    chain = _Chain()
    for kernel in kernels:
        (_append_fp32 if precision == "fp32" else _append_int8)(chain, kernel)
    first = kernels[0]
    shape: tuple[int, ...] = (1, first.in_channels, first.height, first.width)
    element = TensorProto.FLOAT
    if precision == "int8":
        shape, element = (1, first.height, first.width, first.in_channels), TensorProto.UINT8
    graph = helper.make_graph(
        chain.nodes,
        "chain",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info(chain.tail, element, None)],
        chain.constants,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_MICROSOFT, 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
