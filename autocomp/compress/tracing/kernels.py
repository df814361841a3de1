"""The kernels that a runtime fuses a graph into, in execution order."""

import operator
from collections.abc import Callable

import torch
from torch import fx

from autocomp.compress.graph import CONVOLUTIONS, LAYERS, argument, aten, pair
from autocomp.compress.integer_kernels import Form, form_of
from autocomp.compress.tracing.channels import Analysis
from autocomp.compress.tracing.coupling import Axis
from autocomp.compress.tracing.operators import (
    FUSED,
    MOVES,
    PERMUTES,
    POOLS,
    SPATIAL,
    elements_of,
    groups_of,
    is_merged,
    is_tensor,
    shape_of,
)
from autocomp.network import NETWORK_INPUT, Channels, KernelNode


def fused_kernels(
    graph: fx.GraphModule, values: set[str], analysis: Analysis, channels: Callable[[Axis | None, int], Channels]
) -> tuple[list[KernelNode], list[str], list[str]]:
    """Fused kernels in execution order, and the fx nodes where each begins and ends."""
    kernels: list[KernelNode] = []
    starts: list[str] = []
    tensors: list[str] = []
    made: dict[fx.Node, int] = {}
    (output,) = [node for node in graph.graph.nodes if node.op == "output"]
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            made[node] = NETWORK_INPUT
        if node.op != "call_function" or not is_tensor(node) or node in made:
            continue
        # An operator with several results (a recurrent layer) counts as a kernel where one of them is picked.
        maker = node.args[0] if node.target is operator.getitem else node
        sources = [s for s in maker.all_input_nodes if is_tensor(s)]
        if not any(source in made for source in sources):
            continue  # a constant
        if is_merged(node, values) and sources[0] in made:
            made[node] = made[sources[0]]
            continue
        end = node
        op, int8, free = _kernel_op(node, sources)
        form = form_of(node) or Form(int8, keeps_range=free or op == "max_pool" or node.target in PERMUTES, free=free)
        int8, free = form.int8, form.free
        # Between two integer kernels a tensor must be findable in the ONNX graph; its name there may be lost.
        int8 = int8 and node.name in values and all(source in made for source in sources)
        if node.target in LAYERS or op == "add":
            users = list(node.users)
            if len(users) == 1 and users[0].target in FUSED:
                end = users[0]
        main = sources[0]
        while main.target in SPATIAL and is_merged(main, values):  # its padding is the kernel's own: the image before
            main = main.args[0]
        before, after = shape_of(main), shape_of(node)
        linear = node.target is aten.linear.default
        in_axis = analysis.in_axes.get(node) if node.target in LAYERS else analysis.axes.get(main)
        place = analysis.axes.get(main)
        height, width = (1, elements_of(main) // before[-1]) if linear else _spatial(main, place.dim if place else 1)
        layer = analysis.layers[node].name if node in analysis.layers else None
        int8 = int8 and (layer is not None or node.target not in LAYERS)  # a layer that is left alone is float
        weight = analysis._weight(node) if layer is not None else None
        window, stride = _window(node, op, weight)
        in_fallback = before[-1 if linear else 1] if len(before) > 1 else 1
        out_fallback = after[-1 if linear else 1] if len(after) > 1 else 1
        in_channels = channels(in_axis, max(in_fallback, 1))
        if op == "concat":
            in_channels = channels(analysis.axes.get(node), max(out_fallback, 1))
        kernels.append(
            KernelNode(
                name=layer or maker.name, op=op,
                inputs=tuple(dict.fromkeys(made[s] for s in sources if s in made)),
                in_channels=in_channels, out_channels=channels(analysis.axes.get(node), max(out_fallback, 1)),
                height=height, width=width, kernel_h=window[0], kernel_w=window[1], stride=stride,
                groups=groups_of(node) if node.target in LAYERS else 1,
                layer=layer, int8=int8, free=free and (int8 or node.target in MOVES),
                keeps_range=form.keeps_range,
                output=end in output.all_input_nodes,
            )
        )  # fmt: skip
        made[node] = made[end] = len(kernels) - 1
        starts.append(node.name)
        tensors.append(end.name)
    return kernels, starts, tensors


def _spatial(node: fx.Node, channels: int) -> tuple[int, int]:
    """Height and width of a tensor with its channels along axis `channels`; what is no image has positions only."""
    shape = shape_of(node)
    if len(shape) == 4 and shape[0] == 0 and channels > 0:
        height, width = (size for axis, size in enumerate(shape) if axis not in (0, channels))
        return height, width
    of_each = shape[channels] if channels < len(shape) else 1
    return 1, max(1, elements_of(node) // max(1, of_each))


def _window(node: fx.Node, op: str, weight: torch.Tensor | None) -> tuple[tuple[int, int], int]:
    """((kernel height, kernel width), stride) of a kernel node."""
    if node.target in CONVOLUTIONS and weight is not None:
        return pair(list(weight.shape[2:])), max(pair(argument(node, 3, "stride", 1)))
    if op in ("max_pool", "avg_pool"):
        window = pair(node.args[1])
        stride = argument(node, 2, "stride", None)
        return window, max(pair(stride)) if stride not in (None, []) else max(window)
    return (1, 1), 1


def _kernel_op(node: fx.Node, sources: list[fx.Node]) -> tuple[str, bool, bool]:
    """(table operator, whether an integer kernel exists, whether it is free) of a node."""
    if node.target in CONVOLUTIONS:
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        groups, out = groups_of(node), shape_of(node)[1]
        return ("depthwise" if groups > 1 and groups == out and shape_of(sources[0])[1] == out else "conv"), True, False
    if node.target is aten.linear.default:
        return "linear", True, False
    if node.target is aten.add.Tensor and len(sources) == 2 and shape_of(sources[0]) == shape_of(sources[1]):
        return "add", True, False
    if node.target is aten.mul.Tensor and len(sources) == 2:
        return "mul", True, False
    if node.target is aten.cat.default:
        return "concat", True, False
    if node.target in POOLS:
        return POOLS[node.target], True, False
    if node.target is aten.mean.dim and len(shape_of(sources[0])) == 4:
        dims = sorted(d % 4 for d in node.args[1])  # type: ignore[union-attr]
        if dims == [2, 3]:
            return "global_avg_pool", True, False
    if node.target in MOVES:
        return "activation", True, True
    if node.target in PERMUTES:
        return "activation", True, False
    return "activation", False, False
