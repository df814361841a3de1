"""One spelling for what a graph may say in several ways, so that every later step knows one.

A layer is what an operator does: a product with a stored matrix is a linear layer whatever it is called, batch-norm
behind a layer is part of it, and a convolution says its padding in numbers.
"""

import itertools
import operator
import re
from collections.abc import Callable, Sequence

import torch
from torch import fx, nn

from autocomp.compress.parameters import (
    CONVOLUTIONS,
    LAYERS,
    argument,
    aten,
    bias_path,
    drop_unread,
    free_path,
    get_parameter,
    is_stored,
    move,
    set_buffer,
    set_parameter,
    weight_path,
)

#: Nodes that change nothing at inference.
_NO_OPS = (aten.dropout.default, aten.alias.default, aten.detach.default)
_BATCH_NORMS = (aten._native_batch_norm_legit_no_training.default, aten.batch_norm.default)
_PADDED = {aten.conv1d.padding: aten.conv1d.default, aten.conv2d.padding: aten.conv2d.default}
#: Names that the written file gives to tensors of its own; an input that is called so gets another name.
RESERVED = re.compile(r"[wszqkdepfr]\d+[a-z]?\d*|.*_(raw|4d)")


def drop_no_ops(graph: fx.GraphModule) -> None:
    """Take out what changes nothing: dropout, whole slices, views of the shape that is there already."""
    for node in list(graph.graph.nodes):
        whole = node.target in (aten.slice.Tensor, aten.view.default, aten.reshape.default)
        if node.target in _NO_OPS or (whole and _same_shape(node, node.args[0])):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _same_shape(a: fx.Node, b: fx.Node) -> bool:
    before, after = a.meta.get("val"), b.meta.get("val")
    return before is not None and after is not None and [*map(str, before.shape)] == [*map(str, after.shape)]


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
            plain.replace_all_uses_with(total, delete_user_cb=lambda user, total=total: user is not total)


def spell_products(graph: fx.GraphModule) -> None:
    """Every product with a stored matrix becomes aten.linear with a stored weight of (out, in)."""
    weights = _Weights(graph)
    for node in list(graph.graph.nodes):
        product = _PRODUCTS.get(node.target)
        terms = product(node) if product is not None else None
        if terms is not None:
            _spell_product(graph, node, weights, *terms)
    weights.settle()


#: Axes of a product by letters: (data, its axes, matrix, its axes, axes of the result, bias).
Terms = tuple[fx.Node, str, fx.Node, str, str, fx.Node | None]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _spell_product(
    graph: fx.GraphModule, node: fx.Node, weights: "_Weights",
    x: fx.Node, xs: str, matrix: fx.Node, ws: str, out: str, bias: fx.Node | None,
) -> None:  # fmt: skip
    summed = "".join(a for a in ws if a in xs and a not in out)
    made = "".join(a for a in ws if a not in xs)
    kept = "".join(a for a in xs if a not in ws)
    distinct = all(len(set(axes)) == len(axes) for axes in (xs, ws, out))
    if not (distinct and summed and made and set(summed + made) == set(ws) and set(out) == set(kept + made)):
        return
    if out[0] not in kept or not kept:
        return
    sizes = dict(zip(ws, matrix.meta["val"].shape, strict=True))
    if not all(isinstance(size, int) for size in sizes.values()):
        return
    weight = weights.matrix(node, matrix, ws, made, summed)
    if weight is None:
        return
    insert = graph.graph.call_function
    with graph.graph.inserting_before(node):
        if xs != kept + summed:
            x = insert(aten.permute.default, (x, [xs.index(a) for a in kept + summed]))
        if len(summed) > 1:
            x = insert(aten.flatten.using_ints, (x, len(kept), -1))
        y = insert(aten.linear.default, (x, weight, *([bias] if bias is not None else [])))
        y.meta = dict(node.meta)
        if len(made) > 1:
            y = insert(aten.unflatten.int, (y, len(kept), [sizes[a] for a in made]))
        if out != kept + made:
            y = insert(aten.permute.default, (y, [(kept + made).index(a) for a in out]))
        y.meta = dict(node.meta)
    node.replace_all_uses_with(y)
    graph.graph.erase_node(node)


class _Weights:
    """Matrices (out, in) made of stored tensors: one for all that read the same tensor in the same way."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.made: dict[tuple[str, tuple[int, ...], int], tuple[fx.Node, torch.Tensor]] = {}

    def matrix(self, before: fx.Node, node: fx.Node, axes: str, rows: str, columns: str) -> fx.Node | None:
        """A node that reads the (rows, columns) matrix of the tensor that `node` stands for; None if it is computed."""
        order = list(range(len(axes)))  # axis of the stored tensor at each axis of the node
        while (turned := permutation(node)) is not None:
            order, node = [turned[axis] for axis in order], node.args[0]  # type: ignore[assignment]
        if not is_stored(node):
            return None
        path, value = str(node.target), get_parameter(self.graph, str(node.target))
        wanted = tuple(order[axes.index(a)] for a in rows + columns)
        if wanted == (0, 1) and value.ndim == 2:
            return node
        key = (path, wanted, len(rows))
        if key not in self.made:
            turned_value = value.detach().permute(wanted)
            height = 1
            for size in turned_value.shape[: len(rows)]:
                height *= size
            with self.graph.graph.inserting_before(before):
                new = self.graph.graph.create_node("get_attr", path)
            self.made[key] = new, turned_value.reshape(height, -1).contiguous()
            new.meta["val"] = self.made[key][1]
        return self.made[key][0]

    def settle(self) -> None:
        """Store the matrices, under the name of what they were made of where nothing reads that any more."""
        kinds = {node: str(node.target) for node, _ in self.made.values()}
        trained = {n: isinstance(get_parameter(self.graph, path), nn.Parameter) for n, path in kinds.items()}
        self.graph.graph.eliminate_dead_code()
        others = {str(n.target) for n in self.graph.graph.nodes if n.op == "get_attr" and n not in kinds}
        for node, value in self.made.values():
            path = kinds[node] if kinds[node] not in others else free_path(self.graph, kinds[node])
            others.add(path)
            (set_parameter if trained[node] else set_buffer)(self.graph, path, value)
            node.target = path
        drop_unread(self.graph)


def _rank(node: object) -> int:
    return node.meta["val"].ndim if isinstance(node, fx.Node) and "val" in node.meta else 0


def _matmul(node: fx.Node) -> Terms | None:
    """x @ W, and W @ x, which is a layer over the axis before the last."""
    a, b = node.args[:2]
    assert isinstance(a, fx.Node) and isinstance(b, fx.Node)
    if _rank(a) >= 2 and _rank(b) == 2:
        xs, new = _LETTERS[: _rank(a)], _LETTERS[_rank(a)]
        return a, xs, b, xs[-1] + new, xs[:-1] + new, None
    if _rank(a) == 2 and _rank(b) >= 3:
        xs, new = _LETTERS[: _rank(b)], _LETTERS[_rank(b)]
        return b, xs, a, new + xs[-2], xs[:-2] + new + xs[-1], None
    return None


def _addmm(node: fx.Node) -> Terms | None:
    bias, x, matrix = node.args[:3]
    assert isinstance(bias, fx.Node) and isinstance(x, fx.Node) and isinstance(matrix, fx.Node)
    if any(argument(node, i, name, 1) != 1 for i, name in ((3, "beta"), (4, "alpha"))):
        return None
    width = matrix.meta["val"].shape[-1]
    # Any other bias is an addition of its own.
    return (x, "ab", matrix, "bc", "ac", bias) if tuple(bias.meta["val"].shape) == (width,) else None


def _tensordot(node: fx.Node) -> Terms | None:
    x, matrix, of_x, of_matrix = node.args[:4]
    assert isinstance(x, fx.Node) and isinstance(matrix, fx.Node)
    xs = _LETTERS[: _rank(x)]
    ws = list(_LETTERS[_rank(x) : _rank(x) + _rank(matrix)])
    for i, j in zip(of_x, of_matrix, strict=True):  # type: ignore[arg-type]
        ws[j] = xs[i]
    out = "".join(a for a in xs if a not in ws) + "".join(a for a in ws if a not in xs)
    return x, xs, matrix, "".join(ws), out, None


def _einsum(node: fx.Node) -> Terms | None:
    equation, operands = str(node.args[0]).replace(" ", ""), list(node.args[1])  # type: ignore[arg-type]
    if len(operands) != 2 or "->" not in equation:
        return None
    sources, out = equation.split("->")
    axes = sources.split(",")
    free = "".join(letter for letter in _LETTERS if letter not in equation)
    for i, operand in enumerate(operands):
        if "..." in axes[i]:
            spelt = free[: _rank(operand) - len(axes[i]) + 3]
            axes[i] = axes[i].replace("...", spelt)
            out = out.replace("...", spelt)
    if "." in out or any(len(a) != _rank(o) for a, o in zip(axes, operands, strict=True)):
        return None
    data = 0 if not _from_stored(operands[0]) else 1
    x, matrix = operands[data], operands[1 - data]
    return x, axes[data], matrix, axes[1 - data], out, None


def _from_stored(node: fx.Node) -> bool:
    while permutation(node) is not None:
        node = node.args[0]  # type: ignore[assignment]
    return is_stored(node)


def _bmm(node: fx.Node) -> Terms | None:
    """A product of each example with one matrix that is repeated for it."""
    x, repeated = node.args[:2]
    assert isinstance(x, fx.Node) and isinstance(repeated, fx.Node)
    source = repeated.args[0] if repeated.target is aten.expand.default else None
    if not isinstance(source, fx.Node) or _rank(source) != 2:
        return None
    same = tuple(source.meta["val"].shape) == tuple(repeated.meta["val"].shape[1:])
    return (x, "abc", source, "cd", "abd", None) if same else None


_PRODUCTS: dict[object, Callable[[fx.Node], Terms | None]] = {
    aten.matmul.default: _matmul, aten.mm.default: _matmul, aten.addmm.default: _addmm, aten.bmm.default: _bmm,
    aten.tensordot.default: _tensordot, aten.einsum.default: _einsum,
}  # fmt: skip


def name_apart(graph: fx.GraphModule) -> None:
    """Names that neither a node of the graph nor a tensor of the written file has.

    Those contain no dot: a parameter of the network itself, `scale`, becomes `scale.weight`, a network that is itself
    a layer is called by its operator. An input that is called as the file calls its own tensors gets a line behind.
    """
    for node in graph.graph.nodes:
        path = str(node.target)
        if node.op == "get_attr" and "." not in path:
            reader = next(iter(node.users), None)
            stem = _op_name(reader) if path in ("weight", "bias") and reader is not None else path
            new = free_path(graph, f"{stem}.{path if path in ('weight', 'bias') else 'weight'}")
            move(graph, path, new)
        elif node.op == "placeholder" and RESERVED.fullmatch(node.name):
            taken = {other.name for other in graph.graph.nodes}
            name = next(n for n in (node.name + "_" * i for i in itertools.count(1)) if n not in taken)
            node.name = node.target = name


def _op_name(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0]
