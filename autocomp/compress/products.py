"""Products with stored matrices, however they are spelt, become linear layers."""

from collections.abc import Callable

import torch
from torch import fx, nn

from autocomp.compress.normalize import permutation
from autocomp.compress.parameters import (
    argument,
    aten,
    drop_unread,
    free_path,
    get_parameter,
    is_stored,
    set_buffer,
    set_parameter,
)


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


def _inner(node: fx.Node) -> Terms | None:
    """Sums over the last axis of both."""
    x, matrix = node.args[:2]
    if not isinstance(x, fx.Node) or not isinstance(matrix, fx.Node) or _rank(x) < 2 or _rank(matrix) != 2:
        return None
    xs, new = _LETTERS[: _rank(x)], _LETTERS[_rank(x)]
    return x, xs, matrix, new + xs[-1], xs[:-1] + new, None


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
    aten.tensordot.default: _tensordot, aten.einsum.default: _einsum, aten.inner.default: _inner,
}  # fmt: skip
