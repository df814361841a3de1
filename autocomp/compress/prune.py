"""Structured pruning: which channels of each coupled group stay, and the smaller network that is left."""

import copy
from collections.abc import Mapping

import torch
from torch import fx

from autocomp.compress.graph import argument, get_parameter, set_parameter
from autocomp.compress.trace import Traced
from autocomp.compress.tracing.operators import RESHAPES
from autocomp.errors import UserError
from autocomp.network import Channels, NetworkSpec, activation_fault, pattern_fault
from autocomp.policy import Policy


def check_policy(spec: NetworkSpec, policy: Policy) -> None:
    """Raises UserError naming the layer or group of `policy` that the network does not have or cannot prune."""
    for name in policy.layers:
        if name not in spec.layer_by_name:
            raise UserError(f"the policy decides about layer {name!r}, which {spec.name} does not have")
    for name, kept in policy.channels.items():
        group = spec.group_by_name.get(name)
        if group is None:
            raise UserError(f"the policy decides about channel group {name!r}, which {spec.name} does not have")
        if kept > group.channels:
            raise UserError(f"channel group {name!r} has {group.channels} channels, the policy keeps {kept}")
        if kept < group.channels and not group.prunable:
            raise UserError(f"channel group {name!r} cannot be pruned: {group.reason}")
    for layer in spec.layers:
        decision = policy.layer(layer.name)
        fault = pattern_fault(layer, decision.pattern, policy) or activation_fault(layer, decision)
        if fault is not None:
            raise UserError(f"layer {layer.name!r} cannot be {decision}: {fault}")


def channel_importance(traced: Traced) -> dict[str, torch.Tensor]:
    """Importance of each channel of each prunable group: group name → (channels,), higher is more important.

    The L2 norm of the channel's filters (Li et al. 2017 use L1), taken after batch-norm folding so that its scale
    counts, normalized per producer and summed over the producers that are coupled.
    """
    scores: dict[str, torch.Tensor] = {}
    for group in traced.spec.groups:
        if not group.prunable:
            continue
        total = torch.zeros(group.channels)
        for producer in group.producers:
            weight = get_parameter(traced.graph, traced.weights[producer]).detach()
            norm = weight.flatten(1).norm(dim=1)
            parts = traced.spec.layer_by_name[producer].out_channels.parts
            start = 0
            for name, size in parts:
                if name == group.name:
                    piece = norm[start : start + size]
                    total += piece / piece.mean().clamp_min(1e-12)
                start += size
        scores[group.name] = total
    return scores


def select_channels(traced: Traced, policy: Policy) -> dict[str, torch.Tensor]:
    """Indices that each pruned group keeps, ascending: group name → (kept,) int64. Unpruned groups are left out."""
    importance = channel_importance(traced)
    return {
        name: importance[name].topk(kept).indices.sort().values
        for name, kept in policy.channels.items()
        if kept < traced.spec.group_by_name[name].channels
    }


def kept_positions(channels: Channels, kept: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Indices along a channel axis that stay when each group keeps its `kept` ones; None if all do."""
    if not any(group in kept for group, _ in channels.parts):
        return None
    pieces, start = [], 0
    for group, size in channels.parts:
        index = kept.get(group, torch.arange(size)) if group is not None else torch.arange(size)
        pieces.append(index + start)
        start += size
    index = torch.cat(pieces)
    if channels.repeat > 1:
        index = (index[:, None] * channels.repeat + torch.arange(channels.repeat)).reshape(-1)
    return index


def prune(traced: Traced, policy: Policy) -> fx.GraphModule:
    """A copy of the float graph with only the channels that `policy` keeps. The traced network is not changed."""
    graph = copy.deepcopy(traced.graph)
    kept = select_channels(traced, policy)
    nodes = {node.name: node for node in graph.graph.nodes}
    for layer in traced.spec.layers:
        node = nodes[traced.layer_nodes[layer.name]]
        out_index = kept_positions(layer.out_channels, kept)
        in_index = None if layer.groups > 1 else kept_positions(layer.in_channels, kept)
        path = traced.weights[layer.name]
        weight = get_parameter(graph, path)
        if out_index is not None:
            weight = weight[out_index]
            bias = argument(node, 2, "bias", None)
            if isinstance(bias, fx.Node):
                set_parameter(graph, str(bias.target), get_parameter(graph, str(bias.target))[out_index])
        if in_index is not None:
            weight = weight[:, in_index]
        set_parameter(graph, path, weight)
        if layer.depthwise and out_index is not None:
            node.args = (*node.args[:6], len(out_index))
    for node in graph.graph.nodes:
        if node.name in traced.reshapes and node.target in RESHAPES:
            axis, channels = traced.reshapes[node.name]
            sizes = list(node.args[1])
            sizes[axis] = channels.count(policy)
            node.args = (node.args[0], sizes)
    graph.recompile()
    return graph
