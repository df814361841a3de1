"""One spelling for what a graph may say in several ways, so that every later step knows one.

A layer is what an operator does: a product with a stored matrix is a linear layer whatever it is called, batch-norm
behind a layer is part of it, and a convolution says its padding in numbers.
"""

import itertools
import operator
import re
from collections.abc import Callable, Sequence

import torch
from torch import fx

from autocomp.compress.parameters import (
    CONVOLUTIONS,
    LAYERS,
    argument,
    aten,
    bias_path,
    free_path,
    get_parameter,
    is_stored,
    move,
    pair,
    set_parameter,
    weight_path,
)

#: Nodes that change nothing at inference.
_NO_OPS = (aten.dropout.default, aten.alias.default, aten.detach.default)
#: Operator → the number that changes nothing as its second operand.
_NEUTRAL = {aten.add.Tensor: 0, aten.sub.Tensor: 0, aten.mul.Tensor: 1, aten.div.Tensor: 1}
_BATCH_NORMS = (aten._native_batch_norm_legit_no_training.default, aten.batch_norm.default)
_PADDED = {aten.conv1d.padding: aten.conv1d.default, aten.conv2d.padding: aten.conv2d.default}
#: Names that the written file gives to tensors of its own.
RESERVED = re.compile(r"[wszqkdepfr]\d+[a-z]?\d*|.*_(raw|4d)")


def drop_no_ops(graph: fx.GraphModule) -> None:
    """Take out what changes nothing: dropout, whole slices, views of the shape that is there already, + 0."""
    for node in list(graph.graph.nodes):
        whole = node.target in (aten.slice.Tensor, aten.view.default, aten.reshape.default)
        neutral = node.target in _NEUTRAL and node.args[1:] in (
            (_NEUTRAL[node.target],),
            (float(_NEUTRAL[node.target]),),
        )
        alike = (whole or neutral) and _same_shape(node, node.args[0])
        if node.target in _NO_OPS or alike:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _same_shape(a: fx.Node, b: object) -> bool:
    if not isinstance(b, fx.Node):
        return False
    before, after = a.meta.get("val"), b.meta.get("val")
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor) or before.dtype != after.dtype:
        return False
    return [*map(str, before.shape)] == [*map(str, after.shape)]


def merge_alike(graph: fx.GraphModule) -> None:
    """Compute once what several nodes compute alike, as the ONNX exporter does: tensors then have one name in both."""
    seen: dict[tuple[object, ...], fx.Node] = {}
    for node in list(graph.graph.nodes):
        random = isinstance(node.target, torch._ops.OpOverload) and (
            torch.Tag.nondeterministic_seeded in node.target.tags or node.target._schema.is_mutable
        )
        if node.op not in ("call_function", "get_attr") or random:
            continue
        key = (node.op, node.target, repr(node.args), repr(sorted(node.kwargs.items())))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.graph.erase_node(node)
        else:
            seen[key] = node


def spell_operators(graph: fx.GraphModule) -> None:
    """Give the few operators that have several spellings one: the ONNX exporter then keeps their names."""
    for node in list(graph.graph.nodes):
        if node.target is aten.adaptive_avg_pool2d.default and list(node.args[1]) == [1, 1]:
            _replace(graph, node, aten.mean.dim, (node.args[0], [2, 3], True))
        elif node.target is aten.adaptive_avg_pool1d.default and list(node.args[1]) == [1]:
            _replace(graph, node, aten.mean.dim, (node.args[0], [2], True))
        elif node.target in _PADDED:
            _spell_padding(graph, node)
        elif node.target is aten.avg_pool2d.default and argument(node, 6, "divisor_override", None) is not None:
            _spell_divisor(graph, node)


def _spell_divisor(graph: fx.GraphModule, node: fx.Node) -> None:
    """An average with a divisor of its own is one over the whole window, times what the two differ by.

    The exporter drops the divisor. Where ceil_mode cuts windows at the edge, zeros make them whole.
    """
    defaults: tuple[tuple[str, object], ...] = (
        ("input", None), ("kernel_size", None), ("stride", []), ("padding", 0), ("ceil_mode", False),
        ("count_include_pad", True), ("divisor_override", None),
    )  # fmt: skip
    x, window, stride, padding, ceil_mode, _, divisor = (argument(node, i, *names) for i, names in enumerate(defaults))
    height, width = pair(window)
    with graph.graph.inserting_before(node):
        if ceil_mode:
            assert isinstance(x, fx.Node)
            missing = [
                (result - 1) * step + size - before - zeros
                for result, step, size, before, zeros in zip(
                    node.meta["val"].shape[-2:], pair(stride or window), (height, width), x.meta["val"].shape[-2:],
                    pair(padding), strict=True)
            ]  # fmt: skip
            if not all(type(zeros) is int for zeros in missing):
                return
            (top, left), (bottom, right) = pair(padding), (max(zeros, 0) for zeros in missing)
            x, padding = graph.graph.call_function(aten.constant_pad_nd.default, (x, [left, right, top, bottom])), 0
        average = graph.graph.call_function(aten.avg_pool2d.default, (x, window, stride, padding, False, True))
    average.meta = dict(node.meta)
    _replace(graph, node, aten.mul.Tensor, (average, height * width / float(divisor)))  # type: ignore[arg-type]


def _spell_padding(graph: fx.GraphModule, node: fx.Node) -> None:
    """ "same" and "valid" in numbers; an odd number of zeros has one more at the end."""
    x, weight, *_ = node.args
    assert isinstance(weight, fx.Node)
    window = weight.meta["val"].shape[2:]
    stride, mode = argument(node, 3, "stride", 1), argument(node, 4, "padding", "valid")
    dilation, groups = argument(node, 5, "dilation", 1), argument(node, 6, "groups", 1)
    stride, dilation = ([v] * len(window) if isinstance(v, int) else list(v) for v in (stride, dilation))  # type: ignore[call-overload]
    steps = dilation * len(window) if len(dilation) == 1 else dilation
    zeros = [step * (size - 1) if mode == "same" else 0 for step, size in zip(steps, window, strict=False)]
    odd = [total % 2 for total in zeros]
    if any(odd):
        sides = [side for extra in reversed(odd) for side in (0, extra)]
        with graph.graph.inserting_before(node):
            x = graph.graph.call_function(aten.constant_pad_nd.default, (x, sides, 0.0))
    bias = argument(node, 2, "bias", None)
    _replace(
        graph, node, _PADDED[node.target], (x, weight, bias, stride, [t // 2 for t in zeros], dilation, groups)
    )  # fmt: skip


def _replace(graph: fx.GraphModule, node: fx.Node, target: Callable[..., object], args: Sequence[object]) -> fx.Node:
    with graph.graph.inserting_before(node):
        new = graph.graph.call_function(target, tuple(args))  # type: ignore[arg-type]
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)
    return new


def fold_batch_norms(graph: fx.GraphModule) -> None:
    """Fold inference-mode batch-norm into the layer whose only reader it is (Jacob et al. 2018, eq. 14).

    Only where it normalizes the axis that the layer writes: behind a linear layer on tokens (n, t, f) it normalizes
    the tokens, unless a transposition stands between them.
    """
    for node in list(graph.graph.nodes):
        if node.target not in _BATCH_NORMS:
            continue
        layer = _layer_before(node)
        statistics = node.args[1:5]
        if layer is None or any(a is not None and not is_stored(a) for a in statistics) or None in statistics[2:]:
            continue
        gamma, beta, mean, variance = (
            get_parameter(graph, str(a.target)).detach() if isinstance(a, fx.Node) else None for a in statistics
        )
        assert mean is not None and variance is not None
        epsilon = float(node.args[7] if node.target is aten.batch_norm.default else node.args[6])
        scale = torch.rsqrt(variance + epsilon) * (gamma if gamma is not None else 1.0)
        path, old_bias = weight_path(layer), bias_path(layer)
        assert path is not None
        weight = get_parameter(graph, path).detach()
        bias = get_parameter(graph, old_bias).detach() if old_bias is not None else 0.0
        set_parameter(graph, path, weight * scale.reshape(-1, *[1] * (weight.ndim - 1)))
        _store_bias(graph, layer, (bias - mean) * scale + (beta if beta is not None else 0.0))
        result = node
        if node.target is not aten.batch_norm.default:  # returns (output, mean, rstd)
            (result,) = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
        result.replace_all_uses_with(node.args[0])
        for user in list(node.users):
            graph.graph.erase_node(user)
        graph.graph.erase_node(node)


def _layer_before(norm: fx.Node) -> fx.Node | None:
    """The layer with a weight of its own whose output channels a batch-norm, its only reader, normalizes."""
    axis, node = 1, norm.args[0]
    while isinstance(node, fx.Node) and len(node.users) == 1:
        if node.target in LAYERS:
            written = 1 if node.target in CONVOLUTIONS else node.meta["val"].ndim - 1
            weight, bias = node.args[1], argument(node, 2, "bias", None)
            own = is_stored(weight) and len(weight.users) == 1  # type: ignore[union-attr]
            return node if own and axis == written and (bias is None or is_stored(bias)) else None
        order = permutation(node)
        if order is None:
            return None
        axis, node = order[axis], node.args[0]
    return None


def permutation(node: fx.Node) -> list[int] | None:
    """Axis of the source at each axis of the result, for a node that only changes the order of axes."""
    if node.target not in (aten.permute.default, aten.transpose.int, aten.t.default) or "val" not in node.meta:
        return None
    rank = node.meta["val"].ndim
    if node.target is aten.permute.default:
        return [axis % rank for axis in node.args[1]]  # type: ignore[union-attr]
    order = list(range(rank))
    if rank > 1:
        a, b = (axis % rank for axis in node.args[1:3]) if node.target is aten.transpose.int else (0, 1)  # type: ignore[operator]
        order[a], order[b] = order[b], order[a]
    return order


def _store_bias(graph: fx.GraphModule, layer: fx.Node, bias: torch.Tensor) -> None:
    """Give a layer a bias that nothing else reads."""
    path = weight_path(layer)
    assert path is not None
    parent, _, leaf = path.rpartition(".")
    wanted = f"{parent}.bias" if leaf == "weight" and parent else f"{path}_bias"
    old = argument(layer, 2, "bias", None)
    target = str(old.target) if isinstance(old, fx.Node) and len(old.users) == 1 else free_path(graph, wanted)
    set_parameter(graph, target, bias)
    with graph.graph.inserting_before(layer):
        stored = graph.graph.get_attr(target)
    stored.meta["val"] = bias
    layer.args = (layer.args[0], layer.args[1], stored, *layer.args[3:])
    layer.kwargs = {name: value for name, value in layer.kwargs.items() if name != "bias"}


def separate_biases(graph: fx.GraphModule) -> None:
    """Give each layer a bias of its own: it is pruned, corrected and rounded with the layer."""
    for node in list(graph.graph.nodes):
        if node.target not in LAYERS or not is_stored(node.args[1]):
            continue
        bias = argument(node, 2, "bias", None)
        if bias is None:
            continue
        assert isinstance(bias, fx.Node)
        if is_stored(bias):
            if len(bias.users) > 1:
                _store_bias(graph, node, get_parameter(graph, str(bias.target)))
        elif node.target is aten.linear.default:
            plain = _replace(graph, node, aten.linear.default, node.args[:2])
            with graph.graph.inserting_after(plain):
                total = graph.graph.call_function(aten.add.Tensor, (plain, bias))
            total.meta = dict(plain.meta)
            for user in [user for user in plain.users if user is not total]:
                user.replace_input_with(plain, total)


def name_apart(graph: fx.GraphModule) -> None:
    """Names that neither a node of the graph nor a tensor of the written file has.

    Those contain no dot: a parameter of the network itself, `scale`, becomes `scale.weight`, a network that is itself
    a layer is called by its operator.
    """
    for node in graph.graph.nodes:
        path = str(node.target)
        if node.op == "get_attr" and "." not in path:
            reader = next(iter(node.users), None)
            stem = _op_name(reader) if path in ("weight", "bias") and reader is not None else path
            new = free_path(graph, f"{stem}.{path if path in ('weight', 'bias') else 'weight'}")
            move(graph, path, new)


def name_input_apart(graph: fx.Graph) -> None:
    """Give an input that is called as the written file calls its own tensors a line behind its name."""
    for node in graph.nodes:
        if node.op == "placeholder" and RESERVED.fullmatch(node.name):
            taken = {other.name for other in graph.nodes}
            node.name = next(n for i in itertools.count(1) if (n := node.name + "_" * i) not in taken)


def _op_name(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0]
