"""Which kernels an ONNX model comes to: read from the graph that ONNX Runtime makes of it, not from what wrote it.

The graph is that of the extended optimizations, where operators are fused but layouts are not yet those of a processor,
so that it holds for any device. Operators that only move or rename data are left out. This one reading prices a file
that somebody hands over and, in `compress.executed`, what a traced network executes beside its layers.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from onnx import NodeProto, helper

from autocomp.errors import UserError
from autocomp.hardware.onnx_graph import Tensor, optimized
from autocomp.kernel import Kernel, Precision

#: Operator → position of the weights among its inputs.
_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "QLinearConv": 3, "ConvInteger": 1, "ConvTranspose": 1}
_PRODUCTS = {
    "Gemm": 1, "FusedGemm": 1, "QGemm": 3, "MatMul": 1, "FusedMatMul": 1, "QLinearMatMul": 3, "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1,
}  # fmt: skip
_INTEGER_PRODUCTS = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "ConvInteger")
_RECURRENT = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn", "DynamicQuantizeLSTM": "lstm"}
_BINARY = {"Add": "add", "QLinearAdd": "add", "Mul": "mul", "QLinearMul": "mul", "Sub": "add", "Div": "mul"}
_POOLING = {
    "MaxPool": "max_pool", "NhwcMaxPool": "max_pool", "AveragePool": "avg_pool", "QLinearAveragePool": "avg_pool",
    "GlobalAveragePool": "global_avg_pool", "QLinearGlobalAveragePool": "global_avg_pool",
}  # fmt: skip
_NORMS = frozenset({
    "LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    "InstanceNormalization", "GroupNormalization", "BatchNormalization", "RMSNormalization", "LpNormalization",
    "MeanVarianceNormalization", "LRN",
})  # fmt: skip
_SOFTMAX = frozenset({"Softmax", "LogSoftmax", "QLinearSoftmax", "Hardmax"})
_ACTIVATIONS = frozenset({
    "Relu", "Clip", "Sigmoid", "QLinearSigmoid", "Tanh", "LeakyRelu", "QLinearLeakyRelu", "PRelu", "Elu", "Selu",
    "Celu", "HardSigmoid", "HardSwish", "Softplus", "Softsign", "Mish", "Gelu", "BiasGelu", "FastGelu", "QuickGelu",
    "Erf", "Exp", "Log", "Sqrt", "Reciprocal", "Neg", "Abs", "Pow", "ThresholdedRelu",
})  # fmt: skip
_CONCAT = {"Concat": 0, "QLinearConcat": 2}
#: Operators without work worth a row.
_FREE = frozenset({
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Gather", "Slice", "Constant",
    "ConstantOfShape", "Expand", "Cast", "Split", "Dropout", "Range", "Size",
})  # fmt: skip
#: Operators whose result has its channels where their first input has them.
_KEEPS_CHANNELS = frozenset({"Relu", "Clip", "QuantizeLinear", "DequantizeLinear", "Cast", "Identity", "Dropout"})


class Executed(NamedTuple):
    """A node of the runtime's graph, and the kernels that it comes to: none where it only renames data.

    sizes: channels, height and width of its results by name, of those that are known.
    """

    node: NodeProto
    kernels: tuple[Kernel, ...]
    sizes: dict[str, tuple[int, int, int]]


def executed_nodes(model: bytes | Path, origin: str) -> list[Executed]:
    """What ONNX Runtime executes for one example of `model` (serialized, or a file), in order.

    UserError where the runtime does not load it, or a size is open that is not the batch's; `origin` names the model.
    """
    graph, tensors = optimized(model, origin)
    return list(_Reader(graph, tensors, origin).nodes())


class _Reader:
    """Walks over an optimized graph."""

    def __init__(self, graph: onnx.GraphProto, tensors: Mapping[str, Tensor], origin: str) -> None:
        self.graph, self.tensors, self.origin = graph, tensors, origin
        self.constants = {i.name: i for i in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        #: Tensors whose channels do not lie along axis 1, with the axis where they do.
        self.channel_axes: dict[str, int] = {}

    def nodes(self) -> Iterator[Executed]:
        for node in self.graph.node:
            self._place_channels(node)
            kernels = self._kernels(node)
            every = kernels if isinstance(kernels, tuple) else () if kernels is None else (kernels,)
            known = [name for name in node.output if name in self.tensors and self.tensors[name].shape]
            yield Executed(node, every, {name: self._size(name) for name in known})

    def _kernels(self, node: NodeProto) -> Kernel | tuple[Kernel, ...] | None:
        op = node.op_type
        if op in _CONVOLUTIONS:
            return self._convolution(node)
        if op in _PRODUCTS:
            return self._product(node)
        if op in _POOLING:
            return self._pooling(node)
        if op in _RECURRENT:
            return self._recurrent(node)
        if op in ("Attention", "MultiHeadAttention"):
            return self._attention(node)
        if op == "Einsum":
            return self._einsum(node)
        if op == "QuantizeLinear":
            return self._conversion("quantize", node)
        if op == "DequantizeLinear" or (op == "Cast" and self._is_integer(node.input[0])):
            return self._conversion("dequantize", node)
        if op in _FREE or self._dequantizes(node) or self._rides_along(node) or self._moves_nothing(node):
            return None
        return self._light(node)

    def _light(self, node: NodeProto) -> Kernel | None:
        """An operator whose work is to go over its elements."""
        op = node.op_type
        if op.startswith("Reduce") or op in ("ArgMax", "ArgMin", "TopK", "CumSum"):
            return self._reduction(node)
        shape = self._shape(node.output[0]) if node.output[0] in self.tensors else ()
        if not math.prod(shape) > 0 or not any(name in self.tensors for name in node.input):
            return None
        channels, height, width = self._size(node.output[0])
        if op in _CONCAT:
            name = "concat"
        elif op in _NORMS:
            name = "norm"
        elif op in _SOFTMAX:
            name = "softmax"
        elif op in _BINARY and not self._one_constant(node):
            name = _BINARY[op]
        else:
            name = "activation" if op in _ACTIVATIONS or op in _BINARY else "other"
        return Kernel(name, self._precision(node.output[0]), channels, channels, height, width)

    def _convolution(self, node: NodeProto) -> Kernel:
        attributes = _attributes(node)
        weight = self._shape(node.input[_CONVOLUTIONS[node.op_type]])
        channels, height, width = self._size(node.input[0])
        groups = int(attributes.get("group", 1))
        stride = int(max(attributes.get("strides", [1])))
        precision: Precision = "int8" if node.op_type in _INTEGER_PRODUCTS else self._precision(node.output[0])
        if node.op_type == "ConvTranspose":
            window = (math.prod(weight[2:-1]), weight[-1])
            return Kernel("conv_transpose", precision, channels, weight[1] * groups, height, width, *window, stride,
                          groups)  # fmt: skip
        out, per_group, *window_sides = weight
        if len(window_sides) > 2:
            # As a flat image of the output's size: it has the multiply-accumulates of the volume.
            *outer, last = self._shape(node.output[0])[2:]
            return Kernel("conv3d", precision, channels, out, math.prod(outer), last, math.prod(window_sides[:-1]),
                          window_sides[-1], 1, groups)  # fmt: skip
        kernel_h, kernel_w = (1, *window_sides) if len(window_sides) == 1 else window_sides
        depthwise = groups > 1 and per_group == 1 and groups == out
        return Kernel(
            "depthwise" if depthwise else "conv", precision, channels, out, height, width, kernel_h, kernel_w, stride,
            groups,
        )  # fmt: skip

    def _product(self, node: NodeProto) -> Kernel:
        """A product with stored weights is a linear layer; one of two activations has an operator of its own."""
        weights = node.input[_PRODUCTS[node.op_type]]
        before, after = self._shape(node.input[0]), self._shape(node.output[0])
        attributes = _attributes(node)
        transposed = bool(attributes.get("transA", 0)) and len(before) > 1
        depth = before[-2] if transposed else before[-1]
        int8 = node.op_type.startswith("Q") or node.op_type in _INTEGER_PRODUCTS
        precision: Precision = "int8" if int8 else "fp32"
        positions = max(1, math.prod(after) // after[-1])
        if weights in self.constants and len(self.constants[weights].dims) == 2:
            return Kernel("linear", precision, depth, after[-1], 1, positions)
        rows = after[-2] if len(after) > 1 else 1
        return Kernel("matmul", precision, depth, after[-1], max(1, positions // rows), rows)

    def _recurrent(self, node: NodeProto) -> Kernel:
        op = _RECURRENT[node.op_type]
        steps, batch, features = self._shape(node.input[0])
        hidden = int(_attributes(node)["hidden_size"])
        directions = 2 if _attributes(node).get("direction", b"forward") == b"bidirectional" else 1
        return Kernel(op, "fp32", features, hidden * directions, batch, steps, groups=directions)

    def _attention(self, node: NodeProto) -> tuple[Kernel, ...]:
        """Scores, softmax and the weighted sum; of the runtime's own operator, also the layer that makes the inputs."""
        attributes = _attributes(node)
        queries = self._shape(node.input[0])
        heads = int(attributes.get("q_num_heads", attributes.get("num_heads", queries[1] if len(queries) == 4 else 1)))
        rows = queries[-2]
        before: tuple[Kernel, ...] = ()
        if node.op_type == "Attention" and node.domain == "com.microsoft":
            weights = self._shape(node.input[1])
            before = (Kernel("linear", "fp32", weights[0], weights[1], 1, rows),)
            width, keys = weights[1] // 3 // heads, rows
        else:
            width = queries[-1] if len(queries) == 4 else queries[-1] // heads
            keys = self._shape(node.input[1])[-2] if len(node.input) > 1 and node.input[1] else rows
        return (
            *before, Kernel("matmul", "fp32", width, keys, heads, rows),
            Kernel("softmax", "fp32", heads, heads, rows, keys), Kernel("matmul", "fp32", keys, width, heads, rows),
        )  # fmt: skip

    def _einsum(self, node: NodeProto) -> Kernel | None:
        """Every index once: those that the result lacks are summed over, those of the last operand are columns."""
        equation = _attributes(node)["equation"].decode().replace(" ", "")
        sources, _, result = equation.partition("->")
        terms = sources.split(",")
        shapes = [self._shape(name) for name in node.input]
        if len(terms) < 2 or "." in equation or any(len(t) != len(s) for t, s in zip(terms, shapes, strict=True)):
            return self._light(node)
        size = {
            index: n for term, shape in zip(terms, shapes, strict=True) for index, n in zip(term, shape, strict=True)
        }
        earlier = set("".join(terms[:-1]))
        depth = math.prod(n for index, n in size.items() if index not in result)
        columns = math.prod(n for index, n in size.items() if index in result and index not in earlier)
        rows = math.prod(n for index, n in size.items() if index in result and index in earlier)
        return Kernel("matmul", "fp32", depth, columns, 1, rows)

    def _pooling(self, node: NodeProto) -> Kernel:
        channels, height, width = self._size(node.input[0])
        attributes = _attributes(node)
        window = attributes.get("kernel_shape", [1, 1])
        kernel_h, kernel_w = math.prod(window[:-1]), window[-1]
        stride = max(attributes.get("strides", [1]))
        precision = self._precision(node.output[0])
        op = _POOLING[node.op_type]
        if op == "global_avg_pool":
            return Kernel(op, precision, channels, channels, height, width)
        return Kernel(op, precision, channels, channels, height, width, kernel_h, kernel_w, stride)

    def _reduction(self, node: NodeProto) -> Kernel | None:
        """Work over the elements that go in. A mean over an image is the global average pooling."""
        if node.input[0] in self.constants or not math.prod(self._shape(node.input[0])) > 0:
            return None
        before, after = self._shape(node.input[0]), self.tensors[node.output[0]].shape or ()
        channels, height, width = self._size(node.input[0])
        image = len(before) == 4 and self.channel_axes.get(node.input[0], 1) == 1
        if node.op_type == "ReduceMean" and image and math.prod(after) == math.prod(before[:2]):
            return Kernel("global_avg_pool", self._precision(node.output[0]), channels, channels, height, width)
        return Kernel("activation", self._precision(node.output[0]), channels, channels, height, width)

    def _conversion(self, step: str, node: NodeProto) -> Kernel | None:
        if node.input[0] in self.constants or self._requantizes(node):
            return None
        channels, height, width = self._size(node.output[0])
        return Kernel(step, "int8", channels, channels, height, width)

    def _one_constant(self, node: NodeProto) -> bool:
        """Whether one of two operands of float arithmetic is a single constant."""
        return node.op_type in ("Add", "Sub", "Mul", "Div") and 1 in [
            math.prod(self.constants[n].dims) for n in node.input if n in self.constants
        ]

    def _dequantizes(self, node: NodeProto) -> bool:
        """Whether a node is what is left of a dequantization: a shift or scale right behind the cast to float."""
        while node.op_type in ("Sub", "Mul") and self._one_constant(node):
            source = next((name for name in node.input if name not in self.constants), "")
            if source not in self.makers:
                return False
            node = self.makers[source]
            if node.op_type == "Cast":
                return self._is_integer(node.input[0])
        return False

    def _rides_along(self, node: NodeProto) -> bool:
        """Whether another kernel does the work: a bias, clipping behind an addition, or a guard of slope 1."""
        if node.op_type == "Add":
            return self._is_bias(node)
        if node.op_type in ("Relu", "Clip"):
            before = self.makers.get(node.input[0])
            return before is not None and before.op_type == "Add" and not self._is_bias(before)
        return node.op_type == "LeakyRelu" and _attributes(node).get("alpha") == 1.0

    def _requantizes(self, node: NodeProto) -> bool:
        """Whether a quantization is the end of an integer linear layer, which counts as one kernel with it."""
        before = self.makers.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if before is not None and before.op_type == "Add" and self._is_bias(before):
            before = next((self.makers[name] for name in before.input if name in self.makers), None)
        return before is not None and before.op_type in _INTEGER_PRODUCTS

    def _is_bias(self, node: NodeProto) -> bool:
        """Whether an addition is the bias of a linear layer, which counts as one kernel."""
        made = [self.makers[name].op_type in _PRODUCTS for name in node.input if name in self.makers]
        biases = [self.constants[name] for name in node.input if name in self.constants]
        return made == [True] and len(biases) == 1 and len(biases[0].dims) == 1

    def _moves_nothing(self, node: NodeProto) -> bool:
        """Whether a transposition leaves all values where they are: it only moves axes of size 1."""
        if node.op_type != "Transpose":
            return False
        shape = self._shape(node.input[0])
        order = _attributes(node).get("perm", range(len(shape))[::-1])
        moved = [axis for axis in order if shape[axis] > 1]
        return moved == sorted(moved)

    def _place_channels(self, node: NodeProto) -> None:
        """Along which axis the channels of a node's results lie."""
        rank = {name: len(self.tensors[name].shape or ()) for name in node.output if name in self.tensors}
        data = [name for name in node.input if name in self.tensors]
        axis = None
        if node.op_type in _PRODUCTS or node.op_type in _RECURRENT or node.op_type == "LayerNormalization":
            axis = -1
        elif node.op_type in _CONVOLUTIONS or node.op_type in _POOLING or not data:
            axis = 1
        elif node.op_type == "Transpose":
            order = list(_attributes(node).get("perm", range(rank[node.output[0]])[::-1]))
            axis = order.index(self.channel_axes.get(data[0], min(1, len(order) - 1)))
        elif node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
            axis = self._reshaped(node, data[0])
        for name, axes in rank.items():
            followed = [
                self.channel_axes[s] for s in data if self.channel_axes.get(s, 1) < axes and s in self.channel_axes
            ]
            place = axis % axes if axis is not None and axes else followed[0] if followed else 1
            if place != 1:
                self.channel_axes[name] = place

    def _reshaped(self, node: NodeProto, source: str) -> int:
        """Last where channels were last, as where positions are merged for a product."""
        before = self.tensors[source].shape
        return -1 if before and self.channel_axes.get(source, 1) == len(before) - 1 else 1

    def _is_integer(self, name: str) -> bool:
        return name in self.tensors and self.tensors[name].integer

    def _precision(self, name: str) -> Precision:
        return "int8" if self._is_integer(name) else "fp32"

    def _shape(self, name: str) -> tuple[int, ...]:
        if name in self.constants:
            return tuple(int(size) for size in self.constants[name].dims)
        shape = self.tensors[name].shape
        if shape is None:
            raise UserError(f"{self.origin}: the size of {name!r} is open; give every axis but the batch a fixed size")
        return shape

    def _size(self, name: str) -> tuple[int, int, int]:
        """Channels, height and width of a tensor; what is no image has all its positions in the width."""
        shape = self._shape(name)
        if not shape:
            return 1, 1, 1
        axis = min(self.channel_axes.get(name, 1), len(shape) - 1)
        others = [size for place, size in enumerate(shape) if place != axis]
        if len(shape) == 4 and shape[0] == 1 and axis != 0:
            return shape[axis], others[1], others[2]
        return shape[axis], 1, math.prod(others)


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
