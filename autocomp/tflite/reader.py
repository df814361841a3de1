"""Reads a .tflite file that anyone may have written, with every index and size checked before it is used."""

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocomp.errors import UserError
from autocomp.reading import shortened
from autocomp.tflite.schema import FILE_IDENTIFIER, load_schema

#: Bytes of one value of each type that this package reads; of other types only the name is known.
_VALUE_BYTES = {
    "INT8": 1, "UINT8": 1, "BOOL": 1, "INT16": 2, "FLOAT16": 2, "INT32": 4, "UINT32": 4, "FLOAT32": 4, "INT64": 8,
}  # fmt: skip
#: What generated code raises on bytes that are no model: an offset out of the buffer, a name that is no text.
_FAULTS = (
    AttributeError, IndexError, KeyError, MemoryError, OverflowError, TypeError, ValueError, struct.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of the file. type: the schema's name of it. stored: bytes of a constant, None for an activation."""

    name: str
    shape: tuple[int, ...]
    type: str
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    stored: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class OperatorInfo:
    """An operator: its name in the schema (a custom one's own name), and what it reads and writes."""

    name: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    @property
    def integer(self) -> bool:
        """Whether everything that it computes on is an integer, by the types of all that it reads and writes."""
        return all(tensor.type.startswith(("INT", "UINT")) for tensor in (*self.inputs, *self.outputs))


@dataclass(frozen=True, slots=True)
class Model:
    """The main subgraph of a file: its operators in order, its inputs and outputs."""

    operators: tuple[OperatorInfo, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def read_model(data: bytes, origin: str) -> Model:
    """The model in `data`. UserError naming `origin` where it is not a TFLite model, or not a sound one."""
    schema = load_schema()
    if data[4:8] != FILE_IDENTIFIER:
        raise UserError(f"{origin} is no TFLite file: expected {FILE_IDENTIFIER!r} at byte 4, got {data[4:8]!r}")
    try:
        return _model(schema, data)
    except _Unsound as error:
        raise UserError(f"{origin} is damaged: {error}; write it again") from None
    except _FAULTS as error:
        reason = shortened(str(error)) or type(error).__name__
        raise UserError(f"{origin} is damaged or cut short ({reason}); write it again") from None


class _Unsound(Exception):
    """What is wrong with a model whose bytes could be taken apart."""


def _model(schema: Any, data: bytes) -> Model:
    root = schema.ModelT.InitFromPackedBuf(data)
    if not root.subgraphs:
        raise _Unsound("it holds no graph")
    graph = root.subgraphs[0]
    buffers, codes = root.buffers or [], root.operatorCodes or []
    names = _names(schema.BuiltinOperator)
    types = _names(schema.TensorType)
    tensors = [_tensor(tensor, buffers, types) for tensor in graph.tensors or []]

    def pick(indices: Any, optional: bool = False) -> tuple[TensorInfo, ...]:
        chosen = []
        for index in [] if indices is None else indices:
            if index == -1 and optional:  # an operand that is left out
                continue
            if not 0 <= index < len(tensors):
                raise _Unsound(f"tensor {index} of {len(tensors)} is read or written")
            chosen.append(tensors[index])
        return tuple(chosen)

    operators = []
    for operator in graph.operators or []:
        if not 0 <= operator.opcodeIndex < len(codes):
            raise _Unsound(f"operator code {operator.opcodeIndex} of {len(codes)} is used")
        code = codes[operator.opcodeIndex]
        name = names.get(max(code.builtinCode, code.deprecatedBuiltinCode))
        if name is None:
            raise _Unsound(f"operator {code.builtinCode} is unknown")
        if name == "CUSTOM":
            name = _text(code.customCode)
        operators.append(OperatorInfo(name, pick(operator.inputs, optional=True), pick(operator.outputs)))
    return Model(tuple(operators), pick(graph.inputs), pick(graph.outputs))


def _tensor(tensor: Any, buffers: list[Any], types: dict[int, str]) -> TensorInfo:
    name, shape = _text(tensor.name), tuple(int(size) for size in ([] if tensor.shape is None else tensor.shape))
    kind = types.get(tensor.type)
    if kind is None:
        raise _Unsound(f"tensor {name!r} has the unknown type {tensor.type}")
    if any(size < 0 for size in shape):
        raise _Unsound(f"tensor {name!r} has the shape {shape}")
    if not 0 <= tensor.buffer < len(buffers):
        raise _Unsound(f"tensor {name!r} is stored in buffer {tensor.buffer} of {len(buffers)}")
    stored = buffers[tensor.buffer].data
    if stored is not None and len(stored) == 0:
        stored = None
    if stored is not None and kind in _VALUE_BYTES and len(stored) != math.prod(shape) * _VALUE_BYTES[kind]:
        raise _Unsound(f"tensor {name!r} of shape {shape}, {kind}, is stored in {len(stored)} bytes")
    scales, zero_points = _quantization(name, tensor.quantization, shape)
    return TensorInfo(name, shape, kind, scales, zero_points, stored)


def _quantization(name: str, quantization: Any, shape: tuple[int, ...]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    if quantization is None or quantization.scale is None:
        return (), ()
    scales = tuple(float(scale) for scale in quantization.scale)
    zero_points = tuple(int(z) for z in ([] if quantization.zeroPoint is None else quantization.zeroPoint))
    if not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise _Unsound(f"tensor {name!r} has a scale that is no positive number")
    axis = int(quantization.quantizedDimension)
    if len(scales) > 1 and (not 0 <= axis < len(shape) or shape[axis] != len(scales)):
        raise _Unsound(f"tensor {name!r} of shape {shape} has {len(scales)} scales along axis {axis}")
    return scales, zero_points


def _names(enumeration: Any) -> dict[int, str]:
    """Value → name of a generated enumeration."""
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


def _text(name: bytes | None) -> str:
    return "" if name is None else name.decode("utf-8")
