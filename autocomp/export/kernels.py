"""Which kernels an ONNX file comes to: read from the graph that ONNX Runtime makes of it, not from what wrote it.

The graph is that of the extended optimizations, where operators are fused but layouts are not yet those of a processor,
so that it holds for any device. Operators that only move or rename data are left out.
"""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnxruntime
from onnx import NodeProto, helper

from autocomp.errors import UserError
from autocomp.hardware.runner import single_thread_options
from autocomp.kernel import Kernel, Precision

_CONVOLUTIONS = frozenset({"Conv", "FusedConv", "QLinearConv"})
#: Operator → (kernel, position of the data among its inputs).
_LINEAR = {"Gemm": 0, "FusedGemm": 0, "QGemm": 0, "MatMul": 0, "FusedMatMul": 0, "QLinearMatMul": 0}
_BINARY = {"Add": "add", "QLinearAdd": "add", "Mul": "mul", "QLinearMul": "mul", "Sub": "add", "Div": "mul"}
_POOLING = {
    "MaxPool": "max_pool", "NhwcMaxPool": "max_pool", "AveragePool": "avg_pool", "QLinearAveragePool": "avg_pool",
    "GlobalAveragePool": "global_avg_pool", "QLinearGlobalAveragePool": "global_avg_pool",
}  # fmt: skip
_CONCAT = {"Concat": 0, "QLinearConcat": 2}
#: Operators without work worth a row.
_FREE = frozenset({
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Gather", "Slice", "Transpose", "Constant",
    "ConstantOfShape", "Expand", "Cast", "Split",
})  # fmt: skip


def file_kernels(path: Path) -> list[tuple[Kernel, str]]:
    """The kernels that ONNX Runtime executes for one example of the model in `path`, in order, with their nodes' names.

    UserError where the file is no model that the runtime loads, or leaves a size open that is not the batch's.
    """
    return list(_Reader(*_optimized(path), path).kernels())


class _Tensor(NamedTuple):
    """What the runtime knows of a tensor. shape: None where an axis is open."""

    integer: bool
    shape: tuple[int, ...] | None


def _optimized(path: Path) -> tuple[onnx.GraphProto, dict[str, _Tensor]]:
    """The graph that the runtime makes of the model for a batch of 1, and its tensors by name."""
    try:
        options = single_thread_options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        for value in onnx.load(path, load_external_data=False).graph.input:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    options.add_free_dimension_override_by_name(dim.dim_param, 1)
        with tempfile.TemporaryDirectory() as folder:
            options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
            onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
            model = onnx.load(options.optimized_model_filepath)
        # The optimized model carries no shapes, but the runtime tells those of every output that it is asked for.
        graph = model.graph
        asked = onnx.ModelProto()
        asked.CopyFrom(model)
        del asked.graph.output[:]
        asked.graph.output.extend(onnx.ValueInfoProto(name=n) for node in graph.node for n in node.output if n)
        plain = single_thread_options()
        plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(asked.SerializeToString(), plain, ["CPUExecutionProvider"])
        found = [*session.get_inputs(), *session.get_outputs()]
        return graph, {t.name: _Tensor(t.type in _INTEGERS, _fixed(t.shape)) for t in found}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # noqa: BLE001  ONNX Runtime's and protobuf's own exceptions share no base class
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: ONNX Runtime does not load it as a model: {reason}") from None


def _fixed(shape: list[int | str | None]) -> tuple[int, ...] | None:
    sizes = tuple(size for size in shape if isinstance(size, int))
    return sizes if len(sizes) == len(shape) else None


class _Reader:
    """Walks over an optimized graph."""

    def __init__(self, graph: onnx.GraphProto, tensors: dict[str, _Tensor], path: Path) -> None:
        self.graph, self.tensors, self.path = graph, tensors, path
        self.constants = {i.name: i for i in graph.initializer}
        self.makers = {name: node.op_type for node in graph.node for name in node.output}

    def kernels(self) -> Iterator[tuple[Kernel, str]]:
        for node in self.graph.node:
            kernel = self._kernel(node)
            if kernel is not None:
                yield kernel, node.name or node.output[0]

    def _kernel(self, node: NodeProto) -> Kernel | None:
        op = node.op_type
        if op in _CONVOLUTIONS:
            return self._convolution(node)
        if op in _LINEAR:
            return self._linear(node)
        if op in _POOLING:
            return self._pooling(node)
        if op == "QuantizeLinear":
            return self._conversion("quantize", node)
        if op == "DequantizeLinear" or (op == "Cast" and self._is_integer(node.input[0])):
            return self._conversion("dequantize", node)
        if op in _FREE or self._scalar_arithmetic(node) or self._rides_along(node):
            return None
        channels, height, width = self._size(node.output[0])
        if op in _CONCAT:
            return Kernel("concat", self._precision(node.output[0]), channels, channels, height, width)
        if op in _BINARY:
            return Kernel(_BINARY[op], self._precision(node.output[0]), channels, channels, height, width)
        return Kernel("activation", self._precision(node.output[0]), channels, channels, height, width)

    def _convolution(self, node: NodeProto) -> Kernel:
        attributes = _attributes(node)
        weight = self.constants.get(node.input[3 if node.op_type == "QLinearConv" else 1])
        if weight is None:
            raise UserError(f"{self.path}: the weights of {node.name or node.output[0]} are no constant")
        channels, height, width = self._size(node.input[0])
        out, per_group, *window = weight.dims
        groups = int(attributes.get("group", 1))
        kernel_h, kernel_w = (1, *window) if len(window) == 1 else window
        depthwise = groups > 1 and per_group == 1 and groups == out
        return Kernel(
            "depthwise" if depthwise else "conv", self._precision(node.output[0]), channels, int(out), height, width,
            int(kernel_h), int(kernel_w), max(attributes.get("strides", [1])), groups,
        )  # fmt: skip

    def _linear(self, node: NodeProto) -> Kernel:
        before, after = self._shape(node.input[0]), self._shape(node.output[0])
        int8 = node.op_type.startswith("Q")
        return Kernel("linear", "int8" if int8 else "fp32", before[-1], after[-1], 1, math.prod(before[:-1]))

    def _pooling(self, node: NodeProto) -> Kernel:
        channels, height, width = self._size(node.input[0])
        attributes = _attributes(node)
        window = attributes.get("kernel_shape", [1, 1])
        kernel_h, kernel_w = (1, window[0]) if len(window) == 1 else window
        stride = max(attributes.get("strides", [1]))
        precision = self._precision(node.output[0])
        op = _POOLING[node.op_type]
        if op == "global_avg_pool":
            return Kernel(op, precision, channels, channels, height, width)
        return Kernel(op, precision, channels, channels, height, width, kernel_h, kernel_w, stride)

    def _conversion(self, step: str, node: NodeProto) -> Kernel | None:
        if node.input[0] in self.constants:
            return None
        channels, height, width = self._size(node.output[0])
        return Kernel(step, "int8", channels, channels, height, width)

    def _scalar_arithmetic(self, node: NodeProto) -> bool:
        """Whether one of two operands is a single constant: what is left of a dequantization, or as light as that."""
        sizes = [math.prod(self.constants[n].dims) for n in node.input if n in self.constants]
        return node.op_type in ("Add", "Sub", "Mul", "Div") and 1 in sizes

    def _rides_along(self, node: NodeProto) -> bool:
        """Whether another kernel does the work: clipping behind an addition, or a guard of slope 1."""
        if node.op_type in ("Relu", "Clip"):
            return self.makers.get(node.input[0]) == "Add"
        return node.op_type == "LeakyRelu" and _attributes(node).get("alpha") == 1.0

    def _is_integer(self, name: str) -> bool:
        return name in self.tensors and self.tensors[name].integer

    def _precision(self, name: str) -> Precision:
        return "int8" if self._is_integer(name) else "fp32"

    def _shape(self, name: str) -> tuple[int, ...]:
        if name in self.constants:
            return tuple(int(size) for size in self.constants[name].dims)
        shape = self.tensors[name].shape
        if not shape:
            raise UserError(f"{self.path}: the size of {name!r} is open; give every axis but the batch a fixed size")
        return shape

    def _size(self, name: str) -> tuple[int, int, int]:
        """Channels, height and width of a tensor (1, channels, …)."""
        shape = self._shape(name)
        if len(shape) == 4:
            return shape[1], shape[2], shape[3]
        if len(shape) == 3:
            return shape[1], 1, shape[2]
        return math.prod(shape[1:]), 1, 1


_INTEGERS = ("tensor(uint8)", "tensor(int8)")


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
