"""What counts as a layer: what an operator does, whatever its weight is called and however it is computed."""

import networks
import pytest
import spellings
import torch
from networks import INPUTS as ORDINARY
from networks import settled
from spellings import INPUTS, Network, made, stored
from torch import fx, nn

from autocomp.compress.graph import aten, capture, get_parameter
from autocomp.compress.plain_form import PlainForm
from autocomp.compress.prune import prune
from autocomp.compress.trace import trace
from autocomp.compress.tracing.layers import layer_calls
from autocomp.policy import Policy


def captured(kind) -> fx.GraphModule:
    return capture(PlainForm(made(kind)), INPUTS[kind]())


def layers(kind) -> list[str]:
    return [call.name for call in layer_calls(captured(kind).graph)[0]]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (spellings.standardized, ["conv", "head"]),
        (spellings.parametrized, ["conv", "head"]),
        (spellings.products, ["matmul", "einsum", "bmm", "left", "addmm", "tensordot"]),
        (spellings.heads_by_einsum, ["split", "join", "head"]),
        (spellings.low_rank, ["base", "a", "b", "head"]),
        (spellings.tied, ["encode", "encode.weight_1"]),
        (spellings.positions, ["table", "head"]),
        (spellings.shared, ["c", "d", "head"]),
        (spellings.copies, ["a", "b", "c", "head"]),
        (spellings.norm_of_own_parameters, ["kernel", "head"]),
        (spellings.itself_a_convolution, ["conv2d"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_layers_are_called_by_what_their_weight_was_made_of(kind, expected):
    assert layers(kind) == expected


def test_nothing_is_computed_from_parameters_alone():
    for kind in (spellings.standardized, spellings.parametrized, spellings.positions, spellings.low_rank):
        for node in captured(kind).graph.nodes:
            sources = node.all_input_nodes
            assert node.op != "call_function" or not sources or any(s.op != "get_attr" for s in sources), node


def test_a_folded_weight_is_what_the_network_computes():
    network = made(spellings.parametrized)
    graph = capture(PlainForm(network), networks.images())
    torch.testing.assert_close(get_parameter(graph, "conv.weight"), network.conv.weight)
    torch.testing.assert_close(get_parameter(graph, "head.weight"), network.head.weight)
    assert not [name for name, _ in graph.named_parameters() if "parametrizations" in name]


def test_what_draws_random_numbers_is_no_constant():
    network = Network(
        lambda net, x: net.head(x + torch.randn(1, 16) * net.scale), scale=stored(1), head=nn.Linear(16, 4)
    )
    graph = capture(PlainForm(settled(network)), networks.tokens())
    x = networks.tokens()
    with torch.no_grad():
        assert not torch.equal(graph(x), graph(x))


def test_reasons_of_what_is_no_layer():
    def reasons(network: nn.Module, x: torch.Tensor) -> dict[str, str]:
        return {left.name: left.reason for left in layer_calls(capture(PlainForm(settled(network)), x).graph)[1]}

    assert reasons(spellings.shared(), networks.tokens()) == {"b": "its weight is shared by several calls"}
    tied = Network(
        lambda net, ids: nn.functional.linear(net.embed(ids).mean(1), net.embed.weight), embed=nn.Embedding(9, 16)
    )
    assert reasons(tied, torch.randint(0, 9, (4, 5))) == {"embed": "its weight is shared by several calls"}
    cell = Network(lambda net, x: net.cell(x[:, 0])[0], cell=nn.LSTMCell(16, 8))
    found = reasons(cell, networks.tokens())
    assert not found or set(found.values()) == {"what it reads does not depend on the input"}


@pytest.mark.parametrize(
    ("kind", "left"),
    [
        (spellings.norm_over_tokens, 1),
        (spellings.norm_over_features, 0),
        (spellings.norm_of_own_parameters, 0),
        (spellings.norms_of_one_layer, 2),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_batch_norm_is_folded_along_the_axis_that_a_layer_writes_alone(kind, left):
    found = [node for node in captured(kind).graph.nodes if "batch_norm" in str(node.target)]
    assert len(found) == left


def test_each_layer_has_a_bias_of_its_own():
    graph = captured(spellings.shared)
    biases = [call.bias for call in layer_calls(graph.graph)[0]]
    assert len(set(biases)) == len(biases)


def test_same_padding_has_the_odd_zero_at_the_end():
    network = settled(nn.Sequential(nn.Conv2d(3, 8, 4, padding="same", dilation=(1, 2)), nn.ReLU()))
    graph = capture(PlainForm(network), networks.images())
    (conv,) = [node for node in graph.graph.nodes if node.target is aten.conv2d.default]
    assert conv.args[4] == [1, 3]
    with torch.no_grad():
        torch.testing.assert_close(graph(networks.images()), network(networks.images()), atol=1e-5, rtol=1e-5)


# --- pruning follows, or leaves alone ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "prunable"),
    [
        (spellings.views, {"one", "two", "three", "four"}),
        (spellings.patches, {"patch", "embed", "hidden"}),
        (spellings.fixed_numbers, {"three"}),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_pruning_follows_a_reshape_or_leaves_the_group_with_a_reason(kind, prunable):
    source = trace(made(kind), INPUTS[kind](), kind.__name__)
    assert {group.name for group in source.spec.groups if group.prunable} == prunable
    assert all(group.reason for group in source.spec.groups if group.name not in prunable)
    pruned = prune(source, Policy({}, dict.fromkeys(prunable, 3)))
    with torch.no_grad():
        assert pruned(INPUTS[kind]()).shape == (4, 4)
        assert pruned(INPUTS[kind]()[:1]).shape == (1, 4)


def test_a_plain_recurrent_layer_is_traced():
    network = settled(
        Network(
            lambda net, x: net.head(net.rnn(x)[0][:, -1]), rnn=nn.RNN(8, 12, batch_first=True), head=nn.Linear(12, 4)
        )
    )
    x = ORDINARY[networks.Recurrent]()
    source = trace(network, x, "rnn")
    with torch.no_grad():
        torch.testing.assert_close(source.graph(x), network(x), atol=1e-5, rtol=1e-5)
    assert "head" in source.spec.layer_by_name
    assert any("rnn" in left.name for left in source.spec.left_alone if left.what == "quantize")
