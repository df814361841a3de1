"""Execution plans and shapes, worked by hand."""

import pytest

from autocomp.network import NETWORK_INPUT, Channels, KernelNode, LayerSpec, NetworkSpec, plan_execution
from autocomp.policy import FLOAT, INT8, LayerPolicy, Policy

THREE = Channels(((None, 3),))
SIXTEEN = Channels((("g", 16),))


def conv(name: str, *inputs: int, output: bool = False, op: str = "conv") -> KernelNode:
    return KernelNode(name, op, inputs, SIXTEEN, SIXTEEN, layer=name, int8=True, output=output)


def add(*inputs: int, int8: bool = True) -> KernelNode:
    return KernelNode("add", "add", inputs, SIXTEEN, SIXTEEN, int8=int8)


def network(*kernels: KernelNode) -> NetworkSpec:
    layers = tuple(
        LayerSpec(node.name, node.op, (16, 16, 3, 3), SIXTEEN, SIXTEEN, 64)
        for node in kernels
        if node.layer is not None
    )
    return NetworkSpec("by hand", (3, 8, 8), layers, (), kernels)


RESIDUAL = network(conv("a", NETWORK_INPUT), conv("b", 0), add(0, 1), conv("head", 2, output=True, op="linear"))


def test_all_float_needs_no_conversion() -> None:
    plan = plan_execution(RESIDUAL, Policy())
    assert plan.precisions == ("fp32",) * 4
    assert plan.conversions == ()


def test_all_int8_converts_at_the_input_only() -> None:
    # The add runs as int8 because both inputs are; a linear layer writes the network's float output by itself.
    plan = plan_execution(RESIDUAL, Policy({"a": INT8, "b": INT8, "head": INT8}))
    assert plan.precisions == ("int8",) * 4
    assert plan.conversions == ((NETWORK_INPUT, "quantize"),)


def test_a_float_branch_makes_the_sum_float() -> None:
    # a is int8, b float: a's result is dequantized once for b and the add together, the add's quantized for the head.
    plan = plan_execution(RESIDUAL, Policy({"a": INT8, "b": LayerPolicy(4, "float"), "head": INT8}))
    assert plan.precisions == ("int8", "fp32", "fp32", "int8")
    assert plan.conversions == ((NETWORK_INPUT, "quantize"), (0, "dequantize"), (2, "quantize"))


def test_one_tensor_is_quantized_once_for_all_its_readers() -> None:
    split = network(conv("a", NETWORK_INPUT), conv("b", 0), conv("c", 0), add(1, 2))
    plan = plan_execution(split, Policy({"a": FLOAT, "b": INT8, "c": INT8}))
    assert plan.precisions == ("fp32", "int8", "int8", "int8")
    assert plan.conversions == ((0, "quantize"),)


def test_what_has_no_integer_kernel_stays_float() -> None:
    plan = plan_execution(network(conv("a", NETWORK_INPUT), add(0, 0, int8=False)), Policy({"a": INT8}))
    assert plan.precisions == ("int8", "fp32")
    assert plan.conversions == ((NETWORK_INPUT, "quantize"), (0, "dequantize"))


def test_an_integer_convolution_at_the_output_is_dequantized() -> None:
    plan = plan_execution(network(conv("a", NETWORK_INPUT, output=True)), Policy({"a": INT8}))
    assert plan.precisions == ("int8",)
    assert plan.conversions == ((NETWORK_INPUT, "quantize"), (0, "dequantize"))


def test_channels_of_a_concatenation_and_of_a_flatten() -> None:
    both = Channels((("g", 16), (None, 4), ("h", 8)), repeat=9)
    assert both.count() == 9 * 28
    assert both.count(Policy(channels={"g": 8})) == 9 * 20
    assert both.groups == ("g", "h")


def test_weights_and_macs_worked_by_hand() -> None:
    full = LayerSpec("conv", "conv", (16, 3, 3, 3), THREE, SIXTEEN, positions=64)
    assert (full.weights(), full.macs()) == (432, 27_648)
    half = Policy({"conv": LayerPolicy(8, "int8", 0.9)}, {"g": 8})
    assert full.shape(half) == (8, 3, 3, 3)
    assert (full.weights(half), full.macs(half)) == (216, 13_824)  # zeros are counted: no kernel skips them
    depthwise = LayerSpec("dw", "depthwise", (16, 1, 3, 3), SIXTEEN, SIXTEEN, positions=64, groups=16, depthwise=True)
    assert depthwise.shape(half) == (8, 1, 3, 3)
    grouped = LayerSpec("grouped", "conv", (16, 4, 3, 3), SIXTEEN, SIXTEEN, positions=64, groups=4)
    assert grouped.shape(half) == (16, 4, 3, 3)


def test_layer_names_must_be_unique() -> None:
    layer = LayerSpec("conv", "conv", (16, 3, 3, 3), THREE, SIXTEEN, positions=64)
    with pytest.raises(ValueError, match="not unique"):
        NetworkSpec("twice", (3, 8, 8), (layer, layer), (), ())


def test_a_device_without_floating_point_runs_all_between_layers_in_integers() -> None:
    net = network(conv("a", NETWORK_INPUT), add(0, 0, int8=False), conv("head", 1, op="linear", output=True))
    plan = plan_execution(net, Policy({"a": INT8, "head": INT8}), integer_only=True)
    assert plan.precisions == ("int8", "int8", "int8")
    assert plan.conversions == ()  # the caller's, also at the input and at the output
    assert plan.integer_only and not plan_execution(net, Policy()).integer_only
    # What a policy leaves in float stays visible, for the writer to refuse.
    assert plan_execution(net, Policy({"head": INT8}), integer_only=True).precisions[0] == "fp32"
