"""Pruning against an oracle: dropping channels equals keeping them and making whoever reads them read zeros."""

import copy

import networks
import numpy as np
import pytest
import torch
from networks import INPUTS, traced
from torch import fx, nn

from autocomp.compress.graph import get_parameter
from autocomp.compress.prune import channel_importance, check_policy, prune, select_channels
from autocomp.compress.trace import Traced
from autocomp.errors import UserError
from autocomp.network import Channels
from autocomp.policy import LayerPolicy, Policy

#: Networks with something to prune → the groups to prune, with the channels that stay.
PRUNED = {
    networks.Residual: {"stem.0": 8, "narrow.0": 16},
    networks.Pooled: {"first.0": 8, "second.0": 8, "third.0": 16},
    networks.Concatenated: {"left.0": 8, "right.0": 3, "after.0": 8},
    networks.Signal: {"first.0": 8},
    networks.SqueezeExcite: {"stem.0": 8, "squeeze": 5},
    networks.Transformer: {"block.linear1": 24},
    networks.Shuffled: {"branch.0": 4},
}
KINDS = list(PRUNED)


def stays(channels: Channels, kept: dict[str, torch.Tensor]) -> torch.Tensor:
    """1 for the elements along an axis that stay, 0 for those that go."""
    pieces = []
    for group, size in channels.parts:
        piece = torch.zeros(size) if group in kept else torch.ones(size)
        if group in kept:
            piece[kept[group]] = 1
        pieces.append(piece.repeat_interleave(channels.repeat))
    return torch.cat(pieces)


def masked(source: Traced, kept: dict[str, torch.Tensor]) -> fx.GraphModule:
    """The whole network with zeros in the weights of all layers that read a channel that goes."""
    graph = copy.deepcopy(source.graph)
    with torch.no_grad():
        for layer in source.spec.layers:
            if layer.groups == 1:
                weight = get_parameter(graph, source.weights[layer.name])
                keep = stays(layer.in_channels, kept)
                weight.mul_(keep.reshape(1, -1, *[1] * (weight.ndim - 2)))
    return graph


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_pruned_network_computes_what_the_masked_one_does(kind):
    source = traced(kind)
    policy = Policy(channels=PRUNED[kind])
    kept = select_channels(source, policy)
    assert {name: len(index) for name, index in kept.items()} == PRUNED[kind]
    x = INPUTS[kind]()
    with torch.no_grad():
        whole, small = source.graph(x), prune(source, policy)(x)
        torch.testing.assert_close(small, masked(source, kept)(x), atol=1e-4, rtol=1e-4)
    assert (small - whole).abs().max() > 1e-2  # and it is not the network that it was


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_weights_take_the_shapes_that_the_spec_promises(kind):
    source = traced(kind)
    policy = Policy(channels=PRUNED[kind])
    graph = prune(source, policy)
    for layer in source.spec.layers:
        assert tuple(get_parameter(graph, source.weights[layer.name]).shape) == layer.shape(policy)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_traced_network_is_not_changed(kind):
    source = traced(kind)
    before = [p.clone() for p in source.graph.parameters()]
    code = source.graph.code
    graph = prune(source, Policy(channels=PRUNED[kind]))
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.zero_()
    assert source.graph.code == code
    assert all(torch.equal(a, b) for a, b in zip(before, source.graph.parameters(), strict=True))


def test_the_most_important_channels_stay():
    source = copy.deepcopy(traced(networks.Pooled))
    weight = get_parameter(source.graph, source.weights["second.0"])
    with torch.no_grad():
        weight[[3, 7, 11, 30]] *= 100
        weight[:2] = 0
    importance = channel_importance(source)["second.0"]
    assert set(importance.topk(4).indices.tolist()) == {3, 7, 11, 30}
    assert select_channels(source, Policy(channels={"second.0": 4}))["second.0"].tolist() == [3, 7, 11, 30]
    assert not set(select_channels(source, Policy(channels={"second.0": 30}))["second.0"].tolist()) & {0, 1}


def test_each_coupled_producer_has_one_vote():
    # One producer a thousand times as large as the others: the scale of a layer counts nothing.
    source = copy.deepcopy(traced(networks.Residual))
    before = channel_importance(source)["stem.0"]
    with torch.no_grad():
        get_parameter(source.graph, source.weights["project.0"]).mul_(1000)
    np.testing.assert_allclose(channel_importance(source)["stem.0"], before, rtol=1e-4)
    assert before.mean() == pytest.approx(3, rel=1e-4)  # three producers, each with mean 1


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy({"nowhere": LayerPolicy(8)}), "layer 'nowhere', which Residual does not have"),
        (Policy(channels={"nowhere": 8}), "channel group 'nowhere', which Residual does not have"),
        (Policy(channels={"stem.0": 17}), "'stem.0' has 16 channels, the policy keeps 17"),
        (Policy(channels={"head": 5}), "'head' cannot be pruned: the network's output"),
    ],
)
def test_a_policy_of_another_network_is_refused(policy, expected):
    with pytest.raises(UserError, match=expected):
        check_policy(traced(networks.Residual).spec, policy)


def test_an_unpruned_group_may_be_named():
    policy = Policy(channels={"stem.0": 16, "head": 10})
    check_policy(traced(networks.Residual).spec, policy)
    assert select_channels(traced(networks.Residual), policy) == {}


def test_pruning_everything_away_but_one_channel():
    source = traced(networks.Residual)
    graph = prune(source, Policy(channels={"stem.0": 1, "narrow.0": 1}))
    with torch.no_grad():
        assert graph(INPUTS[networks.Residual]()).shape == (4, 10)


def test_batches_of_any_size_still_pass_a_flatten():
    source = traced(networks.Residual)
    graph: nn.Module = prune(source, Policy(channels={"narrow.0": 8}))
    with torch.no_grad():
        whole = graph(networks.images(6))
        parts = torch.cat([graph(networks.images(6)[:1]), graph(networks.images(6)[1:])])
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-5)
