"""What a network computes from its parameters and buffers alone is computed once, and stored.

Standardized weights, weight and spectral norm, transposed and low-rank products, tables of positions that are cut to
length: a trained network computes them anew for each batch. Behind this pass a weight is a stored tensor.
"""

import operator

import torch
from torch import fx, nn

from autocomp.compress.parameters import (
    aten,
    drop_unread,
    free_path,
    get_parameter,
    move,
    set_buffer,
    set_parameter,
    stored_tensor,
)

#: A constant larger than both this and what it is made from stays an expression: it would be stored in full.
_ELEMENTS = 65_536
_ASSERTIONS = (aten._assert_tensor_metadata.default, aten._assert_async.msg, aten._assert_scalar.default)


@torch.no_grad()
def fold_constants(graph: fx.GraphModule) -> None:
    """Replace every constant expression of `graph` by one stored tensor.

    It is named after the largest parameter that it is made from, `a.parametrizations.weight.original1` being
    `a.weight`, and is a parameter if one of those is. What draws random numbers is no constant.
    """
    values: dict[fx.Node, object] = {}
    made_from: dict[fx.Node, set[str]] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            value = stored_tensor(graph, str(node.target))
            if value is not None:
                values[node], made_from[node] = value, {str(node.target)}
        elif node.op == "call_function" and all(source in values for source in node.all_input_nodes):
            if node.target in _ASSERTIONS:
                graph.graph.erase_node(node)
                continue
            sources = set().union(*(made_from[source] for source in node.all_input_nodes))
            result = _evaluate(node, values)
            allowed = max(_ELEMENTS, *(get_parameter(graph, path).numel() for path in sources), 0)
            if result is not None and _elements(result) <= allowed:
                values[node], made_from[node] = result, sources
    results = [
        node
        for node in values
        if node.op == "call_function" and node.users and any(user not in values for user in node.users)
        and isinstance(values[node], torch.Tensor)
    ]  # fmt: skip
    _store(graph, {node: (values[node], made_from[node]) for node in results})  # type: ignore[misc]


def _evaluate(node: fx.Node, values: dict[fx.Node, object]) -> object:
    """What a call gives; None where it is no constant."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) and target is not operator.getitem:
        return None
    if isinstance(target, torch._ops.OpOverload) and (
        torch.Tag.nondeterministic_seeded in target.tags or target._schema.is_mutable
    ):
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)  # type: ignore[arg-type, misc]
    result = target(*args, **kwargs)  # type: ignore[operator]
    return result if _elements(result) else None


def _elements(value: object) -> int:
    if isinstance(value, tuple | list):
        return sum(_elements(item) for item in value)
    return value.numel() if isinstance(value, torch.Tensor) else 0


def _store(graph: fx.GraphModule, results: dict[fx.Node, tuple[torch.Tensor, set[str]]]) -> None:
    """Put stored tensors in the place of nodes."""
    wanted: dict[str, str] = {}
    for node, (value, sources) in results.items():
        sizes = {path: get_parameter(graph, path).numel() for path in sorted(sources)}
        trained = value.is_floating_point() and any(isinstance(get_parameter(graph, p), nn.Parameter) for p in sources)
        # The name that it should have may be that of a tensor which nothing reads once all constants are stored.
        path = free_path(graph, "folded_constant")
        wanted[path] = _plain_name(max(sizes, key=lambda path: sizes[path])) if sizes else node.name
        (set_parameter if trained else set_buffer)(graph, path, value.contiguous())
        with graph.graph.inserting_before(node):
            constant = graph.graph.get_attr(path)
        constant.meta = dict(node.meta)
        node.replace_all_uses_with(constant)
    graph.graph.eliminate_dead_code()
    drop_unread(graph)
    for path, name in wanted.items():
        move(graph, path, free_path(graph, name))


def _plain_name(path: str) -> str:
    """What a parameter was called before it was parametrized."""
    parts = path.split(".")
    if "parametrizations" in parts:
        at = parts.index("parametrizations")
        return ".".join([*parts[:at], parts[at + 1]])
    for ending in ("_orig", "_v", "_g"):  # what torch.nn.utils' own norms and masks call them
        if parts[-1].endswith(ending):
            return path.removesuffix(ending)
    return path
