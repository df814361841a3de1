"""Costs of populations against the same costs added up one candidate at a time."""

import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import traced
from roofline import Roofline, true_us

from autocomp.export.size import FileSizes
from autocomp.export.writer import OnnxWriter
from autocomp.hardware import choices
from autocomp.hardware.breakdown import break_down
from autocomp.hardware.choices import Layout, choosable_kernels
from autocomp.hardware.cost import CostModel, network_kernels
from autocomp.hardware.roofline import Roofline as Limits
from autocomp.hardware.table import LatencyTable
from autocomp.network import NETWORK_INPUT, plan_execution
from autocomp.policy import FLOAT, INT8, LayerPolicy, Policy
from autocomp.space import SearchSpace, SpaceOptions

KINDS = (networks.Residual, networks.Concatenated, networks.Grouped, networks.SqueezeExcite, networks.Signal,
         networks.Transformer, networks.Shuffled, networks.Dense)  # fmt: skip
OPTIONS = SpaceOptions(weight_bits=(2, 3, 4, 8, None), channel_multiple=4)
#: What an NPU may be offered besides.
CODED = SpaceOptions(
    weight_bits=(2, 8, None), channel_multiple=4, clusters=(2, 16), patterns=("unstructured", "block", "2:4")
)
_MODELS: dict[tuple[type, SpaceOptions], CostModel] = {}


def model(kind, options=OPTIONS) -> CostModel:
    if (kind, options) not in _MODELS:
        source = traced(kind)
        space = SearchSpace.build(source.spec, options)
        _MODELS[kind, options] = CostModel(space, Roofline(), FileSizes(OnnxWriter(source)))
    return _MODELS[kind, options]


def random_genes(space: SearchSpace, n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, space.cardinalities, (n, len(space)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [*((kind, OPTIONS) for kind in KINDS), (networks.Residual, CODED), (networks.Transformer, CODED)],
    ids=lambda value: value.__name__ if isinstance(value, type) else "coded" if value is CODED else "plain",
)
def test_a_population_costs_what_its_members_cost(kind, options):
    costs = model(kind, options)
    genes = random_genes(costs.space, 60, seed=1)
    genes = np.concatenate([genes, costs.space.smallest[None], costs.space.largest[None]])
    together = costs(genes)
    alone = [costs.of_policy(costs.space.decode(row)) for row in genes]
    for figure in ("latency_ms", "latency_low_ms", "latency_high_ms"):
        expected = [float(getattr(one, figure)[0]) for one in alone]
        np.testing.assert_allclose(getattr(together, figure), expected, rtol=1e-9)
    for figure in ("size_bytes", "memory_bytes"):
        np.testing.assert_array_equal(getattr(together, figure), [float(getattr(one, figure)[0]) for one in alone])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_plan_of_a_population_is_that_of_its_members(kind):
    costs = model(kind)
    layout, genes = costs.layout, random_genes(costs.space, 40, seed=2)
    columns = layout.columns(genes)
    for row, vector in enumerate(genes):
        plan = plan_execution(costs.network, costs.space.decode(vector))
        executed = [bool(columns[flag.column, row]) for flag in layout.executed]
        assert tuple("int8" if int8 else "fp32" for int8 in executed) == plan.precisions
        converted = {
            (source, "dequantize" if columns[layout.stored[source].column, row] else "quantize")
            for source, flag in layout.converted.items()
            if columns[flag.column, row]
        }
        assert converted == set(plan.conversions)


def test_a_latency_worked_by_hand():
    # Float: five kernels beside the free flatten are layers, then the add and the pooling.
    costs = model(networks.Residual)
    kernels = [kernel for kernel, _ in network_kernels(costs.network, Policy())]
    assert [kernel.op for kernel in kernels] == ["conv", "depthwise", "conv", "add", "conv", "max_pool", "linear"]
    assert float(costs.of_policy(Policy()).latency_ms[0]) == pytest.approx(sum(map(true_us, kernels)) / 1000)
    # The stem: 2 µs, 432·64 multiply-accumulates, 4 bytes for each of 768 inputs, 1,024 outputs and 432 weights.
    assert true_us(kernels[0]) == pytest.approx(2 + 27.648 + 4 * (768 + 1024 + 432) / 1000)


def test_conversions_cost_time():
    costs = model(networks.Residual)
    everything = dict.fromkeys((layer.name for layer in costs.network.layers), INT8)
    int8 = network_kernels(costs.network, Policy(everything))
    assert [kernel.op for kernel, _ in int8][-1:] == ["quantize"]
    back_and_forth = network_kernels(costs.network, Policy({**everything, "project.0": FLOAT}))
    # depthwise → float for project; the add is float with it, so the stem is dequantized too, and the sum quantized.
    assert sorted(k.op for k, _ in back_and_forth if "quantize" in k.op) == ["dequantize"] * 2 + ["quantize"] * 2


def test_per_kernel_costs_add_up():
    costs = model(networks.Concatenated)
    for row in random_genes(costs.space, 10, seed=3):
        policy = costs.space.decode(row)
        kernels = [(kernel, layer or "") for kernel, layer in network_kernels(costs.network, policy)]
        total = break_down(kernels, Roofline(), Limits(LatencyTable({}))).latency_ms
        assert total == pytest.approx(float(costs.of_policy(policy).latency_ms[0]))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kernel_of_a_candidate_was_foreseen(kind):
    costs = model(kind)
    foreseen = set(choosable_kernels(costs.space))
    for row in random_genes(costs.space, 30, seed=4):
        assert {kernel for kernel, _ in network_kernels(costs.network, costs.space.decode(row))} <= foreseen


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 10_000), st.data())
def test_fewer_channels_cost_less(kind, seed, data):
    costs = model(kind)
    genes = random_genes(costs.space, 1, seed)[0]
    groups = [i for i, gene in enumerate(costs.space.genes) if gene.kind == "channels" and genes[i] > 0]
    if groups:
        fewer = genes.copy()
        fewer[data.draw(st.sampled_from(groups))] -= 1
        before, after = costs(genes), costs(fewer)
        assert after.latency_ms[0] < before.latency_ms[0]
        # A definition more may be needed where a smaller layer is packed the other way.
        assert after.size_bytes[0] < before.size_bytes[0] + 1500


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 10_000), st.data())
def test_sparsity_saves_no_time(kind, seed, data):
    costs = model(kind)
    genes = random_genes(costs.space, 1, seed)[0]
    sparse = [i for i, gene in enumerate(costs.space.genes) if gene.kind == "sparsity"]
    other = genes.copy()
    other[data.draw(st.sampled_from(sparse))] = 0
    assert costs(other).latency_ms[0] == costs(genes).latency_ms[0]


def test_weight_bits_save_bytes_and_no_time():
    costs = model(networks.Residual)
    names = [layer.name for layer in costs.network.layers]
    found = [costs.of_policy(Policy(dict.fromkeys(names, LayerPolicy(bits, "int8")))) for bits in (2, 4, 8)]
    sizes = [float(one.size_bytes[0]) for one in found]
    assert sizes == sorted(sizes)
    assert len({float(one.latency_ms[0]) for one in found}) == 1


def test_the_band_holds_the_latency():
    found = model(networks.Concatenated)(random_genes(model(networks.Concatenated).space, 20, seed=5))
    assert (found.latency_low_ms < found.latency_ms).all()
    assert (found.latency_ms < found.latency_high_ms).all()


def test_a_definition_counts_once_a_file():
    costs = model(networks.Residual)
    layer = costs.network.layers[0]
    definition = sum(costs.sizes.function_bytes(layer, LayerPolicy(4, "int8")).values())
    assert definition > 300
    one = Policy({"stem.0": LayerPolicy(4, "int8")})
    two = Policy({"stem.0": LayerPolicy(4, "int8"), "project.0": LayerPolicy(4, "int8")})
    more = float(costs.of_policy(two).size_bytes[0] - costs.of_policy(one).size_bytes[0])
    assert more < 0  # 128 bytes for 1,024, and no second definition of 4-bit weights


def test_more_sums_of_channels_than_positions_are_rounded_up(monkeypatch):
    exact = model(networks.Dense)
    monkeypatch.setattr(choices, "MOST_POSITIONS", 12)
    rough = CostModel(exact.space, Roofline(), exact.sizes)
    genes = random_genes(exact.space, 200, seed=6)
    for figure in ("latency_ms", "size_bytes"):
        ratio = getattr(rough(genes), figure) / getattr(exact(genes), figure)
        assert ratio.min() >= 1 - 1e-12
        assert 1.0001 < ratio.max() < 1 + 12 / 32  # a sum of at least 32 is raised by less than a step
    last = [node for node in exact.network.kernels if node.op == "conv"][-1]
    # The stem keeps 8 to 24 channels, six stages 4 to 20 each; of 29 sums in steps of 4, every third is tabulated.
    counts = Layout(exact.space).axis(last.in_channels).counts
    assert counts.tolist() == [32, 44, 56, 68, 80, 92, 104, 116, 128, 140, 144]


def test_sums_of_channels_worked_by_hand():
    costs = model(networks.Concatenated)
    concat = next(node for node in costs.network.kernels if node.op == "concat")
    axis = costs.layout.axis(concat.out_channels)
    # left keeps 4, 8, 12 or 16, right 4 or 8.
    assert axis.counts.tolist() == [8, 12, 16, 20, 24]
    assert axis.reachable.all()
    genes = np.stack([costs.space.smallest, costs.space.largest])
    assert costs.layout.columns(genes)[axis.column].tolist() == [0, 4]


def test_the_networks_input_is_quantized_once():
    costs = model(networks.Concatenated)
    both = Policy({"left.0": INT8, "right.0": INT8})
    plan = plan_execution(costs.network, both)
    pooled = next(i for i, node in enumerate(costs.network.kernels) if node.op == "max_pool")
    assert costs.network.kernels[pooled].inputs == (NETWORK_INPUT,)
    assert plan.conversions.count((pooled, "quantize")) == 1
