"""Builds int8 TFLite models operator by operator. Tensors are NHWC; shapes of results follow from the operands."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autocomp.tflite.schema import FILE_IDENTIFIER, load_schema

Padding = Literal["SAME", "VALID"]
#: Activations that an operator applies while it writes its result.
Activation = Literal["NONE", "RELU", "RELU6", "RELU_N1_TO_1"]
Pair = tuple[int, int]

#: Alignment in bytes of a constant's data, as the schema demands (`force_align`).
_ALIGNMENT = 16
#: Version of the schema.
_SCHEMA_VERSION = 3
#: Operator → the version that brought it int8 operands (tensorflow/compiler/mlir/lite/tools/versioning/op_version.cc).
_VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "ADD": 2, "MUL": 2, "CONCATENATION": 2,
    "MAX_POOL_2D": 2, "AVERAGE_POOL_2D": 2, "MEAN": 2, "RESHAPE": 1, "QUANTIZE": 2, "PAD": 2, "LOGISTIC": 2,
    "TANH": 2, "HARD_SWISH": 1, "LEAKY_RELU": 2, "RELU": 2, "RELU6": 2, "TRANSPOSE": 2,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Affine:
    """Quantization of an int8 activation: real = scale · (q − zero_point)."""

    scale: float
    zero_point: int = 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the model under construction: its index in the file, and what operators need to know of it."""

    index: int
    shape: tuple[int, ...]
    affine: Affine | None = None


class ModelBuilder:
    """One model with one subgraph. Operators stand in the order in which they were added.

    Names of results are given by their operators; the runtime reports them, and each byte of them is stored.
    """

    def __init__(self, description: str = "autocomp") -> None:
        self._schema = load_schema()
        self._model = self._schema.ModelT(version=_SCHEMA_VERSION, description=description)
        self._model.buffers = [self._schema.BufferT()]  # index 0: "no data", by convention
        self._model.operatorCodes = []
        self._graph = self._schema.SubGraphT(name="main", tensors=[], inputs=[], outputs=[], operators=[])

    def input(self, name: str, shape: Sequence[int], affine: Affine) -> Tensor:
        """An int8 input of the model."""
        tensor = self.activation(name, shape, affine)
        self._graph.inputs.append(tensor.index)
        return tensor

    def activation(self, name: str, shape: Sequence[int], affine: Affine) -> Tensor:
        """An int8 tensor that an operator writes."""
        quantization = _quantization(self._schema, np.array([affine.scale], np.float32), affine.zero_point)
        return self._tensor(name, tuple(shape), "INT8", quantization, affine)

    def constant(
        self, name: str, values: NDArray[Any], scales: NDArray[np.float32] | float | None = None, axis: int = 0
    ) -> Tensor:
        """A stored tensor of int8 or int32 values.

        scales: one, or one a slice along `axis`; None for plain integers (shapes, axes). The zero-point is 0.
        """
        types = {np.dtype(np.int8): "INT8", np.dtype(np.int32): "INT32"}
        if values.dtype not in types:
            raise ValueError(f"constant {name}: expected int8 or int32 values, got {values.dtype}")
        quantization = None
        if scales is not None:
            per_slice = np.atleast_1d(np.asarray(scales, np.float32))
            if len(per_slice) not in (1, values.shape[axis]):
                raise ValueError(f"constant {name}: {len(per_slice)} scales for {values.shape[axis]} slices")
            quantization = _quantization(self._schema, per_slice, 0, axis)
        tensor = self._tensor(name, values.shape, types[values.dtype], quantization)
        data = np.frombuffer(values.astype(values.dtype.newbyteorder("<")).tobytes(), np.uint8)
        self._model.buffers.append(self._schema.BufferT(data=data))
        self._graph.tensors[tensor.index].buffer = len(self._model.buffers) - 1
        return tensor

    def conv(
        self, name: str, x: Tensor, weight: NDArray[np.int8], scales: NDArray[np.float32], bias: NDArray[np.int32],
        result: Affine, *, stride: Pair = (1, 1), padding: Padding = "SAME", dilation: Pair = (1, 1),
        activation: Activation = "NONE",
    ) -> Tensor:  # fmt: skip
        """Convolution. x: (1, h, w, c); weight: (out, kh, kw, c / groups); scales, bias: (out,)."""
        options = self._schema.Conv2DOptionsT(
            padding=self._padding(padding), strideH=stride[0], strideW=stride[1], dilationHFactor=dilation[0],
            dilationWFactor=dilation[1], fusedActivationFunction=self._activation(activation),
        )  # fmt: skip
        size = _window_result(x, weight.shape[1:3], stride, padding, dilation)
        operands = self._weights(name, x, weight, scales, bias, axis=0)
        return self._operator("CONV_2D", name, operands, (1, *size, len(weight)), result, options)

    def depthwise(
        self, name: str, x: Tensor, weight: NDArray[np.int8], scales: NDArray[np.float32], bias: NDArray[np.int32],
        result: Affine, *, stride: Pair = (1, 1), padding: Padding = "SAME", dilation: Pair = (1, 1),
        activation: Activation = "NONE",
    ) -> Tensor:  # fmt: skip
        """One filter a channel. x: (1, h, w, c); weight: (1, kh, kw, c · multiplier); scales, bias: the last axis."""
        options = self._schema.DepthwiseConv2DOptionsT(
            padding=self._padding(padding), strideH=stride[0], strideW=stride[1], dilationHFactor=dilation[0],
            dilationWFactor=dilation[1], depthMultiplier=weight.shape[3] // x.shape[3],
            fusedActivationFunction=self._activation(activation),
        )  # fmt: skip
        size = _window_result(x, weight.shape[1:3], stride, padding, dilation)
        operands = self._weights(name, x, weight, scales, bias, axis=3)
        return self._operator("DEPTHWISE_CONV_2D", name, operands, (1, *size, weight.shape[3]), result, options)

    def fully_connected(
        self, name: str, x: Tensor, weight: NDArray[np.int8], scales: NDArray[np.float32], bias: NDArray[np.int32],
        result: Affine, *, activation: Activation = "NONE",
    ) -> Tensor:  # fmt: skip
        """x: (n, in), n > 1 for several positions; weight: (out, in); scales: (out,) or (1,); bias: (out,)."""
        options = self._schema.FullyConnectedOptionsT(fusedActivationFunction=self._activation(activation))
        operands = self._weights(name, x, weight, scales, bias, axis=0)
        return self._operator("FULLY_CONNECTED", name, operands, (x.shape[0], len(weight)), result, options)

    def add(self, name: str, a: Tensor, b: Tensor, result: Affine, *, activation: Activation = "NONE") -> Tensor:
        """a + b, broadcast as numpy does."""
        options = self._schema.AddOptionsT(fusedActivationFunction=self._activation(activation))
        return self._operator("ADD", name, [a, b], np.broadcast_shapes(a.shape, b.shape), result, options)

    def mul(self, name: str, a: Tensor, b: Tensor, result: Affine, *, activation: Activation = "NONE") -> Tensor:
        """a · b, broadcast as numpy does."""
        options = self._schema.MulOptionsT(fusedActivationFunction=self._activation(activation))
        return self._operator("MUL", name, [a, b], np.broadcast_shapes(a.shape, b.shape), result, options)

    def concat(self, name: str, inputs: Sequence[Tensor], axis: int = -1) -> Tensor:
        """Inputs side by side along `axis`. They must share one quantization, which the result has too."""
        affine = _only([x.affine for x in inputs], f"inputs of {name}")
        axis %= len(inputs[0].shape)
        shape = list(inputs[0].shape)
        shape[axis] = sum(x.shape[axis] for x in inputs)
        options = self._schema.ConcatenationOptionsT(axis=axis)
        return self._operator("CONCATENATION", name, inputs, shape, affine, options)

    def max_pool(self, name: str, x: Tensor, window: Pair, stride: Pair, padding: Padding = "VALID") -> Tensor:
        """Largest value in each window. The result has the quantization of x."""
        return self._pool("MAX_POOL_2D", name, x, window, stride, padding)

    def avg_pool(self, name: str, x: Tensor, window: Pair, stride: Pair, padding: Padding = "VALID") -> Tensor:
        """Mean over what of each window lies inside the image. The result has the quantization of x."""
        return self._pool("AVERAGE_POOL_2D", name, x, window, stride, padding)

    def mean(self, name: str, x: Tensor, result: Affine, *, keep_dims: bool = True) -> Tensor:
        """Mean over the image: (1, h, w, c) → (1, 1, 1, c), or (1, c) without the axes."""
        axes = self.constant(f"{name}_axes", np.array([1, 2], np.int32))
        options = self._schema.ReducerOptionsT(keepDims=keep_dims)
        shape = (1, 1, 1, x.shape[3]) if keep_dims else (1, x.shape[3])
        return self._operator("MEAN", name, [x, axes], shape, result, options)

    def reshape(self, name: str, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The same values in their order. One size may be −1: it follows from the others, also when x is resized."""
        target = self.constant(f"{name}_shape", np.array(shape, np.int32))
        options = self._schema.ReshapeOptionsT(newShape=list(shape))
        resolved = np.empty(x.shape, np.bool_).reshape(shape).shape
        return self._operator("RESHAPE", name, [x, target], resolved, _known(x), options)

    def transpose(self, name: str, x: Tensor, order: Sequence[int]) -> Tensor:
        """Axis i of the result is axis order[i] of x."""
        permutation = self.constant(f"{name}_order", np.array(order, np.int32))
        shape = [x.shape[axis] for axis in order]
        return self._operator("TRANSPOSE", name, [x, permutation], shape, _known(x), self._schema.TransposeOptionsT())

    def pad(self, name: str, x: Tensor, rows: Pair, columns: Pair) -> Tensor:
        """(1, h, w, c) with so many rows and columns of zeros (before, behind) around the image."""
        amounts = self.constant(f"{name}_pads", np.array([(0, 0), rows, columns, (0, 0)], np.int32))
        shape = (x.shape[0], x.shape[1] + sum(rows), x.shape[2] + sum(columns), x.shape[3])
        return self._operator("PAD", name, [x, amounts], shape, _known(x), self._schema.PadOptionsT())

    def quantize(self, name: str, x: Tensor, result: Affine) -> Tensor:
        """The same values on another grid."""
        return self._operator("QUANTIZE", name, [x], x.shape, result, self._schema.QuantizeOptionsT())

    def elementwise(
        self, name: str, operator: Literal["LOGISTIC", "TANH", "HARD_SWISH", "RELU", "RELU6"], x: Tensor,
        result: Affine,
    ) -> Tensor:  # fmt: skip
        """A function of one value. LOGISTIC must have a result of (1 / 256, −128), TANH of (1 / 128, 0)."""
        options = self._schema.HardSwishOptionsT() if operator == "HARD_SWISH" else None
        return self._operator(operator, name, [x], x.shape, result, options)

    def leaky_relu(self, name: str, x: Tensor, slope: float, result: Affine) -> Tensor:
        return self._operator("LEAKY_RELU", name, [x], x.shape, result, self._schema.LeakyReluOptionsT(alpha=slope))

    def finish(self, outputs: Sequence[Tensor]) -> bytes:
        """The bytes of the file. The same calls give the same bytes."""
        self._graph.outputs = [tensor.index for tensor in outputs]
        self._model.subgraphs = [self._graph]
        builder = _compact_builder()
        builder.Finish(self._model.Pack(builder), FILE_IDENTIFIER)
        return bytes(builder.Output())

    def _tensor(
        self, name: str, shape: tuple[int, ...], kind: str, quantization: Any, affine: Affine | None = None
    ) -> Tensor:
        sizes = [int(size) for size in shape]
        code = getattr(self._schema.TensorType, kind)
        tensor = self._schema.TensorT(shape=sizes, type=code, buffer=0, name=name, quantization=quantization)
        self._graph.tensors.append(tensor)
        return Tensor(len(self._graph.tensors) - 1, tuple(sizes), affine)

    def _weights(
        self, name: str, x: Tensor, weight: NDArray[np.int8], scales: NDArray[np.float32], bias: NDArray[np.int32],
        axis: int,
    ) -> list[Tensor]:  # fmt: skip
        """Operands of a layer. A bias counts in units of input scale × weight scale."""
        units = np.asarray(scales, np.float32) * np.float32(_known(x).scale)
        return [
            x,
            self.constant(f"{name}_weight", weight, scales, axis),
            self.constant(f"{name}_bias", bias, units),
        ]

    def _pool(self, operator: str, name: str, x: Tensor, window: Pair, stride: Pair, padding: Padding) -> Tensor:
        options = self._schema.Pool2DOptionsT(
            padding=self._padding(padding), filterHeight=window[0], filterWidth=window[1], strideH=stride[0],
            strideW=stride[1],
        )  # fmt: skip
        size = _window_result(x, window, stride, padding)
        return self._operator(operator, name, [x], (1, *size, x.shape[3]), _known(x), options)

    def _operator(
        self, operator: str, name: str, inputs: Sequence[Tensor], shape: Sequence[int], result: Affine, options: Any
    ) -> Tensor:
        """Add an operator and the tensor that it writes."""
        output = self.activation(name, shape, result)
        entry = self._schema.OperatorT(
            opcodeIndex=self._operator_code(operator), inputs=[x.index for x in inputs], outputs=[output.index]
        )
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            entry.builtinOptionsType = getattr(self._schema.BuiltinOptions, kind)
            entry.builtinOptions = options
        self._graph.operators.append(entry)
        return output

    def _operator_code(self, operator: str) -> int:
        """Index of the operator among those that the model uses."""
        code = getattr(self._schema.BuiltinOperator, operator)
        for index, known in enumerate(self._model.operatorCodes):
            if known.builtinCode == code:
                return index
        self._model.operatorCodes.append(
            self._schema.OperatorCodeT(
                # Readers from before there were 128 operators look at the deprecated byte.
                deprecatedBuiltinCode=min(code, 127),
                builtinCode=code,
                version=_VERSIONS[operator],
            )
        )
        return len(self._model.operatorCodes) - 1

    def _padding(self, padding: Padding) -> int:
        return int(getattr(self._schema.Padding, padding))

    def _activation(self, activation: Activation) -> int:
        return int(getattr(self._schema.ActivationFunctionType, activation))


def _quantization(schema: Any, scales: NDArray[np.float32], zero_point: int, axis: int = 0) -> Any:
    zero_points = np.full(len(scales), zero_point, np.int64)
    return schema.QuantizationParametersT(scale=scales, zeroPoint=zero_points, quantizedDimension=axis)


def _known(x: Tensor) -> Affine:
    if x.affine is None:
        raise ValueError(f"tensor {x.index} has no quantization of its own")
    return x.affine


def _only(affines: Sequence[Affine | None], what: str) -> Affine:
    """The one quantization that all share."""
    first = affines[0]
    if first is None or any(affine != first for affine in affines):
        raise ValueError(f"{what} must share one quantization, got {affines}")
    return first


def _window_result(
    x: Tensor, window: Sequence[int], stride: Pair, padding: Padding, dilation: Pair = (1, 1)
) -> tuple[int, int]:
    """(height, width) of what a window makes of x: every stride-th position, or those that lie wholly inside."""
    sizes = []
    for size, kernel, step, spread in zip(x.shape[1:3], window, stride, dilation, strict=True):
        reach = (kernel - 1) * spread
        sizes.append(-(-size // step) if padding == "SAME" else -(-(size - reach) // step))
    return sizes[0], sizes[1]


def _compact_builder() -> Any:
    """A flatbuffers builder that aligns vectors as the schema demands, which generated Python code does not.

    It also writes equal vectors once: a zero-point of 8 bytes stands for every channel of every weight and bias, all
    of them 0, and would take a tenth of a file of small layers.
    """
    from flatbuffers import Builder

    class CompactBuilder(Builder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(1024)
            self._written: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: NDArray[Any]) -> int:
            key = (x.dtype.str, x.tobytes())
            if key not in self._written:
                self.Prep(_ALIGNMENT, x.nbytes)
                self._written[key] = int(super().CreateNumpyVector(x))
            return self._written[key]

    return CompactBuilder()
