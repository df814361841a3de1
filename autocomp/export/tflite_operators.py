"""How each operator of a traced network is spelt in int8 TFLite: one function an operator, and the table of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx

from autocomp.compress.graph import argument, aten, pair
from autocomp.compress.network import CompressedNetwork, LayerWeights
from autocomp.compress.tracing.operators import is_flatten, op_name
from autocomp.errors import UserError
from autocomp.network import KernelNode
from autocomp.tflite.builder import Activation, Affine, ModelBuilder, Padding, Tensor
from autocomp.tflite.padding import Border, Window, read_border, same_border

#: Clamping to (lowest, highest) → the activation that TFLite has for it.
_CLAMPS: dict[tuple[float, float], Activation] = {
    (0.0, math.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1",
}  # fmt: skip
Bounds = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of torch as the file holds it.

    tensor: channels last: (1, h, w, c) for (n, c, h, w), (1, 1, l, c) for (n, c, l), (1, c) for (n, c).
    border: zeros around it that its reader still has to add.
    order: (1, c) alone: the torch feature at each place of the file; None if they are the same.
    """

    tensor: Tensor
    border: Border = field(default_factory=Border)
    order: NDArray[np.intp] | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel to write. result: the grid of its result. clamp: bounds of an activation that is fused into it."""

    kernel: KernelNode
    node: fx.Node
    result: Affine
    clamp: Bounds | None = None

    @property
    def name(self) -> str:
        return self.kernel.name


@dataclass(frozen=True)
class Graph:
    """The file under construction, and what it holds of the torch graph so far."""

    builder: ModelBuilder
    network: CompressedNetwork
    values: dict[fx.Node, Stored] = field(default_factory=dict)

    def read(self, node: fx.Node) -> Stored:
        """The value of a node. One that is no kernel of its own was merged into its reader: padding, reshaping."""
        if node not in self.values:
            lower = _MERGED.get(node.target)
            if lower is None:
                raise inexpressible(node.name, f"the operator {op_name(node)}")
            self.values[node] = lower(self, node, node.name)
        return self.values[node]

    def plain(self, name: str, value: Stored) -> Tensor:
        """The tensor with the zeros around it that it stands for."""
        if not value.border:
            return value.tensor
        return self.builder.pad(f"{name}_pad", value.tensor, value.border.rows, value.border.columns)

    def operand(self, call: Call, position: int = 0) -> Tensor:
        """The tensor that a kernel reads, in torch's order."""
        value = self.read(call.node.args[position])
        if value.order is not None:
            raise inexpressible(call.name, "an image that is flattened and then read by no linear layer")
        return self.plain(call.name, value)

    def on_grid(self, name: str, tensor: Tensor, affine: Affine) -> Tensor:
        """The tensor on another grid; itself if it is on it already."""
        return tensor if tensor.affine == affine else self.builder.quantize(f"{name}_requantized", tensor, affine)

    def windowed(
        self, call: Call, value: Stored, window: Window, border: Border, *, round_up: bool = False
    ) -> tuple[Tensor, Padding, Border]:
        """(what a window reads, TFLite's padding for it, the border it then stands in).

        SAME where it puts zeros at the same places as torch; else they are added by an operator of their own.
        """
        border = read_border(value.tensor.shape[1:3], value.border + border, window, round_up=round_up)
        if not border:
            return value.tensor, "VALID", border
        if border == same_border(value.tensor.shape[1:3], window):
            return value.tensor, "SAME", border
        return self.plain(call.name, replace(value, border=border)), "VALID", border


Lower = Callable[[Graph, Call], Stored]


def inexpressible(name: str, what: str) -> UserError:
    """The error for what int8 TFLite has no operator for."""
    return UserError(
        f"{name}: int8 TFLite cannot express {what}: replace it in the network, or choose a device that runs ONNX"
    )


def bounds_of(node: fx.Node) -> Bounds:
    """(lowest, highest) result of a clamping activation."""
    if node.target is aten.relu.default:
        return 0.0, math.inf
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    low, high = (-1.0, 1.0) if node.target is aten.hardtanh.default else (None, None)
    low, high = argument(node, 1, "min", low), argument(node, 2, "max", high)  # type: ignore[assignment]
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def _fused(call: Call, bounds: Bounds | None) -> Activation:
    """The activation that an operator needs for its result to stay within bounds; none where its grid does that.

    A grid of values behind a ReLU begins at 0, so what lies below saturates there by itself.
    """
    grid = call.result
    lowest, highest = ((q - grid.zero_point) * grid.scale for q in (-128, 127))
    if bounds is None or (bounds[0] <= lowest and highest <= bounds[1]):
        return "NONE"
    if bounds not in _CLAMPS:
        raise inexpressible(call.name, f"a clamp to {bounds[0]:g} … {bounds[1]:g}")
    return _CLAMPS[bounds]


def _levels(weights: LayerWeights) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(levels as torch orders them, scales (out,)) of a layer."""
    assert weights.levels is not None
    return weights.levels, weights.scales


def _bias(weights: LayerWeights) -> NDArray[np.int32]:
    """A layer's bias in units of input scale × weight scale, as the torch network was rounded; (out,)."""
    if weights.bias is None:
        return np.zeros(len(weights.weight), np.int32)
    assert weights.bias_levels is not None
    return weights.bias_levels


def _convolution(graph: Graph, call: Call) -> Stored:
    """conv1d, conv2d; a signal is an image of height 1."""
    node, layer = call.node, call.kernel.layer
    assert layer is not None
    weights = graph.network.layers[layer]
    levels, scales = _levels(weights)
    if levels.ndim == 3:
        levels = levels[:, :, None]  # (out, in, 1, k)
    signal = weights.weight.ndim == 3
    stride, dilation = pair(argument(node, 3, "stride", 1)), pair(argument(node, 5, "dilation", 1))
    if signal:
        stride, dilation = (1, stride[1]), (1, dilation[1])
    window = Window(levels.shape[2:], stride, dilation)
    border = _symmetric(argument(node, 4, "padding", 0), signal)
    x, padding, _ = graph.windowed(call, graph.read(node.args[0]), window, border)
    bias = _bias(weights)
    depthwise = graph.network.traced.spec.layer_by_name[layer].depthwise
    write = graph.builder.depthwise if depthwise else graph.builder.conv
    order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)  # from (out, in / groups, kh, kw)
    tensor = write(
        call.name, x, np.ascontiguousarray(levels.transpose(order)), scales, bias, call.result,
        stride=stride, dilation=dilation, padding=padding, activation=_fused(call, call.clamp),
    )  # fmt: skip
    return Stored(tensor)


def _symmetric(padding: object, signal: bool) -> Border:
    """torch's padding argument: one number a side, or one an axis."""
    rows, columns = pair(padding)
    return Border((0, 0) if signal else (rows, rows), (columns, columns))


def _linear(graph: Graph, call: Call) -> Stored:
    value = graph.read(call.node.args[0])
    if len(value.tensor.shape) != 2:
        raise inexpressible(call.name, "a linear layer on more than one position (a 1×1 convolution would do)")
    assert call.kernel.layer is not None
    weights = graph.network.layers[call.kernel.layer]
    levels, scales = _levels(weights)
    if value.order is not None:
        levels = levels[:, value.order]
    tensor = graph.builder.fully_connected(
        call.name, value.tensor, np.ascontiguousarray(levels), scales, _bias(weights),
        call.result, activation=_fused(call, call.clamp),
    )  # fmt: skip
    return Stored(tensor)


def _add(graph: Graph, call: Call) -> Stored:
    return _binary(graph, call, graph.builder.add)


def _mul(graph: Graph, call: Call) -> Stored:
    return _binary(graph, call, graph.builder.mul)


def _binary(graph: Graph, call: Call, write: Callable[..., Tensor]) -> Stored:
    operands = call.node.args[:2]
    if not all(isinstance(operand, fx.Node) and operand.op != "get_attr" for operand in operands):
        raise inexpressible(call.name, f"{call.kernel.op} with a stored value")
    if call.node.kwargs.get("alpha", 1) != 1:
        raise inexpressible(call.name, "an addition with a factor")
    values = [graph.read(operand) for operand in operands]
    a, b = (graph.plain(f"{call.name}_{i}", value) for i, value in enumerate(values))
    order = values[0].order
    if len(a.shape) != len(b.shape) or not np.array_equal(_features(values[0]), _features(values[1])):
        raise inexpressible(call.name, "an operation on tensors of different layouts")
    return Stored(write(call.name, a, b, call.result, activation=_fused(call, call.clamp)), order=order)


def _features(value: Stored) -> NDArray[np.intp]:
    """The torch feature at each place of the last axis."""
    return np.arange(value.tensor.shape[-1]) if value.order is None else value.order


def _concat(graph: Graph, call: Call) -> Stored:
    """Side by side along the channels, on one grid, as TFLite demands."""
    sources: Sequence[fx.Node] = call.node.args[0]  # type: ignore[assignment]
    rank = len(call.node.meta["val"].shape)
    if int(argument(call.node, 1, "dim", 0)) % rank != 1:  # type: ignore[call-overload]
        raise inexpressible(call.name, "a concatenation along another axis than the channels")
    tensors, order, before = [], [], 0
    for i, source in enumerate(sources):
        value, name = graph.read(source), f"{call.name}_{i}"
        order.append(_features(value) + before)
        before += value.tensor.shape[-1]
        tensors.append(graph.on_grid(name, graph.plain(name, value), call.result))
    joined = np.concatenate(order)
    in_order = np.array_equal(joined, np.arange(before))
    return Stored(graph.builder.concat(call.name, tensors), order=None if in_order else joined)


def _max_pool(graph: Graph, call: Call) -> Stored:
    if any(size != 1 for size in pair(argument(call.node, 4, "dilation", 1))):
        raise inexpressible(call.name, "a pooling with gaps in its window")
    value, window, border = _pooling(graph, call)
    round_up = bool(argument(call.node, 5, "ceil_mode", False))
    x, padding, zeros = graph.windowed(call, value, window, border, round_up=round_up)
    assert x.affine is not None
    if zeros and (padding == "VALID" or value.border) and x.affine.zero_point != -128:
        # Zeros that count are as good as a padding that does not only where nothing lies below them.
        raise inexpressible(call.name, "a maximum over values below zero whose padding is not that of SAME")
    return Stored(graph.builder.max_pool(call.name, x, window.kernel, window.stride, padding))


def _avg_pool(graph: Graph, call: Call) -> Stored:
    """TFLite leaves out the zeros that SAME adds; torch counts them unless it is told not to."""
    node = call.node
    if argument(node, 6, "divisor_override", None) is not None:
        raise inexpressible(call.name, "an average with a divisor of its own")
    value, window, border = _pooling(graph, call)
    round_up = bool(argument(node, 4, "ceil_mode", False))
    wanted = read_border(value.tensor.shape[1:3], value.border + border, window, round_up=round_up)
    if not _within(wanted, value.border + border):
        raise inexpressible(call.name, "an average over windows that end behind the padding (ceil_mode)")
    x, padding, zeros = graph.windowed(call, value, window, border)
    counted = bool(value.border) or argument(node, 5, "count_include_pad", True)
    if zeros and counted:
        x, padding = graph.plain(call.name, replace(value, border=zeros)), "VALID"
    elif padding != "SAME" and zeros:
        raise inexpressible(call.name, "an average that leaves out a padding which is not that of SAME")
    average = graph.builder.avg_pool(call.name, x, window.kernel, window.stride, padding)
    return Stored(graph.on_grid(call.name, average, call.result))


def _pooling(graph: Graph, call: Call) -> tuple[Stored, Window, Border]:
    """(what is pooled, its window, the border that torch puts around it)."""
    node = call.node
    signal = len(node.meta["val"].shape) == 3
    kernel = pair(node.args[1])
    given = argument(node, 2, "stride", None)
    stride = pair(given) if given not in (None, []) else kernel
    if signal:
        kernel, stride = (1, kernel[1]), (1, stride[1])
    return (
        graph.read(node.args[0]),
        Window(kernel, stride),
        _symmetric(argument(node, 3, "padding", 0), signal),
    )


def _within(border: Border, allowed: Border) -> bool:
    return border.rows[1] <= allowed.rows[1] and border.columns[1] <= allowed.columns[1]


def _mean(graph: Graph, call: Call) -> Stored:
    rank = len(call.node.args[0].meta["val"].shape)
    axes = sorted(int(axis) % rank for axis in call.node.args[1])
    if rank < 3 or axes != list(range(2, rank)):
        raise inexpressible(call.name, "a mean over other axes than the image's")
    keep = bool(argument(call.node, 2, "keepdim", False))
    return Stored(graph.builder.mean(call.name, graph.operand(call), call.result, keep_dims=keep))


def _clamp(graph: Graph, call: Call) -> Stored:
    """An activation that no layer before it applies: by the grid of its result, or by an operator."""
    x = graph.operand(call)
    activation = _fused(call, bounds_of(call.node))
    if activation == "NONE":
        return Stored(graph.on_grid(call.name, x, call.result))
    if activation == "RELU_N1_TO_1":
        raise inexpressible(call.name, "a clamp to −1 … 1 that follows no layer")
    return Stored(graph.builder.elementwise(call.name, activation, x, call.result))


def _sigmoid(graph: Graph, call: Call) -> Stored:
    return Stored(graph.builder.elementwise(call.name, "LOGISTIC", graph.operand(call), call.result))


def _tanh(graph: Graph, call: Call) -> Stored:
    return Stored(graph.builder.elementwise(call.name, "TANH", graph.operand(call), call.result))


def _hardswish(graph: Graph, call: Call) -> Stored:
    return Stored(graph.builder.elementwise(call.name, "HARD_SWISH", graph.operand(call), call.result))


def _silu(graph: Graph, call: Call) -> Stored:
    """x · sigmoid(x), whose second factor is rounded to 1 / 256 in between."""
    x = graph.operand(call)
    gate = graph.builder.elementwise(f"{call.name}_gate", "LOGISTIC", x, Affine(1 / 256, -128))
    return Stored(graph.builder.mul(call.name, x, gate, call.result))


def _leaky_relu(graph: Graph, call: Call) -> Stored:
    slope = float(argument(call.node, 1, "negative_slope", 0.01))
    return Stored(graph.builder.leaky_relu(call.name, graph.operand(call), slope, call.result))


def _hardsigmoid(graph: Graph, call: Call) -> Stored:
    """clamp(x / 6 + 1 / 2, 0, 1): a 1×1 depthwise convolution whose result's grid does the clamping."""
    x = graph.operand(call)
    if len(x.shape) != 4:
        raise inexpressible(call.name, "a hard sigmoid of a vector (keep its spatial axes)")
    assert x.affine is not None
    channels, level = x.shape[3], 127
    scale = np.float32(1 / 6 / level)
    half = np.int32(round(0.5 / (float(scale) * x.affine.scale)))
    tensor = graph.builder.depthwise(
        call.name, x, np.full((1, 1, 1, channels), level, np.int8), np.full(channels, scale),
        np.full(channels, half, np.int32), call.result, activation=_fused(call, (0.0, 1.0)),
    )  # fmt: skip
    return Stored(tensor)


def _moved(graph: Graph, node: fx.Node, name: str) -> Stored:
    """A reshape, flatten, squeeze or the like that only says the same values in another shape."""
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    value = graph.read(source)
    before, after = (tuple(n.meta["val"].shape[1:]) for n in (source, node))
    if before == after:
        return value
    tensor = graph.plain(name, value)
    channels, positions = tensor.shape[-1], math.prod(tensor.shape[1:-1])
    if is_flatten(node) or (len(after) == 1 and positions == 1):
        torch_order = np.arange(channels * positions).reshape(channels, positions)
        flat = graph.builder.reshape(name, tensor, (-1, channels * positions))
        return Stored(flat, order=torch_order.T.reshape(-1) if positions > 1 and channels > 1 else None)
    if value.order is None and before[0] == after[0] and len(after) in (2, 3):
        image = after[1:] if len(after) == 3 else (1, *after[1:])
        return Stored(graph.builder.reshape(name, tensor, (-1, *image, channels)))
    raise inexpressible(name, "a reshape that mixes channels and positions")


def _pad(graph: Graph, node: fx.Node, name: str) -> Stored:
    """Zeros around an image, left to its reader: many read them as their own padding."""
    value = graph.read(node.args[0])
    sides = [int(side) for side in node.args[1]]  # last axis first
    constant = argument(node, 3 if node.target is aten.pad.default else 2, "value", 0)
    mode = argument(node, 2, "mode", "constant") if node.target is aten.pad.default else "constant"
    rank = len(node.meta["val"].shape)
    sides += [0] * (2 * rank - len(sides))
    columns, rows = (sides[0], sides[1]), (sides[2], sides[3]) if rank == 4 else (0, 0)
    others = sides[2 * (rank - 2) :]
    if mode != "constant" or constant not in (0, None) or min(sides) < 0 or any(others):
        raise inexpressible(name, "a padding other than zeros around the image")
    return replace(value, border=value.border + Border(rows, columns))


def _kernel(lower: Callable[[Graph, fx.Node, str], Stored]) -> Lower:
    """What moves values as a kernel of its own, with a grid of its own."""

    def lowered(graph: Graph, call: Call) -> Stored:
        value = lower(graph, call.node, call.name)
        if value.tensor.affine == call.result:
            return value
        tensor = graph.on_grid(call.name, value.tensor, call.result)  # zero is on every grid: the border can wait
        return replace(value, tensor=tensor)

    return lowered


_MERGED: dict[Any, Callable[[Graph, fx.Node, str], Stored]] = {
    aten.constant_pad_nd.default: _pad, aten.pad.default: _pad, aten.view.default: _moved,
    aten.reshape.default: _moved, aten._unsafe_view.default: _moved, aten.flatten.using_ints: _moved,
    aten.unsqueeze.default: _moved, aten.squeeze.dim: _moved, aten.squeeze.dims: _moved, aten.clone.default: _moved,
}  # fmt: skip

#: Operator of the torch graph → the function that writes it.
OPERATORS: dict[Any, Lower] = {
    aten.conv1d.default: _convolution, aten.conv2d.default: _convolution, aten.linear.default: _linear,
    aten.add.Tensor: _add, aten.mul.Tensor: _mul, aten.cat.default: _concat,
    aten.max_pool1d.default: _max_pool, aten.max_pool2d.default: _max_pool,
    aten.avg_pool1d.default: _avg_pool, aten.avg_pool2d.default: _avg_pool, aten.mean.dim: _mean,
    aten.relu.default: _clamp, aten.relu6.default: _clamp, aten.hardtanh.default: _clamp,
    aten.clamp.default: _clamp, aten.clamp_min.default: _clamp, aten.sigmoid.default: _sigmoid,
    aten.tanh.default: _tanh, aten.hardswish.default: _hardswish, aten.hardsigmoid.default: _hardsigmoid,
    aten.silu.default: _silu, aten.leaky_relu.default: _leaky_relu,
    **{target: _kernel(lower) for target, lower in _MERGED.items()},
}  # fmt: skip
