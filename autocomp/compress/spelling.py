"""Operators in the plainer form that pruning, quantization and the ONNX exporter know.

torch has many names for one order of axes, several for a dropout that is off, and a few operators for which the
exporter has nothing, though others say the same.
"""

import operator
from collections.abc import Callable

import torch
from torch import fx

from autocomp.compress.parameters import argument, aten

#: Operators that only change the order of axes.
_PERMUTATIONS = {
    aten.swapaxes.default, aten.swapdims.default, aten.movedim.int, aten.movedim.intlist, aten.moveaxis.int,
    aten.moveaxis.intlist, aten.mT.default, aten.mH.default, aten.matrix_H.default, aten.adjoint.default,
    aten.numpy_T.default,
}  # fmt: skip
#: Dropout in evaluation mode, however it draws in training.
_IDLE = {aten.feature_dropout.default, aten.alpha_dropout.default, aten.feature_alpha_dropout.default}
_ALIASES = {aten.linalg_matmul.default: aten.matmul.default}
_DYNAMIC = {aten.conv1d.default, aten.conv2d.default}
_ADAPTIVE_MAX = {aten.adaptive_max_pool1d.default: 1, aten.adaptive_max_pool2d.default: 2}
#: Sizes of axes that tell them apart.
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)


def spell_plainly(graph: fx.GraphModule) -> None:
    """Write the operators that have a plainer form in it. Nodes of `graph` keep the shapes of their results."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor | tuple | list):
            continue
        with graph.graph.inserting_before(node):
            if node.target in _ALIASES:
                node.target = _ALIASES[node.target]
            elif node.target in _PERMUTATIONS:
                _replace(node, _call(graph, aten.permute.default, node.args[0], _order(node)))
            elif node.target in _IDLE and not argument(node, 2, "train", False):
                _replace(node, node.args[0])
            elif node.target is aten.rrelu.default and not argument(node, 3, "training", False):
                lower, upper = argument(node, 1, "lower", 1 / 8), argument(node, 2, "upper", 1 / 3)
                _replace(node, _call(graph, aten.leaky_relu.default, node.args[0], (lower + upper) / 2))  # type: ignore[operator]
            elif node.target in _ADAPTIVE_MAX:
                _spell_adaptive_max(graph, node)
            elif node.target in _DYNAMIC and isinstance(argument(node, 6, "groups", 1), fx.Node):
                _spell_dynamic(graph, node)
            elif node.target is aten.scaled_dot_product_attention.default:
                _spell_attention(graph, node)


def _call(graph: fx.GraphModule, target: Callable[..., object], *args: object) -> fx.Node:
    """A new call at the place where `graph` inserts, with the shape of what it gives."""
    node = graph.graph.call_function(target, args)  # type: ignore[arg-type]
    node.meta["val"] = target(*fx.map_arg(args, lambda source: source.meta["val"]))  # type: ignore[arg-type, type-var]
    return node


def _replace(node: fx.Node, new: object) -> None:
    assert isinstance(new, fx.Node)
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def _order(node: fx.Node) -> list[int]:
    """Axis of the source at each axis of the result."""
    sizes = _PRIMES[: node.meta["val"].ndim]
    turned = node.target(torch.empty(sizes), *node.args[1:], **node.kwargs)  # type: ignore[operator]
    return [sizes.index(size) for size in turned.shape]


def _spell_adaptive_max(graph: fx.GraphModule, node: fx.Node) -> None:
    """An adaptive max pooling whose positions nobody reads, as maxima of slices, axis by axis.

    The exporter knows none. Window i of n over a size s is [⌊i·s/n⌋, ⌈(i+1)·s/n⌉).
    """
    dims = _ADAPTIVE_MAX[node.target]  # type: ignore[index]
    x, wanted = node.args[:2]
    assert isinstance(x, fx.Node)
    sizes = x.meta["val"].shape[-dims:]
    for user in list(node.users):
        if not user.users:
            graph.graph.erase_node(user)
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
        return
    if not all(isinstance(size, int) for size in sizes):
        return
    counts = [*wanted] if isinstance(wanted, list | tuple) else [wanted] * dims
    if all(count == 1 for count in counts):
        x = _call(graph, aten.amax.default, x, list(range(-dims, 0)), True)
    elif all(size % count == 0 for size, count in zip(sizes, counts, strict=True)):  # type: ignore[operator]
        pool = aten.max_pool1d.default if dims == 1 else aten.max_pool2d.default
        window = [size // count for size, count in zip(sizes, counts, strict=True)]  # type: ignore[operator]
        x = _call(graph, pool, x, window, window)
    else:
        for axis, size, count in zip(range(-dims, 0), sizes, counts, strict=True):
            edges = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]  # type: ignore[call-overload]
            slices = [_call(graph, aten.slice.Tensor, x, axis, start, end) for start, end in edges]
            x = _call(graph, aten.cat.default, [_call(graph, aten.amax.default, s, [axis], True) for s in slices], axis)
    for user in list(node.users):
        _replace(user, x)
    graph.graph.erase_node(node)


def _spell_attention(graph: fx.GraphModule, node: fx.Node) -> None:
    """Attention without an axis of heads as attention of one head: the exporter wants four axes."""
    if any(source.meta["val"].ndim != 3 for source in node.args[:3]):  # type: ignore[union-attr]
        return
    operands = [_call(graph, aten.unsqueeze.default, source, 1) for source in node.args[:3]]
    mask, rest = argument(node, 3, "attn_mask", None), node.args[4:]
    if isinstance(mask, fx.Node) and mask.meta["val"].ndim == 3:
        mask = _call(graph, aten.unsqueeze.default, mask, 1)
    attention = graph.graph.call_function(node.target, (*operands, mask, *rest))  # type: ignore[arg-type]
    attention.kwargs = {name: value for name, value in node.kwargs.items() if name != "attn_mask"}
    attention.meta["val"] = node.meta["val"].unsqueeze(1)
    _replace(node, _call(graph, aten.squeeze.dim, attention, 1))


def _spell_dynamic(graph: fx.GraphModule, node: fx.Node) -> None:
    """A convolution with a kernel for each example, grouped by examples, as a product of windows and kernels.

    x: (1, groups · in, …), weight: (groups · out, in, …), where the number of groups follows the batch; ONNX wants a
    number.
    """
    x, weight = node.args[:2]
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    shape, kernel = weight.meta["val"].shape, weight.meta["val"].shape[2:]
    height, width = node.meta["val"].shape[-2:] if len(kernel) == 2 else (1, node.meta["val"].shape[-1])
    groups = argument(node, 6, "groups", 1).meta["val"]  # type: ignore[attr-defined]
    made = shape[0].node.expr / groups.node.expr if isinstance(shape[0], torch.SymInt) else None
    fixed = [*shape[1:], *x.meta["val"].shape[2:], height, width]
    if made is None or not made.is_Integer or x.meta["val"].shape[0] != 1 or not all(type(n) is int for n in fixed):
        return
    out, depth = int(made), int(shape[1])
    window = [[1, kernel[0]] if len(kernel) == 1 else [*kernel]]
    for position, name, default, flat in ((5, "dilation", 1, 1), (4, "padding", 0, 0), (3, "stride", 1, 1)):
        given = argument(node, position, name, default)
        given = [given] * len(kernel) if isinstance(given, int) else list(given)  # type: ignore[call-overload]
        given = given * len(kernel) if len(given) == 1 else given
        window.append(given if len(kernel) == 2 else [flat, *given])
    sides = [1] * (2 - len(kernel)) + [int(n) for n in x.meta["val"].shape[2:]]
    images = _call(graph, aten.reshape.default, x, [-1, depth, *sides])
    columns = _call(graph, aten.im2col.default, images, *window)
    kernels = _call(graph, aten.reshape.default, weight, [-1, out, columns.meta["val"].shape[1]])
    y = _call(graph, aten.matmul.default, kernels, columns)
    y = _call(graph, aten.reshape.default, y, [1, -1, *node.meta["val"].shape[2:]])
    bias = argument(node, 2, "bias", None)
    if isinstance(bias, fx.Node):
        y = _call(graph, aten.add.Tensor, y, _call(graph, aten.reshape.default, bias, [1, -1] + [1] * len(kernel)))
    _replace(node, y)
