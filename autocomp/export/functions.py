"""The ONNX functions that turn packed weights back into tensors when a file is loaded.

They are model-local functions of ordinary operators: ONNX Runtime inlines them, folds them to constants at load, and
sees the same DequantizeLinear → Conv that plain int8 would give it. One definition serves all layers of a file, so
that a layer costs one node.
"""

from typing import Any

import numpy as np
import onnx
from onnx import FunctionProto, NodeProto, helper, numpy_helper

from autocomp.compress.quantize import Grid
from autocomp.compress.stored import BIAS_STEP
from autocomp.export.packing import PLANES, Packing

DOMAIN = "autocomp"
OPSETS = [helper.make_opsetid("", 20)]
#: Zero point of weights that are handed over as uint8.
UNSIGNED_ZERO = 128


class _Body:
    """Nodes of a function under construction; values are named by counting."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], **attributes))
        return name

    def const(self, value: np.ndarray) -> str:
        return self.op("Constant", value=numpy_helper.from_array(value))

    def function(self, name: str, inputs: list[str], output: str) -> FunctionProto:
        self.nodes.append(helper.make_node("Identity", [output], ["y"]))
        return helper.make_function(DOMAIN, name, inputs, ["y"], self.nodes, OPSETS)

    def fields(self, plane: str, width: int) -> str:
        """Unpack a plane to a flat uint8 tensor."""
        column = self.op("Unsqueeze", plane, self.const(np.array([1], np.int64)))
        shifts = self.const((np.arange(8 // width) * width).astype(np.uint8))
        shifted = self.op("BitShift", column, shifts, direction="RIGHT")
        low = self.op("BitwiseAnd", shifted, self.const(np.array(2**width - 1, np.uint8)))
        return self.op("Reshape", low, self.const(np.array([-1], np.int64)))

    def codes(self, planes: list[str], bits: int) -> str:
        """Sum the planes of b-bit codes; flat uint8, padded."""
        total, shift = "", 0
        for plane, width in zip(planes, PLANES[bits], strict=True):
            part = self.fields(plane, width)
            if shift:
                part = self.op("BitShift", part, self.const(np.array(shift, np.uint8)), direction="LEFT")
            total = self.op("Add", total, part) if total else part
            shift += width
        return total

    def levels(self, planes: list[str], bits: int) -> str:
        """Flat int8 levels of packed codes, padded."""
        signed = self.op("Cast", self.codes(planes, bits), to=onnx.TensorProto.INT8)
        grid = Grid(bits)
        if grid.step != 1:
            signed = self.op("Mul", signed, self.const(np.array(grid.step, np.int8)))
        return self.op("Add", signed, self.const(np.array(grid.offset, np.int8)))

    def looked_up(self, planes: list[str], bits: int) -> str:
        """Flat int8 levels that packed codes stand for in the input "codebook", padded."""
        return self.op("Gather", "codebook", self.op("Cast", self.codes(planes, bits), to=onnx.TensorProto.INT32))

    def size_of(self, shape: str) -> str:
        """Product of a shape, as a tensor of one element."""
        return self.op("ReduceProd", shape, keepdims=1)

    def first(self, flat: str, shape: str) -> str:
        """Cut the padding off and give the tensor its shape."""
        cut = self.op("Slice", flat, self.const(np.array([0], np.int64)), self.size_of(shape))
        return self.op("Reshape", cut, shape)

    def scatter(self, values: str, mask: str, cast: int) -> str:
        """Put the kept values where the mask has ones and zeros elsewhere; flat, padded."""
        bits = self.op("Cast", self.fields(mask, 1), to=onnx.TensorProto.INT32)
        rank = self.op("CumSum", bits, self.const(np.array(0, np.int64)))
        # The k-th one of the mask takes value k − 1; zeros point at some value that the mask then wipes out.
        index = self.op(
            "Max", self.op("Sub", rank, self.const(np.array(1, np.int32))), self.const(np.array(0, np.int32))
        )
        return self.op("Mul", self.op("Gather", values, index), self.op("Cast", bits, to=cast))

    def scale(self) -> str:
        """Scale per output channel from the inputs "base" and "ratios": base · ratio⁴."""
        root = self.op("Cast", "ratios", to=onnx.TensorProto.FLOAT)
        square = self.op("Mul", root, root)
        return self.op("Mul", self.op("Mul", square, square), "base")


def weight_function_name(packing: Packing, integer: bool, transposed: bool, unsigned: bool = False) -> str:
    kind = "Float" if packing.bits == 32 else f"{'Codebook' if packing.clustered else 'Int'}{packing.bits}"
    form = ("U" if unsigned else "") if integer else "ToFloat"
    return f"{kind}{'Sparse' if packing.sparse else ''}{form}{'T' if transposed else ''}"


def weight_inputs(packing: Packing) -> list[str]:
    """Names of a weight function's inputs, in order."""
    values = [f"plane{i}" for i in range(len(PLANES[packing.bits]))] if packing.bits < 8 else ["values"]
    codebook = ["codebook"] if packing.clustered else []
    mask = ["mask"] if packing.sparse else []
    scales = [] if packing.bits == 32 else ["base", "ratios"]
    # Dense int8 and float32 tensors carry their shape themselves.
    shape = ["shape"] if packing.bits < 8 or packing.sparse else []
    return values + codebook + mask + scales + shape


def weight_function(packing: Packing, integer: bool, transposed: bool, unsigned: bool = False) -> FunctionProto:
    """The function that unpacks one kind of weight.

    integer: its output is DequantizeLinear of int8, for an integer kernel; otherwise float32 arithmetic that constant
    folding resolves. transposed: the consumer is a MatMul, which wants (in, out). unsigned: an integer kernel is handed
    uint8 with the zero point 128 instead of int8, for processors whose products of uint8 and int8 saturate.
    """
    body = _Body()
    inputs = weight_inputs(packing)
    values = inputs[0]
    if packing.bits < 8:
        unpack = body.looked_up if packing.clustered else body.levels
        values = unpack([name for name in inputs if name.startswith("plane")], packing.bits)
    if packing.sparse:
        kind = onnx.TensorProto.FLOAT if packing.bits == 32 else onnx.TensorProto.INT8
        values = body.scatter(values, "mask", kind)
    weight = body.first(values, "shape") if "shape" in inputs else values
    if packing.bits == 32:
        if transposed:
            weight = body.op("Transpose", weight, perm=[1, 0])
        return body.function(weight_function_name(packing, integer, transposed), inputs, weight)
    scale = body.scale()
    if transposed:
        weight = body.op("Transpose", weight, perm=[1, 0])
    axis = 1 if transposed else 0
    if integer:
        # The integer kernels want an explicit zero-point per channel; computed, it costs no bytes.
        zero, kind = body.op("Sub", scale, scale), onnx.TensorProto.INT8
        if unsigned:
            kind = onnx.TensorProto.UINT8
            zero = body.op("Add", zero, body.const(np.array(UNSIGNED_ZERO, np.float32)))
            wide = body.op("Cast", weight, to=onnx.TensorProto.INT32)
            weight = body.op("Cast", body.op("Add", wide, body.const(np.array(UNSIGNED_ZERO, np.int32))), to=kind)
        zero = body.op("Cast", zero, to=kind)
        result = body.op("DequantizeLinear", weight, scale, zero, axis=axis)
    else:
        rank = body.op("Shape", body.op("Shape", weight))
        ones = body.op("Expand", body.const(np.array([1], np.int64)), rank)
        where = body.const(np.array([axis], np.int64))
        shape = body.op("ScatterElements", ones, where, body.const(np.array([-1], np.int64)), axis=0)
        factor = body.op("Reshape", scale, shape)
        result = body.op("Mul", body.op("Cast", weight, to=onnx.TensorProto.FLOAT), factor)
    return body.function(weight_function_name(packing, integer, transposed, unsigned), inputs, result)


def bias_function(exact: bool) -> FunctionProto:
    """Stored bias to DequantizeLinear of int32 at input scale × weight scale, all that integer kernels take.

    (Jacob et al. 2018, eq. 11.) exact: it is stored as that int32; else as float16 that counts by `BIAS_STEP` units.
    """
    body = _Body()
    scale = body.op("Mul", body.scale(), "input_scale")
    levels = "bias"
    if not exact:
        count = body.op(
            "Mul", body.op("Cast", "bias", to=onnx.TensorProto.FLOAT), body.const(np.array(BIAS_STEP, np.float32))
        )
        levels = body.op("Cast", body.op("Round", count), to=onnx.TensorProto.INT32)
    return body.function(
        "ExactBias" if exact else "Bias",
        ["bias", "base", "ratios", "input_scale"],
        body.op("DequantizeLinear", levels, scale, axis=0),
    )


def plain_dequantize_function() -> FunctionProto:
    """uint8 tensor, scale and zero-point to float32, without the operator that the runtime looks for."""
    body = _Body()
    real = body.op("Cast", "codes", to=onnx.TensorProto.FLOAT)
    zero = body.op("Cast", "zero", to=onnx.TensorProto.FLOAT)
    return body.function("Real", ["codes", "scale", "zero"], body.op("Mul", body.op("Sub", real, zero), "scale"))
