"""What tracing finds: coupled channels, kernels, what is left alone; and networks that cannot be traced."""

import copy

import networks
import onnx
import pytest
import torch
from networks import INPUTS, images, settled, traced
from torch import nn

from autocomp.compress.trace import load, trace
from autocomp.errors import UserError
from autocomp.network import NETWORK_INPUT, Channels

KINDS = list(INPUTS)


def groups(kind: type[nn.Module]) -> dict[str, tuple[str, ...]]:
    """Prunable group → its producers."""
    return {group.name: group.producers for group in traced(kind).spec.groups if group.prunable}


def frozen(kind: type[nn.Module]) -> dict[str, str]:
    return {item.name: item.reason for item in traced(kind).spec.left_alone if item.what == "prune"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_graph_computes_what_the_network_does(kind):
    # Batch-norm is folded into the layer before it; 4e-7 a layer is rounding, 1e-4 would be a mistake.
    graph, x = traced(kind).graph, INPUTS[kind]()
    network = settled(kind())
    with torch.no_grad():
        torch.testing.assert_close(graph(x), network(x), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(graph(x[:1]), network(x[:1]), atol=1e-4, rtol=1e-4)
    assert not any("batch_norm" in str(node.target) for node in graph.graph.nodes)


def test_an_input_that_shares_a_name_with_python_is_called_the_same_in_both_forms():
    # torch.export calls a parameter `input`, as that of nn.Sequential, input_1.
    source = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), images(1), "sequential")
    assert [value.name for value in onnx.load_model_from_string(source.template).graph.input] == [source.input_name]
    onnx.checker.check_model(onnx.load_model_from_string(source.template), full_check=True)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_weight_of_a_layer_is_found_once(kind):
    spec = traced(kind).spec
    network = settled(kind())
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    for layer in spec.layers:
        name = layer.name if layer.name in shapes else f"{layer.name}.weight"
        assert layer.weight_shape == shapes[name]
    found = sum(isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) for module in network.modules())
    found += 2 * sum(isinstance(module, nn.RNNBase) for module in network.modules())  # on the input and on the state
    expected = {networks.Shared: found - 1, networks.Transformer: found + 1}  # the attention's own input projection
    assert len(spec.layers) == expected.get(kind, found)


def test_what_is_added_is_kept_or_dropped_together():
    assert groups(networks.Residual) == {
        "stem.0": ("stem.0", "depthwise.0", "project.0"),
        "narrow.0": ("narrow.0",),
    }


def test_a_depthwise_layer_shares_the_group_of_its_input():
    layer = traced(networks.Residual).spec.layer_by_name["depthwise.0"]
    assert layer.depthwise
    assert layer.in_channels == layer.out_channels == Channels((("stem.0", 16),))


def test_a_linear_layer_behind_a_flatten_reads_each_channel_several_times():
    head = traced(networks.Residual).spec.layer_by_name["head"]
    assert head.in_channels == Channels((("narrow.0", 24),), repeat=16)


def test_a_concatenation_keeps_its_parts_apart():
    after = traced(networks.Concatenated).spec.layer_by_name["after.0"]
    assert after.in_channels == Channels((("left.0", 16), ("right.0", 8)))
    assert set(groups(networks.Concatenated)) == {"left.0", "right.0", "after.0"}


def test_a_gate_is_coupled_to_what_it_gates():
    assert groups(networks.SqueezeExcite) == {"stem.0": ("stem.0", "excite"), "squeeze": ("squeeze",)}
    assert ("sigmoid", "quantize") in {(a.name, a.what) for a in traced(networks.SqueezeExcite).spec.left_alone}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_networks_output_cannot_be_pruned(kind):
    assert frozen(kind)["head"] == "the network's output"
    assert traced(kind).spec.layer_by_name["head"].out_channels.groups == ()


def test_a_grouped_convolution_is_frozen_with_its_reason():
    assert groups(networks.Grouped) == {}
    for name in ("stem.0", "grouped.0"):
        assert "grouped.0 is a grouped convolution" in frozen(networks.Grouped)[name]


def test_a_split_freezes_what_is_split():
    assert "split" in frozen(networks.Shuffled)["stem.0"]
    assert set(groups(networks.Shuffled)) == {"branch.0"}


def test_a_shared_weight_is_left_alone():
    spec = traced(networks.Shared).spec
    assert "again" not in spec.layer_by_name
    assert ("again", "quantize", "its weight is shared by several calls") in {
        (item.name, item.what, item.reason) for item in spec.left_alone
    }
    assert groups(networks.Shared) == {}


def test_a_one_dimensional_network():
    spec = traced(networks.Signal).spec
    assert spec.input_shape == (2, 64)
    assert [layer.op for layer in spec.layers] == ["conv1d", "conv1d", "linear"]
    assert groups(networks.Signal) == {"first.0": ("first.0", "second.0")}
    first = spec.kernels[0]
    assert (first.height, first.width, first.kernel_h, first.kernel_w, first.stride) == (1, 64, 1, 5, 2)


def test_a_recurrent_layer_stays_as_it_is_and_is_listed():
    for kind in (networks.Recurrent, networks.ConvolutionThenRecurrent):
        spec = traced(kind).spec
        assert ("lstm", "quantize") in {(item.name, item.what) for item in spec.left_alone}
        (lstm,) = [node for node in spec.kernels if node.name == "lstm"]
        assert not lstm.int8 and lstm.inputs
    assert "lstm" in frozen(networks.ConvolutionThenRecurrent)["conv"]


def test_a_transformer_block():
    spec = traced(networks.Transformer).spec
    assert groups(networks.Transformer) == {"block.linear1": ("block.linear1",)}
    listed = {item.name for item in spec.left_alone if item.what == "quantize"}
    assert {"scaled_dot_product_attention", "layer_norm"} <= listed
    # 12 tokens, wherever the attention puts the batch axis.
    assert {layer.name: layer.positions for layer in spec.layers if layer.positions != 12} == {"head": 1}


def test_kernels_worked_by_hand():
    kernels = traced(networks.Residual).spec.kernels
    assert [(k.op, k.inputs, k.height, k.stride) for k in kernels] == [
        ("conv", (NETWORK_INPUT,), 16, 2),
        ("depthwise", (0,), 8, 1),
        ("conv", (1,), 8, 1),
        ("add", (0, 2), 8, 1),
        ("conv", (3,), 8, 1),
        ("max_pool", (4,), 8, 2),
        ("activation", (5,), 4, 1),  # the flatten: free
        ("linear", (6,), 1, 1),
    ]
    assert [k.free for k in kernels] == [False] * 6 + [True, False]
    assert [k.output for k in kernels] == [False] * 7 + [True]


def test_padding_of_its_own_belongs_to_the_convolution_that_it_feeds():
    network = nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(512, 2)
    )
    spec = trace(network.eval(), torch.randn(2, 3, 16, 16), "padded").spec
    conv = next(node for node in spec.kernels if node.op == "conv")
    assert (conv.height, conv.width, conv.stride) == (16, 16, 2)


def test_multiply_accumulates_worked_by_hand():
    # stem 432·64 + depthwise 144·64 + project 256·64 + narrow 384·64 + head 3840
    assert traced(networks.Residual).spec.macs() == (432 + 144 + 256 + 384) * 64 + 3840


def test_a_traced_network_is_read_back_from_its_folder(tmp_path):
    network = settled(networks.Pooled())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    kept = trace(network, images(), "kept", tmp_path)
    again = load(tmp_path)
    assert again.spec == kept.spec == trace(network, images(), "kept").spec
    x = images(3, seed=5)
    torch.testing.assert_close(again.graph(x), kept.graph(x), rtol=0, atol=0)
    for name, value in network.state_dict().items():  # the user's module is not touched
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_images_may_be_stored_channels_last(kind):
    # Finetuning stores them so: twice as fast on a CPU.
    x = INPUTS[kind]()
    if x.ndim == 4:
        graph = copy.deepcopy(traced(kind).graph).to(memory_format=torch.channels_last)
        with torch.no_grad():
            y = graph(x.contiguous(memory_format=torch.channels_last))
            torch.testing.assert_close(y, traced(kind).graph(x), atol=1e-4, rtol=1e-4)


class ReturnsNumbers(nn.Module):
    def forward(self, x):
        return 1, {"size": x.shape[2]}


class Fails(nn.Module):
    def forward(self, x):
        return nn.functional.linear(x.flatten(1), torch.zeros(10, 7))


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(768, 10)

    def forward(self, x):
        return self.head(x.reshape(4, 768))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(768, 10)

    def forward(self, x):
        return self.head(x.flatten(1)) if x.sum() > 0 else x.flatten(1)[:, :10]


class MixesBatch(nn.Module):
    def forward(self, x):
        return x.mean((0, 2))


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (ReturnsNumbers(), "expected the network to return a tensor, or a dict, tuple or data class of tensors"),
        (Fails(), r"fails on its example input of shape \(4, 3, 16, 16\)"),
        (FixedBatch(), "fixed batch size"),
        (Branches(), "control flow"),
        (MixesBatch(), "batch of 4 as its first axis"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_cannot_be_traced_is_one_line_that_says_why(network, expected):
    with pytest.raises(UserError, match=expected) as caught:
        trace(network, images(), "refused")
    assert "\n" not in str(caught.value)
