"""Small graphs: one operator in float16 or float32, a residual after a convolution, an inverted residual block."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FloatType = Literal["fp32", "fp16"]
_ELEMENT = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}
_DTYPE = {"fp32": np.float32, "fp16": np.float16}


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator on (1, channels, size, size), or on (1, channels) for "Gemm". A convolution ends in a ReLU."""

    kind: str
    channels: int
    out: int
    size: int
    window: int = 1
    stride: int = 1
    groups: int = 1

    def __str__(self) -> str:
        window = f" {self.window}x{self.window}" if self.window > 1 else ""
        stride = f" s{self.stride}" if self.stride > 1 else ""
        name = "Conv depthwise" if self.groups > 1 else self.kind
        return f"{name}{window} {self.channels}→{self.out}{stride} @{self.size}"


class Graph:
    """Nodes and constants of one float type. `input` has the shape given."""

    def __init__(self, float_type: FloatType, shape: Sequence[int]) -> None:
        self._rng = np.random.default_rng(0)
        self._type = float_type
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._input = helper.make_tensor_value_info("x", _ELEMENT[float_type], shape)
        self.input = "x"

    def constant(self, *shape: int) -> str:
        name = f"constant{len(self._constants)}"
        value: NDArray[Any] = (self._rng.standard_normal(shape) * 0.1).astype(_DTYPE[self._type])
        self._constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"y{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def conv(self, tail: str, channels: int, out: int, window: int = 1, stride: int = 1, groups: int = 1) -> str:
        weights = self.constant(out, channels // groups, window, window)
        sizes = {"kernel_shape": [window] * 2, "strides": [stride] * 2, "pads": [window // 2] * 4, "group": groups}
        return self.node("Conv", [tail, weights, self.constant(out)], **sizes)

    def model(self, outputs: Sequence[str]) -> bytes:
        infos = [helper.make_tensor_value_info(name, _ELEMENT[self._type], None) for name in outputs]
        graph = helper.make_graph(self._nodes, "graph", [self._input], infos, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return bytes(model.SerializeToString())


def _append(graph: Graph, operator: Operator, copy: int) -> str:
    """The operator on the graph's input. Copies differ in what lets the optimizer not merge them."""
    channels, size, window = operator.channels, operator.size, operator.window
    if operator.kind == "Conv":
        tail = graph.conv(graph.input, channels, operator.out, window, operator.stride, operator.groups)
        return graph.node("Relu", [tail])
    if operator.kind == "Gemm":
        weights = graph.constant(operator.out, channels)
        return graph.node("Gemm", [graph.input, weights, graph.constant(operator.out)], transB=1)
    if operator.kind == "Add":
        return graph.node("Add", [graph.input, graph.constant(1, channels, size, size)])
    if operator.kind == "AveragePool":
        sizes = {"kernel_shape": [window] * 2, "strides": [operator.stride] * 2, "pads": [window // 2] * 4}
        return graph.node("AveragePool", [graph.input], count_include_pad=copy % 2, **sizes)
    return graph.node(operator.kind, [graph.input])


def copies_of(operator: Operator, float_type: FloatType, copies: int) -> bytes:
    """A model of so many copies of the operator on one input, each an output."""
    shape = [1, operator.channels] if operator.kind == "Gemm" else [1, operator.channels, operator.size, operator.size]
    graph = Graph(float_type, shape)
    return graph.model([_append(graph, operator, copy) for copy in range(copies)])


def residuals(operator: Operator, copies: int, *, residual: bool) -> bytes:
    """Copies of a 1×1 or 3×3 convolution without activation; with `residual`, a computed tensor is added to each."""
    graph = Graph("fp32", [1, operator.channels, operator.size, operator.size])
    other = graph.node("Sigmoid", [graph.conv(graph.input, operator.channels, operator.out)])
    tails = [graph.conv(graph.input, operator.channels, operator.out, operator.window) for _ in range(copies)]
    if residual:
        tails = [graph.node("Add", [tail, other]) for tail in tails]
    return graph.model([*tails, other])


def inverted_residual(channels: int, expansion: int, size: int, window: int, float_type: FloatType) -> bytes:
    """1×1 convolution, depthwise convolution, 1×1 convolution, and the input added: Sandler et al. (2018), figure 4."""
    graph = Graph(float_type, [1, channels, size, size])
    hidden = channels * expansion
    tail = graph.node("Relu", [graph.conv(graph.input, channels, hidden)])
    tail = graph.node("Relu", [graph.conv(tail, hidden, hidden, window, groups=hidden)])
    return graph.model([graph.node("Add", [graph.conv(tail, hidden, channels), graph.input])])
