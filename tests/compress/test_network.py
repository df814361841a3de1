"""A pruned and quantized network in torch: calibration, bias correction, what is frozen for the file."""

import networks
import numpy as np
import pytest
import torch
from networks import images, traced

from autocomp.compress.graph import get_parameter
from autocomp.compress.masks import kept_weights
from autocomp.compress.network import QuantizedNetwork
from autocomp.compress.quantize import Grid
from autocomp.network import NETWORK_INPUT
from autocomp.policy import FLOAT, INT8, LayerPolicy, Policy


def everywhere(decision: LayerPolicy, kind=networks.Residual) -> Policy:
    return Policy({layer.name: decision for layer in traced(kind).spec.layers})


def quantized(policy: Policy, kind=networks.Residual, **options) -> QuantizedNetwork:
    network = QuantizedNetwork(traced(kind), policy)
    network.quantize(images(32).split(8), **options)
    return network


def test_a_float_policy_changes_nothing():
    source = traced(networks.Residual)
    network = quantized(Policy())
    frozen = network.freeze()
    assert frozen.ranges == {}
    with torch.no_grad():
        assert torch.equal(network.module(images()), source.graph(images()))
    for layer in source.spec.layers:
        weight = get_parameter(source.graph, source.weights[layer.name]).detach().numpy()
        assert (frozen.layers[layer.name].weight == weight).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_bias_correction_takes_the_mean_shift_away(bits):
    policy = everywhere(LayerPolicy(bits, "float"), networks.Pooled)
    x = images(32)
    with torch.no_grad():
        reference = traced(networks.Pooled).graph(x).mean(0)
        shift = {
            corrected: (quantized(policy, networks.Pooled, correct_bias=corrected).module(x).mean(0) - reference).norm()
            for corrected in (False, True)
        }
    assert shift[True] < (0.7 if bits < 8 else 1.0) * shift[False]


def mean_output(network: QuantizedNetwork | None, kind: type, layer: str) -> torch.Tensor:
    """Mean of a layer's output per channel, (out,); of the float network where `network` is None."""
    source = traced(kind)

    class Record(torch.fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            if n.name == source.layer_nodes[layer]:
                self.seen = value
            return value

    run = Record(source.graph if network is None else network.module)
    with torch.no_grad():
        run.run(images(32))
    return run.seen.mean((0, 2, 3))


@pytest.mark.parametrize(
    ("kind", "layer", "left"), [(networks.Residual, "project.0", 1e-4), (networks.Grouped, "grouped.0", 0.3)]
)
def test_bias_correction_of_one_layer(kind, layer, left):
    # Its inputs are those that it was corrected for: the mean of a 1×1 convolution's output does not move at all; a
    # wider window reads zeros beyond the border, which are not in the mean.
    policy = Policy({layer: LayerPolicy(3, "float")})
    before = mean_output(None, kind, layer)
    shift = [
        (mean_output(quantized(policy, kind, correct_bias=corrected), kind, layer) - before).norm()
        for corrected in (True, False)
    ]
    assert shift[0] < left * shift[1]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("sparsity", [0.0, 0.75])
def test_frozen_weights_are_their_integers_times_their_scales(bits, sparsity):
    frozen = quantized(everywhere(LayerPolicy(bits, "int8", sparsity))).freeze()
    for layer in frozen.layers.values():
        assert layer.levels is not None and layer.ratios is not None
        scale = layer.scales.reshape(-1, *[1] * (layer.weight.ndim - 1))
        np.testing.assert_array_equal(layer.weight, layer.levels * scale)
        assert np.abs(layer.levels).max() <= Grid(bits).largest
        if sparsity:
            assert layer.mask.sum() == kept_weights(layer.weight.size, sparsity)
            assert (layer.levels[~layer.mask] == 0).all()


def test_freezing_settles_the_module_to_what_is_frozen():
    network = quantized(everywhere(LayerPolicy(4, "int8", 0.5)))
    frozen = network.freeze()
    again = network.freeze()
    for name, layer in frozen.layers.items():
        np.testing.assert_array_equal(layer.levels, again.layers[name].levels)
        np.testing.assert_array_equal(layer.ratios, again.layers[name].ratios)


def test_every_integer_tensor_has_a_range_and_no_other():
    source = traced(networks.Residual)
    names = [node.name for node in source.spec.kernels]
    all_int8 = quantized(everywhere(INT8))
    # The head writes the network's float output by itself; the pooling and the flatten keep their input's range.
    assert set(all_int8.ranges) == {NETWORK_INPUT, *range(names.index("head"))}
    narrow, pool, flat = names.index("narrow.0"), names.index("max_pool2d"), names.index("view")
    assert all_int8.ranges[narrow] == all_int8.ranges[pool] == all_int8.ranges[flat]
    head_only = quantized(Policy({"head": INT8}))
    assert set(head_only.ranges) == {flat}
    stem_only = quantized(Policy({"stem.0": INT8}))
    assert set(stem_only.ranges) == {NETWORK_INPUT, 0}


def test_a_float_branch_reads_what_was_not_rounded():
    # stem is float and read by the integer depthwise layer and by the float sum: only the first sees it rounded.
    network = quantized(Policy({"depthwise.0": INT8, "project.0": FLOAT}))
    graph = network.module.graph
    rounded = [n for n in graph.nodes if n.op == "call_module" and n.target == "activation_quantizer_1"]
    assert len(rounded) == 1
    assert [user.name for user in rounded[0].users] == [network.traced.layer_nodes["depthwise.0"]]


@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2])
def test_fewer_bits_lose_more(bits):
    x = images(32)
    with torch.no_grad():
        reference = traced(networks.Residual).graph(x)
        error = (quantized(everywhere(LayerPolicy(bits, "int8"))).module(x) - reference).std() / reference.std()
    least, most = {8: (0, 0.03), 6: (0.01, 0.08), 4: (0.05, 0.3), 3: (0.1, 0.6), 2: (0.2, 0.9)}[bits]
    assert least < error < most


def test_gradients_reach_weights_and_scales():
    network = quantized(everywhere(LayerPolicy(3, "int8", 0.5)))
    _, scales = network.parameters()
    assert len(scales) == 5
    network.module(images(8)).square().mean().backward()
    weights = [get_parameter(network.module, path) for path in network.traced.weights.values()]
    for parameter in (*weights, *scales):
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0
