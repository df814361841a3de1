"""Which operators the runtime executes on integers, in which form, and why the others run in float.

`tests/export/test_integer_kernels.py` holds each of these forms against the same file unfused, over its attributes.
What the rules below do not name follows from asking the runtime itself: `runtime_form`.
"""

import operator
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, helper
from torch import fx

from autocomp.compress.parameters import argument, aten, per_axis

_AVERAGES = {aten.avg_pool1d.default, aten.avg_pool2d.default}
_PADS = {aten.constant_pad_nd.default, aten.pad.default}
_NEAREST = {aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default}
_SPLITS = {aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int}


@dataclass(frozen=True, slots=True)
class Form:
    """How the runtime executes an operator whose inputs are int8.

    int8: on integers. keeps_range: its result takes only values of its input, and zero. free: no work worth a row.
    reason: why it is no integer kernel.
    """

    int8: bool
    keeps_range: bool = False
    free: bool = False
    reason: str = ""


def form_of(node: fx.Node) -> Form | None:
    """The form of an operator that has a rule here, None for any other."""
    if node.target in _AVERAGES:
        return _average(node)
    if node.target in _PADS:
        return _pad(node)
    if node.target in _NEAREST:
        return Form(True, keeps_range=True)
    if node.target is operator.getitem and node.args[0].target in _SPLITS:
        return Form(True, keeps_range=True, free=True)
    return None


def _average(node: fx.Node) -> Form:
    """The integer kernel divides a window that is cut at the edge (ceil_mode) by its whole size, unless padding is left
    out of the count: then it is right, and without padding the two mean the same (`tracing.pools` says so in the file).
    """
    if argument(node, 6, "divisor_override", None) is not None:
        return Form(False, reason="the runtime's average has no divisor of its own: it runs in float")
    source = node.args[0]
    assert isinstance(source, fx.Node)
    sizes = list(source.meta["val"].shape)[2:]
    window = per_axis(node.args[1], len(sizes))
    stride = per_axis(argument(node, 2, "stride", None) or window, len(sizes))
    padding = per_axis(argument(node, 3, "padding", 0), len(sizes))
    axes = zip(sizes, window, stride, padding, strict=True)
    cut = any((size + 2 * edge - span) % step for size, span, step, edge in axes)
    counted = any(padding) and bool(argument(node, 5, "count_include_pad", True))
    if cut and counted and bool(argument(node, 4, "ceil_mode", False)):
        reason = "the runtime's integer average divides padded windows that are cut at the edge by too much"
        return Form(False, reason=f"{reason}: it runs in float")
    return Form(True)


def _pad(node: fx.Node) -> Form:
    """Codes are padded as they are: zero is on every grid, and so is what is there already."""
    general = node.target is aten.pad.default
    mode = argument(node, 2, "mode", "constant") if general else "constant"
    value = argument(node, 3 if general else 2, "value", 0)
    if mode == "constant" and value not in (0, None):
        return Form(False, reason=f"it pads with {value:g}, which the grid of its input may not hold: it runs in float")
    if mode == "circular":
        return Form(False, reason="circular padding is written as several operators: it runs in float")
    return Form(True, keeps_range=True)


# --- what the runtime says -----------------------------------------------------------------------------------------

#: Operators that mean the same on the codes of one grid as on what they stand for, up to rounding.
_ON_CODES = frozenset({"Pad", "Resize", "Max", "Min", "Clip", "Where"})

RuntimeForm = Literal["fused", "codes", "float"]


def reason_for_float(node: fx.Node, makers: Mapping[str, NodeProto], constants: Mapping[str, TensorProto]) -> str:
    """Why an operator without a rule runs in float, by what ONNX Runtime makes of its ONNX nodes.

    makers: ONNX value → the node that computes it. constants: stored tensors by name.
    """
    form = form_of(node)
    if form is not None and form.reason:
        return form.reason
    parts = _parts(node, makers)
    if not parts:
        return "its result has no name in the ONNX graph: it runs in float"
    found = {part.op_type: _ask(part, constants) for part in parts}
    missing = [op for op, form in found.items() if form == "float"]
    if missing:
        return f"ONNX Runtime has no integer kernel for {' and '.join(missing)}: it runs in float"
    names = " and ".join(found)
    return f"ONNX Runtime could execute {names} on integers, but this version does not write it so: it runs in float"


def _parts(node: fx.Node, makers: Mapping[str, NodeProto]) -> list[NodeProto]:
    """The ONNX nodes that an operator is written as, up to what other operators made; what shapes tensors left out."""
    sources = {other.name for other in node.graph.nodes if other is not node}
    found: list[NodeProto] = []
    wanted = [node.name]
    while wanted:
        name = wanted.pop()
        maker = makers.get(name)
        if maker is None or name in sources or any(maker is other for other in found):
            continue
        found.append(maker)
        wanted += maker.input
    dynamic = [part for part in found if part.op_type not in _SHAPING]
    return dynamic[::-1]


#: Operators that only say the same bytes in another shape, or compute shapes.
_SHAPING = frozenset({
    "Reshape", "Shape", "Concat", "Constant", "ConstantOfShape", "Unsqueeze", "Squeeze", "Expand", "Gather", "Slice",
    "Cast", "Range", "Identity", "Transpose",
})  # fmt: skip


def _ask(node: NodeProto, constants: Mapping[str, TensorProto]) -> RuntimeForm:
    alone = NodeProto()
    alone.CopyFrom(node)
    stored = []
    alone.name, alone.doc_string = "", ""
    del alone.metadata_props[:]
    for position, name in enumerate(alone.input):
        if name in constants and name:
            tensor = TensorProto()
            tensor.CopyFrom(constants[name])
            tensor.name = alone.input[position] = f"c{position}"
            stored.append(tensor)
        elif name:
            alone.input[position] = f"x{position}"
    for position in range(len(alone.output)):
        alone.output[position] = f"y{position}"
    form = runtime_form(alone.SerializeToString(deterministic=True), tuple(t.SerializeToString() for t in stored))
    if form == "float":  # as it would be if the stored operands were quantized too
        kept = [t for t in stored if t.data_type != TensorProto.FLOAT]
        form = runtime_form(alone.SerializeToString(deterministic=True), tuple(t.SerializeToString() for t in kept))
    return form


@cache
def runtime_form(node: bytes, constants: Sequence[bytes] = ()) -> RuntimeForm:
    """How ONNX Runtime executes one operator between DequantizeLinear and QuantizeLinear.

    node: a serialized NodeProto, inputs x0, x1, … or the names of `constants` (serialized TensorProtos), outputs y0, ….
    "fused": as an integer kernel. "codes": in float there, but it has a kernel for uint8 tensors. "float": neither.
    """
    alone = NodeProto.FromString(node)
    stored = [TensorProto.FromString(constant) for constant in constants]
    held = {tensor.name for tensor in stored}
    inputs = [name for name in alone.input if name and name not in held]
    body, grid = _between_quantizers(alone, inputs)
    for form, nodes, initializers, kind in (
        ("fused", body, [*stored, *grid], TensorProto.FLOAT),
        ("codes", [alone], stored, TensorProto.UINT8),
    ):
        if form == "codes" and alone.op_type not in _ON_CODES:
            continue
        outputs = [n for last in nodes for n in last.output if n.startswith("r")] or list(alone.output)
        graph = helper.make_graph(
            nodes, "one",
            [helper.make_tensor_value_info(name, kind, None) for name in inputs],
            [helper.make_tensor_value_info(name, kind, None) for name in outputs], initializers,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        try:
            optimized = _optimized(model)
        except Exception:  # noqa: BLE001  ONNX Runtime's exceptions share no base class: it does not execute that
            continue
        if form == "codes":
            return "codes"
        codes = {out for n in optimized.node if n.op_type == "QuantizeLinear" for out in n.output}
        if any(codes & set(n.input) and n.op_type != "DequantizeLinear" for n in optimized.node):
            return "fused"
    return "float"


def _between_quantizers(alone: NodeProto, inputs: Sequence[str]) -> tuple[list[NodeProto], list[TensorProto]]:
    """The nodes that quantize and dequantize an operator's inputs and results, and the one grid of all."""
    grid = [helper.make_tensor("scale", TensorProto.FLOAT, [], [0.02]), helper.make_tensor("zero", 2, [], [3])]
    between = NodeProto()
    between.CopyFrom(alone)
    body = []
    for position, name in enumerate(between.input):
        if name in inputs:
            body.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"q_{name}"]))
            body.append(helper.make_node("DequantizeLinear", [f"q_{name}", "scale", "zero"], [f"d_{name}"]))
            between.input[position] = f"d_{name}"
    body.append(between)
    for name in between.output:
        body.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"p_{name}"]))
        body.append(helper.make_node("DequantizeLinear", [f"p_{name}", "scale", "zero"], [f"r_{name}"]))
    return body, grid


def _optimized(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph that the runtime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath).graph
