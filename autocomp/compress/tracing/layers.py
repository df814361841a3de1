"""Which calls of a graph are layers: those whose weight is a stored tensor that nothing else reads.

Of some only the weights are compressed (`network.WEIGHT_ONLY`): they are listed apart.
"""

from dataclasses import dataclass

import torch
from torch import fx

from autocomp.compress.parameters import EMBEDDINGS, LAYERS, argument, bias_path, is_stored, weight_path
from autocomp.compress.tracing.recurrent import CELLS, weights_of
from autocomp.network import LeftAlone


@dataclass(frozen=True, slots=True)
class Call:
    """A layer's call, with the paths of what it reads. bias: None where it has none."""

    node: fx.Node
    name: str
    weight: str
    bias: str | None = None
    kind: str = ""  # of a layer whose weights alone are compressed


def layer_calls(graph: fx.Graph) -> tuple[list[Call], list[LeftAlone]]:
    """The layers of a graph in execution order, and the convolutions and linear layers that are none, with reasons."""
    readers = _readers(graph)
    data = _data(graph)
    calls: list[Call] = []
    left: dict[str, LeftAlone] = {}
    for node in graph.nodes:
        if node.target not in LAYERS:
            continue
        path, bias = weight_path(node), bias_path(node)
        name = path.removesuffix(".weight") if path is not None else node.name
        reason = _reason(node, readers) if node.args[0] in data else "what it reads does not depend on the input"
        if reason:
            left[name] = LeftAlone(name, "quantize", reason)
        else:
            assert path is not None
            calls.append(Call(node, name, path, bias))
    return calls, list(left.values())


def weight_only_calls(graph: fx.Graph) -> tuple[list[Call], list[LeftAlone]]:
    """The layers of which only the weights are compressed, in execution order, and those that are left, with reasons.

    Everything else reads a table of an embedding as a whole, so that one that is shared stays as it is.
    """
    readers = _readers(graph)
    data = _data(graph)
    calls: list[Call] = []
    left: dict[str, LeftAlone] = {}
    for node in graph.nodes:
        if node.target in EMBEDDINGS:
            kind, weights, source = "embedding", [node.args[0]], node.args[1]
        elif node.target in CELLS:
            kind, weights, source = "recurrent", weights_of(node), node.args[0]
            if not weights:
                left[node.name] = LeftAlone(node.name, "quantize", "it has projections (proj_size)")
        else:
            continue
        for weight in weights:
            path = str(weight.target) if is_stored(weight) else None
            name = path.removesuffix(".weight") if path is not None else node.name
            reason = ""
            if path is None:
                reason = "its weight is computed from the input"
            elif readers[path] > 1:
                reason = "its weight is shared by several calls"
            elif source not in data:
                reason = "what it reads does not depend on the input"
            if reason:
                left[name] = LeftAlone(name, "quantize", reason)
            else:
                assert path is not None
                calls.append(Call(node, name, path, kind=kind))
    return calls, list(left.values())


def _readers(graph: fx.Graph) -> dict[str, int]:
    """How often each stored tensor is read."""
    readers: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            readers[str(node.target)] = readers.get(str(node.target), 0) + len(node.users)
    return readers


def _data(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose values depend on those of the network's input, and not on its shape alone."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or (
            not isinstance(node.meta.get("val"), torch.SymInt) and any(s in found for s in node.all_input_nodes)
        ):
            found.add(node)
    return found


def _reason(node: fx.Node, readers: dict[str, int]) -> str:
    """Why a call is no layer that can be compressed; "" if it is one."""
    weight, bias = node.args[1], argument(node, 2, "bias", None)
    assert isinstance(weight, fx.Node)
    if not is_stored(weight):
        return "its weight is computed from the input"
    if readers[str(weight.target)] > 1:
        return "its weight is shared by several calls"
    if weight.meta["val"].ndim < 2:
        return "its weight is a vector"
    if bias is not None and not is_stored(bias):
        return "its bias is computed from the input"
    if isinstance(bias, fx.Node) and readers[str(bias.target)] > 1:
        return "its bias is shared with another operator"
    return ""
