"""Peak memory against a runtime played step by step, and against figures worked by hand."""

import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import traced

from autocomp.hardware import memory
from autocomp.hardware.choices import Layout, result_shape
from autocomp.hardware.memory import PeakMemory, peak_memory, scratch_bytes
from autocomp.network import NETWORK_INPUT, KernelNode, NetworkSpec, plan_execution
from autocomp.policy import FLOAT, INT8, Policy
from autocomp.space import SearchSpace, SpaceOptions

KINDS = (networks.Residual, networks.Pooled, networks.Concatenated, networks.Grouped, networks.SqueezeExcite,
         networks.Signal, networks.Transformer, networks.Shuffled, networks.Dense)  # fmt: skip
OPTIONS = SpaceOptions(weight_bits=(8, None), sparsities=(0.0,), channel_multiple=4)


def space_of(kind) -> SearchSpace:
    return SearchSpace.build(traced(kind).spec, OPTIONS)


def draw(space: SearchSpace, n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, space.cardinalities, (n, len(space)))


def everything(network: NetworkSpec, decision) -> Policy:
    return Policy(dict.fromkeys((layer.name for layer in network.layers), decision))


def played(network: NetworkSpec, policy: Policy) -> int:
    """The peak that a runtime reaches which allocates, converts, executes and frees one thing after another."""
    plan = plan_execution(network, policy)
    precisions = [*plan.precisions, "fp32"]  # whoever called reads float
    caller = len(network.kernels)
    steps = [(index, list(dict.fromkeys(node.inputs))) for index, node in enumerate(network.kernels)]
    steps.append((caller, [index for index, node in enumerate(network.kernels) if node.output]))

    def needed(source: int, precision: str, after: int) -> bool:
        return any(source in inputs and precisions[reader] == precision for reader, inputs in steps[after:])

    def elements(source: int) -> int:
        channels, height, width = result_shape(network, source)
        return channels.count(policy) * height * width

    made: dict[int, str] = {NETWORK_INPUT: "fp32"}
    held: dict[tuple[int, str], int] = {(NETWORK_INPUT, "fp32"): 4 * elements(NETWORK_INPUT)}
    peak = sum(held.values())

    def free(after: int) -> None:
        for source, precision in list(held):
            unconverted = precision == made[source] and any(
                source in inputs and (source, precisions[reader]) not in held for reader, inputs in steps[after:]
            )
            caller_holds = (source, precision) == (NETWORK_INPUT, "fp32")
            if not caller_holds and not needed(source, precision, after) and not unconverted:
                del held[source, precision]

    for index, inputs in steps:
        precision = precisions[index]
        for source in inputs:
            if made[source] != precision and (source, precision) not in held:
                held[source, precision] = elements(source) * (1 if precision == "int8" else 4)
                _, height, width = result_shape(network, source)
                relaid = source != NETWORK_INPUT and index != caller and height * width > 1
                peak = max(peak, sum(held.values()) + (3 * elements(source) if relaid else 0))
                if not needed(source, made[source], index) and source != NETWORK_INPUT:
                    del held[source, made[source]]
        if index == caller:
            break
        node = network.kernels[index]
        result = "fp32" if node.output and node.op == "linear" else precision
        over = (node.free or node.op in ("add", "mul", "activation")) and any(
            source != NETWORK_INPUT
            and not any(source in i for _, i in steps[index + 1 :])
            and _unpruned(network, source) == _unpruned(network, index)
            for source in inputs
        )
        made[index] = result
        size = elements(index) * (1 if result == "int8" else 4)
        counts = (np.array(channels.count(policy)) for channels in (node.in_channels, node.out_channels))
        scratch = int(scratch_bytes(node, *counts)) if precision == "int8" else 0
        peak = max(peak, sum(held.values()) + (0 if over else size) + scratch)
        held[index, result] = size
        free(index + 1)
    return peak


def _unpruned(network: NetworkSpec, source: int) -> int:
    channels, height, width = result_shape(network, source)
    return channels.count() * height * width


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_peak_is_that_of_a_runtime_played_step_by_step(kind):
    space = space_of(kind)
    for row in draw(space, 40, seed=0):
        policy = space.decode(row)
        assert peak_memory(space.network, policy) == played(space.network, policy)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_population_holds_what_its_members_hold(kind):
    space = space_of(kind)
    layout = Layout(space)
    peak = PeakMemory(layout)
    genes = np.concatenate([draw(space, 80, seed=1), space.smallest[None], space.largest[None]])
    alone = [peak_memory(space.network, space.decode(row)) for row in genes]
    np.testing.assert_array_equal(peak(layout.columns(genes)), alone)


@pytest.mark.parametrize("kind", [networks.Dense, networks.Residual, networks.SqueezeExcite])
def test_many_readers_are_bounded_from_above(kind, monkeypatch):
    space = space_of(kind)
    monkeypatch.setattr(memory, "_MOST_FLAGS", 1)
    layout = Layout(space)
    peak = PeakMemory(layout)
    genes = draw(space, 80, seed=2)
    alone = np.array([peak_memory(space.network, space.decode(row)) for row in genes])
    bound = peak(layout.columns(genes))
    assert (bound >= alone).all()
    assert (bound > alone).any()
    assert (bound <= 2.5 * alone).all()


def test_a_float_peak_worked_by_hand():
    # Residual, 3×16×16: the stem makes 16×8×8, which is kept for the sum while depthwise and project make as much;
    # the sum is written over one of its inputs.
    assert peak_memory(traced(networks.Residual).spec, Policy()) == 4 * (3 * 256 + 3 * 16 * 64)


def test_an_int8_peak_worked_by_hand():
    # The stem: input 4·768 bytes, its int8 copy 768, result 1,024; three channels fill no vector, so the windows of 27
    # values at 64 positions are unfolded (1,728), and 1,024 sums of 4 bytes are held.
    network = traced(networks.Residual).spec
    assert peak_memory(network, everything(network, INT8)) == 4 * 768 + 768 + 1024 + 1728 + 4096


def test_a_conversion_holds_both_forms():
    # Pooled: 16×8×8 → 32×8×8 → 24×8×8. The second layer alone is float: its input is held as float twice, 8,192
    # bytes, its result likewise, 16,384, before it becomes int8 again; the input of 3,072 bytes stays.
    network = traced(networks.Pooled).spec
    names = [layer.name for layer in network.layers]
    policy = Policy({**dict.fromkeys(names, INT8), names[1]: FLOAT})
    assert peak_memory(network, policy) == 3072 + 2 * 4 * 32 * 64


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 10_000), st.data())
def test_fewer_channels_hold_less_in_float(kind, seed, data):
    space = space_of(kind)
    policy = space.decode(draw(space, 1, seed)[0])
    if not policy.channels:
        return
    group = data.draw(st.sampled_from([*policy.channels]))
    fewer = Policy({}, {**policy.channels, group: max(1, policy.channels[group] - 4)})
    assert peak_memory(space.network, fewer) <= peak_memory(space.network, Policy({}, policy.channels))


@pytest.mark.parametrize(
    ("op", "channels", "window", "stride", "groups", "expected"),
    [
        ("conv", (16, 32), 1, 1, 1, 0),
        ("conv", (16, 32), 3, 1, 1, 8 * 9 * 100),  # pointers to nine places for each of 100 positions
        ("conv", (16, 32), 3, 2, 1, 8 * 9 * 25),
        ("conv", (6, 32), 1, 1, 1, 4 * 32 * 100),  # six channels fill no vector of four: sums
        ("conv", (16, 8), 3, 1, 1, 4 * 8 * 100 + 16 * 9 * 100),  # eight results fill no vector of 16
        ("conv", (16, 32), 3, 1, 4, 4 * 32 * 100 + 4 * 9 * 100),
        ("depthwise", (32, 32), 3, 1, 1, 8 * 9 * 100),
        ("depthwise", (24, 24), 3, 1, 1, 8 * 9 * 100 + 4 * 24 * 100),
        ("linear", (16, 32), 1, 1, 1, 4 * 32 * 100),
        ("add", (16, 16), 1, 1, 1, 0),
    ],
)
def test_scratch_of_integer_kernels(op, channels, window, stride, groups, expected):
    node = KernelNode("k", op, (), None, None, 10, 10, window, window, stride, groups)
    inputs, outputs = (np.array([count]) for count in channels)
    assert scratch_bytes(node, inputs, outputs).tolist() == [expected]
