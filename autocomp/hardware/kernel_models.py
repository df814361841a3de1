"""ONNX models of single kernels, as ONNX Runtime executes them inside an optimized network.

A kernel's latency is the difference between two models of different `repeats`, divided by the difference in repeats:
the call of the session, the copy of the input and the layout conversion at the entry are in both and cancel out.

How copies are kept apart. Kernels with weights read the same input, each copy with its own weights, so that nothing
can be merged (ONNX Runtime eliminates common subexpressions). Kernels without weights whose output has the shape of
their input form a chain. The rest read the same input and differ in a quantization scale or in an attribute that
does not change the work. Results that nobody reads are dropped by nobody: ONNX Runtime executes every node of a
graph, and hands the memory to the next copy, as it does inside a network. Only the first copy's result is a graph
output, except where the graph output itself is what prevents a merge.

What the runtime executes, after its level-3 optimizations:

* int8: the graph that ONNX Runtime's NHWC transformer leaves: channels-last uint8 activations (zero point 0 after a
  fused ReLU), int8 weights with one scale a channel, int32 bias. So no Transpose pollutes the number. Operators:
  QLinearConv, QGemm (linear at one position), QLinearMatMul + QLinearAdd (linear over tokens), QLinearAdd,
  QLinearMul, QLinearConcat, NhwcMaxPool, QLinearAveragePool, QLinearGlobalAveragePool, QLinearSigmoid.
* fp32 on 2-D images: channels are blocked (NCHWc) where the core has such kernels, with one ReorderInput at the
  entry for all copies. If asked for a `blocked` runtime, pooling gets a 1×1 depthwise convolution ahead of it (once,
  for all copies) for the same reason: blocked pooling is what follows a convolution in a network.
* 1-D signals (height 1, width above 1) are rank-3 tensors, which ONNX Runtime does not block.
* quantize, dequantize: QuantizeLinear, DequantizeLinear, with the Transpose between NCHW and NHWC that a
  conversion inside a network brings with it. Where float images are blocked, one that enters a float part of a
  network is reordered into blocks and, where it leaves, out of them: both are counted with its dequantization, which
  every float part inside a quantized network begins with.

Feed every input of the session (there is one, "x") and fetch the first output.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from autocomp.kernel import Kernel

INPUT = "x"
_MICROSOFT, _BLOCKED = "com.microsoft", "com.microsoft.nchwc"
#: Channels of a block with AVX-512; with AVX2 there are 8.
_BLOCK = 16
_INPUT_SCALE, _INPUT_ZERO = 0.02, 128
_OUTPUT_SCALE = 0.05

#: ONNX Runtime operators that count as the kernel itself, by (op, precision), after optimization.
EXECUTED_AS: dict[tuple[str, str], tuple[str, ...]] = {
    ("conv", "fp32"): ("Conv", "FusedConv"),
    ("depthwise", "fp32"): ("Conv", "FusedConv"),
    ("linear", "fp32"): ("Gemm", "FusedGemm", "MatMul", "FusedMatMul"),
    ("add", "fp32"): ("Add",),
    ("mul", "fp32"): ("Mul",),
    ("concat", "fp32"): ("Concat",),
    ("max_pool", "fp32"): ("MaxPool",),
    ("avg_pool", "fp32"): ("AveragePool",),
    ("global_avg_pool", "fp32"): ("GlobalAveragePool",),
    ("activation", "fp32"): ("Sigmoid",),
    ("conv", "int8"): ("QLinearConv",),
    ("depthwise", "int8"): ("QLinearConv",),
    ("linear", "int8"): ("QGemm", "QLinearMatMul"),
    ("add", "int8"): ("QLinearAdd",),
    ("mul", "int8"): ("QLinearMul",),
    ("concat", "int8"): ("QLinearConcat",),
    ("max_pool", "int8"): ("NhwcMaxPool",),
    ("avg_pool", "int8"): ("QLinearAveragePool",),
    ("global_avg_pool", "int8"): ("QLinearGlobalAveragePool",),
    ("activation", "int8"): ("QLinearSigmoid",),
    ("quantize", "int8"): ("QuantizeLinear",),
    ("dequantize", "int8"): ("DequantizeLinear",),
    ("quantize", "fp32"): ("QuantizeLinear",),
    ("dequantize", "fp32"): ("DequantizeLinear",),
}


@dataclass
class _Graph:
    """Nodes and constants of the model being built. `rng` draws the weights."""

    rng: np.random.Generator
    blocked: bool = False
    unsigned_weights: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Adds a constant once; a later call of the same name returns it."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def scale(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, np.float32))

    def zero(self, name: str, value: int) -> str:
        return self.constant(name, np.array(value, np.uint8))

    def float_weights(self, name: str, shape: Sequence[int]) -> str:
        fan_in = max(1, int(np.prod(shape[1:])))
        return self.constant(name, (self.rng.standard_normal(tuple(shape)) / np.sqrt(fan_in)).astype(np.float32))

    def integer_weights(self, name: str, shape: Sequence[int], channels: int) -> tuple[str, str]:
        """Weights, and their zero point for each of `channels`: int8 around 0, or uint8 around 128."""
        levels = self.rng.integers(-127, 128, tuple(shape))
        kind, zero = (np.uint8, 128) if self.unsigned_weights else (np.int8, 0)
        zeros = self.constant(f"{name}_zero", np.full(channels, zero, kind))
        return self.constant(name, (levels + zero).astype(kind)), zeros

    def node(self, op: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, domain=domain, **attributes))
        return output


def is_blocked(kernel: Kernel) -> bool:
    """Whether a float tensor of the kernel's channels lies in blocks of channels, on a runtime that has such.

    The rules of ONNX Runtime's NCHWc transformer: convolutions read multiples of 4 channels, pooling whole blocks.
    """
    if is_signal(kernel) or kernel.height * kernel.width == 1 or kernel.in_channels < _BLOCK:
        return False
    return kernel.in_channels % (_BLOCK if kernel.op.endswith("pool") else 4) == 0


def is_signal(kernel: Kernel) -> bool:
    """Whether the kernel works on a 1-D signal, a tensor of rank 3."""
    return kernel.height == 1 and kernel.width > 1 and kernel.kernel_h == 1


def input_shape(kernel: Kernel) -> tuple[int, ...]:
    """Shape of the model's input "x", batch axis included: channels first for fp32, channels last for int8."""
    channels = kernel.in_channels
    if kernel.op == "concat":
        channels -= channels // 2  # the model's other input is a constant of channels // 2
    if kernel.op == "linear":
        positions = kernel.height * kernel.width
        return (1, channels) if positions == 1 else (1, positions, channels)
    spatial = (kernel.width,) if is_signal(kernel) else (kernel.height, kernel.width)
    if _channels_last(kernel):
        return (1, *spatial, channels)
    return (1, channels, *spatial)


def input_type(kernel: Kernel) -> int:
    """ONNX element type of the model's input: uint8 for int8 kernels and dequantize, else float."""
    if kernel.op in ("quantize", "dequantize"):
        return int(TensorProto.FLOAT if kernel.op == "quantize" else TensorProto.UINT8)
    return int(TensorProto.FLOAT if kernel.precision == "fp32" else TensorProto.UINT8)


def _channels_last(kernel: Kernel) -> bool:
    return kernel.op == "dequantize" or (kernel.precision == "int8" and kernel.op != "quantize")


def _padding(size: int, out: int, window: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis so that it has `out` outputs, as kernel // 2 on both sides would give."""
    total = max((out - 1) * stride + window - size, 0)
    before = min(window // 2, total)
    return before, total - before


def _window(kernel: Kernel) -> dict[str, Any]:
    """kernel_shape, strides and pads of a convolution or a pooling."""
    top, bottom = _padding(kernel.height, kernel.out_height, kernel.kernel_h, kernel.stride)
    left, right = _padding(kernel.width, kernel.out_width, kernel.kernel_w, kernel.stride)
    if is_signal(kernel):
        return {"kernel_shape": [kernel.kernel_w], "strides": [kernel.stride], "pads": [left, right]}
    return {
        "kernel_shape": [kernel.kernel_h, kernel.kernel_w],
        "strides": [kernel.stride, kernel.stride],
        "pads": [top, left, bottom, right],
    }


def _weight_shape(kernel: Kernel) -> tuple[int, ...]:
    window = (kernel.kernel_w,) if is_signal(kernel) else (kernel.kernel_h, kernel.kernel_w)
    return (kernel.out_channels, kernel.in_channels // kernel.groups, *window)


def _distinct_window(kernel: Kernel, index: int) -> dict[str, Any]:
    """Attributes of a pooling that differ from copy to copy and leave output and work as they are.

    There are few of them. ValueError if there are none left: ask for fewer repeats.
    """
    plain = _window(kernel)
    variants: list[dict[str, Any]] = []
    axes = len(plain["kernel_shape"])
    sizes = ((kernel.width,) if is_signal(kernel) else (kernel.height, kernel.width))[:axes]
    outs = ((kernel.out_width,) if is_signal(kernel) else (kernel.out_height, kernel.out_width))[:axes]
    for end in range(max(plain["kernel_shape"])):
        pads = list(plain["pads"])
        pads[axes] += end
        fits = all(
            (size + pads[a] + pads[axes + a] - plain["kernel_shape"][a]) // kernel.stride + 1 == out
            and pads[axes + a] < plain["kernel_shape"][a]
            for a, (size, out) in enumerate(zip(sizes, outs, strict=True))
        )
        if not fits:
            break
        ceil_alike = all(
            -(-(size + pads[a] + pads[axes + a] - plain["kernel_shape"][a]) // kernel.stride) + 1 == out
            for a, (size, out) in enumerate(zip(sizes, outs, strict=True))
        )
        for ceil in (0, 1) if ceil_alike else (0,):
            flags = (0, 1)  # storage_order of max, count_include_pad of average: both leave the work alone
            flag = "storage_order" if kernel.op == "max_pool" else "count_include_pad"
            variants += [{**plain, "pads": pads, "ceil_mode": ceil, flag: value} for value in flags]
    if index >= len(variants):
        raise ValueError(f"{kernel}: only {len(variants)} distinct copies can be built, asked for {index + 1}")
    return variants[index]


def max_repeats(kernel: Kernel) -> int | None:
    """Largest `repeats` that `kernel_model` can build; None if there is no limit."""
    if kernel.precision == "fp32" and kernel.op in ("max_pool", "avg_pool") and kernel.stride > 1:
        count = 0
        while True:
            try:
                _distinct_window(kernel, count)
            except ValueError:
                return count
            count += 1
    return None


def _float_conv(graph: _Graph, kernel: Kernel, index: int, source: str) -> str:
    weight = graph.float_weights(f"w{index}", _weight_shape(kernel))
    bias = graph.float_weights(f"b{index}", (kernel.out_channels,))
    summed = graph.node("Conv", [source, weight, bias], f"conv{index}", group=kernel.groups, **_window(kernel))
    return graph.node("Relu", [summed], f"y{index}")


def _int8_conv(graph: _Graph, kernel: Kernel, index: int, source: str) -> str:
    out = kernel.out_channels
    weights, zeros = graph.integer_weights(f"w{index}", _weight_shape(kernel), out)
    return graph.node(
        "QLinearConv",
        [
            source,
            graph.scale("x_scale", _INPUT_SCALE),
            graph.zero("x_zero", _INPUT_ZERO),
            weights,
            graph.constant(f"w{index}_scale", graph.rng.uniform(5e-4, 2e-3, out).astype(np.float32)),
            zeros,
            graph.scale("y_scale", _OUTPUT_SCALE),
            graph.zero("y_zero", 0),
            graph.constant(f"b{index}", graph.rng.integers(-500, 500, out).astype(np.int32)),
        ],
        f"y{index}",
        _MICROSOFT,
        channels_last=1,
        group=kernel.groups,
        **_window(kernel),
    )


def _float_linear(graph: _Graph, kernel: Kernel, index: int, source: str) -> str:
    bias = graph.float_weights(f"b{index}", (kernel.out_channels,))
    if kernel.height * kernel.width == 1:
        weight = graph.float_weights(f"w{index}", (kernel.out_channels, kernel.in_channels))
        return graph.node("Gemm", [source, weight, bias], f"y{index}", transB=1)
    weight = graph.float_weights(f"w{index}", (kernel.in_channels, kernel.out_channels))
    return graph.node("Add", [graph.node("MatMul", [source, weight], f"product{index}"), bias], f"y{index}")


def _int8_linear(graph: _Graph, kernel: Kernel, index: int, source: str) -> str:
    out = kernel.out_channels
    quantized_x = [source, graph.scale("x_scale", _INPUT_SCALE), graph.zero("x_zero", _INPUT_ZERO)]
    scale = graph.constant(f"w{index}_scale", graph.rng.uniform(5e-4, 2e-3, out).astype(np.float32))
    quantized_y = [graph.scale("y_scale", _OUTPUT_SCALE), graph.zero("y_zero", 128)]
    weight, zero = graph.integer_weights(f"w{index}", (kernel.in_channels, out), out)
    if kernel.height * kernel.width == 1:
        bias = graph.constant(f"b{index}", graph.rng.integers(-500, 500, out).astype(np.int32))
        inputs = [*quantized_x, weight, scale, zero, bias, *quantized_y]
        return graph.node("QGemm", inputs, f"y{index}", _MICROSOFT)
    product = graph.node("QLinearMatMul", [*quantized_x, weight, scale, zero, *quantized_y], f"product{index}")
    bias = graph.constant(f"b{index}", graph.rng.integers(0, 256, out).astype(np.uint8))
    bias_scale = [bias, graph.scale("b_scale", 0.01), graph.zero("b_zero", 128)]
    return graph.node("QLinearAdd", [product, *quantized_y, *bias_scale, *quantized_y], f"y{index}", _MICROSOFT)


def _float_chain(op: str) -> Callable[[_Graph, Kernel, int, str], str]:
    """add, mul: the previous result and x. activation: the previous result."""

    def build(graph: _Graph, kernel: Kernel, index: int, source: str) -> str:
        previous = source if index == 0 else f"y{index - 1}"
        return graph.node(op, [previous] if op == "Sigmoid" else [previous, source], f"y{index}")

    return build


def _int8_binary(op: str) -> Callable[[_Graph, Kernel, int, str], str]:
    def build(graph: _Graph, kernel: Kernel, index: int, source: str) -> str:
        x = [graph.scale("x_scale", _INPUT_SCALE), graph.zero("x_zero", _INPUT_ZERO)]
        previous = [source, *x] if index == 0 else [f"y{index - 1}", *_chained(graph)]
        return graph.node(op, [*previous, source, *x, *_chained(graph)], f"y{index}", _MICROSOFT)

    return build


def _chained(graph: _Graph) -> list[str]:
    return [graph.scale("y_scale", _OUTPUT_SCALE), graph.zero("y_zero", 128)]


def _float_concat(graph: _Graph, kernel: Kernel, index: int, source: str) -> str:
    shape = input_shape(kernel)
    other = graph.float_weights(f"c{index}", (1, max(1, kernel.in_channels // 2), *shape[2:]))
    return graph.node("Concat", [source, other], f"y{index}", axis=1)


def _int8_concat(graph: _Graph, kernel: Kernel, index: int, source: str) -> str:
    shape = (*input_shape(kernel)[:-1], max(1, kernel.in_channels // 2))
    other = graph.constant(f"c{index}", graph.rng.integers(0, 256, shape).astype(np.uint8))
    x = [graph.scale("x_scale", _INPUT_SCALE), graph.zero("x_zero", _INPUT_ZERO)]
    return graph.node("QLinearConcat", [*_chained(graph), source, *x, other, *x], f"y{index}", _MICROSOFT, axis=-1)


def _float_pool(op: str) -> Callable[[_Graph, Kernel, int, str], str]:
    def build(graph: _Graph, kernel: Kernel, index: int, source: str) -> str:
        if graph.blocked and is_blocked(kernel):  # the layout that a convolution leaves its output in
            if index == 0:
                weight = graph.float_weights("entry", (kernel.in_channels, 1, 1, 1))
                graph.node("Conv", [source, weight], "blocked", group=kernel.in_channels, kernel_shape=[1, 1])
            source = "blocked"
        if kernel.op == "global_avg_pool":
            return graph.node(op, [source], f"y{index}")
        if _keeps_copies_as_outputs(kernel, graph.blocked):
            return graph.node(op, [source], f"y{index}", **_window(kernel))
        if kernel.stride == 1:
            return graph.node(op, [f"y{index - 1}" if index else source], f"y{index}", **_window(kernel))
        return graph.node(op, [source], f"y{index}", **_distinct_window(kernel, index))

    return build


def _int8_max_pool(graph: _Graph, kernel: Kernel, index: int, source: str) -> str:
    return graph.node("NhwcMaxPool", [source], f"y{index}", _MICROSOFT, **_window(kernel))


def _int8_average(op: str) -> Callable[[_Graph, Kernel, int, str], str]:
    def build(graph: _Graph, kernel: Kernel, index: int, source: str) -> str:
        x = [graph.scale("x_scale", _INPUT_SCALE), graph.zero("x_zero", _INPUT_ZERO)]
        scale = graph.scale(f"y{index}_scale", _OUTPUT_SCALE * (1 + index / 1000))  # distinct, so never merged
        window = {} if kernel.op == "global_avg_pool" else _window(kernel)
        inputs = [source, *x, scale, graph.zero("y_zero", 128)]
        return graph.node(op, inputs, f"y{index}", _MICROSOFT, channels_last=1, **window)

    return build


def _int8_activation(graph: _Graph, kernel: Kernel, index: int, source: str) -> str:
    previous = source if index == 0 else f"y{index - 1}"
    quantization = [graph.scale("x_scale", _INPUT_SCALE), graph.zero("x_zero", _INPUT_ZERO), *_chained(graph)]
    return graph.node("QLinearSigmoid", [previous, *quantization], f"y{index}", _MICROSOFT)


def _needs_transpose(kernel: Kernel) -> bool:
    """NCHW and NHWC differ only when there are several channels and several positions."""
    return kernel.in_channels > 1 and kernel.height * kernel.width > 1


def _quantize(graph: _Graph, kernel: Kernel, index: int, source: str) -> str:
    scale = graph.scale(f"y{index}_scale", _OUTPUT_SCALE * (1 + index / 1000))
    if not _needs_transpose(kernel):
        return graph.node("QuantizeLinear", [source, scale, graph.zero("x_zero", _INPUT_ZERO)], f"y{index}")
    stored = graph.node("QuantizeLinear", [source, scale, graph.zero("x_zero", _INPUT_ZERO)], f"stored{index}")
    axes = [0, 2, 1] if is_signal(kernel) else [0, 2, 3, 1]
    return graph.node("Transpose", [stored], f"y{index}", perm=axes)


def _dequantize(graph: _Graph, kernel: Kernel, index: int, source: str) -> str:
    scale = graph.scale(f"y{index}_scale", _OUTPUT_SCALE * (1 + index / 1000))
    value = graph.node("DequantizeLinear", [source, scale, graph.zero("x_zero", _INPUT_ZERO)], f"stored{index}")
    if not _needs_transpose(kernel):
        return value
    axes = [0, 2, 1] if is_signal(kernel) else [0, 3, 1, 2]
    if not (graph.blocked and is_blocked(kernel)):
        return graph.node("Transpose", [value], f"y{index}", perm=axes)
    plain = graph.node("Transpose", [value], f"plain{index}", perm=axes)
    blocks = graph.node("ReorderInput", [plain], f"blocks{index}", _BLOCKED, channels_last=0)
    return graph.node("ReorderOutput", [blocks], f"y{index}", _BLOCKED, channels=kernel.in_channels, channels_last=0)


_BUILDERS: dict[tuple[str, str], Callable[[_Graph, Kernel, int, str], str]] = {
    ("conv", "fp32"): _float_conv,
    ("depthwise", "fp32"): _float_conv,
    ("linear", "fp32"): _float_linear,
    ("add", "fp32"): _float_chain("Add"),
    ("mul", "fp32"): _float_chain("Mul"),
    ("concat", "fp32"): _float_concat,
    ("max_pool", "fp32"): _float_pool("MaxPool"),
    ("avg_pool", "fp32"): _float_pool("AveragePool"),
    ("global_avg_pool", "fp32"): _float_pool("GlobalAveragePool"),
    ("activation", "fp32"): _float_chain("Sigmoid"),
    ("conv", "int8"): _int8_conv,
    ("depthwise", "int8"): _int8_conv,
    ("linear", "int8"): _int8_linear,
    ("add", "int8"): _int8_binary("QLinearAdd"),
    ("mul", "int8"): _int8_binary("QLinearMul"),
    ("concat", "int8"): _int8_concat,
    ("max_pool", "int8"): _int8_max_pool,
    ("avg_pool", "int8"): _int8_average("QLinearAveragePool"),
    ("global_avg_pool", "int8"): _int8_average("QLinearGlobalAveragePool"),
    ("activation", "int8"): _int8_activation,
    ("quantize", "fp32"): _quantize,
    ("quantize", "int8"): _quantize,
    ("dequantize", "fp32"): _dequantize,
    ("dequantize", "int8"): _dequantize,
}


def _keeps_copies_as_outputs(kernel: Kernel, blocked: bool) -> bool:
    """Identical nodes are merged unless each is a graph output.

    A blocked output would be reordered as such. A plain max pooling could not be told from its copies in any other
    way: the runtime leaves its fast code for a scalar loop if storage_order is 1.
    """
    if kernel.op == "global_avg_pool":
        return kernel.precision == "fp32"
    return kernel.op == "max_pool" and not (kernel.precision == "fp32" and blocked and is_blocked(kernel))


def kernel_model(
    kernel: Kernel, repeats: int = 1, seed: int = 0, *, blocked: bool = False, unsigned_weights: bool = False
) -> bytes:
    """A serialized ONNX model that makes ONNX Runtime execute `kernel` exactly `repeats` times.

    blocked: for a runtime that keeps float images in blocks of channels (NCHWc, as on x86): conversions then carry
    the reordering with them. unsigned_weights: integer weights are uint8 around 128, as for processors that saturate.

    Weights are drawn from `seed`. Its input is "x", of `input_shape(kernel)`. ValueError if `repeats` is below 1 or
    above `max_repeats(kernel)`. See the module's docstring for what the runtime executes.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    graph = _Graph(np.random.default_rng(seed), blocked, unsigned_weights)
    build = _BUILDERS[kernel.op, kernel.precision]
    results = [build(graph, kernel, index, INPUT) for index in range(repeats)]
    outputs = results if _keeps_copies_as_outputs(kernel, blocked) else results[:1]
    proto = helper.make_graph(
        graph.nodes,
        "kernel",
        [helper.make_tensor_value_info(INPUT, input_type(kernel), input_shape(kernel))],
        [helper.make_tensor_value_info(name, _output_type(kernel), None) for name in outputs],
        list(graph.constants.values()),
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_MICROSOFT, 1)]
    if any(node.domain == _BLOCKED for node in graph.nodes):  # a runtime without that layout does not know the domain
        opsets.append(helper.make_opsetid(_BLOCKED, 1))
    return bytes(helper.make_model(proto, opset_imports=opsets, ir_version=9).SerializeToString())


def _output_type(kernel: Kernel) -> int:
    if kernel.op in ("quantize", "dequantize"):
        return int(TensorProto.UINT8 if kernel.op == "quantize" else TensorProto.FLOAT)
    return int(TensorProto.FLOAT if kernel.precision == "fp32" else TensorProto.UINT8)
