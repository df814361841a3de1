"""Tables of an NPU: their columns, the estimate between their rows, encoded bytes, and costs of a search on them."""

from dataclasses import replace
from pathlib import Path

import networks
import numpy as np
import pytest
from networks import traced

from autocomp.errors import UserError
from autocomp.hardware.choices import choosable_kernels
from autocomp.hardware.cost import CostModel, network_kernels
from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.ethos_u.bottleneck import NpuLimits
from autocomp.hardware.ethos_u.observations import Observation, Observations
from autocomp.hardware.ethos_u.sizes import CompiledSizes
from autocomp.hardware.profile import find_profile
from autocomp.hardware.table import Latency, LatencyTable, NpuParts
from autocomp.kernel import Kernel, WeightCoding
from autocomp.policy import LayerPolicy, Sparsity, clustered
from autocomp.space import SearchSpace, SpaceOptions

CODINGS = [WeightCoding(bits) for bits in (2, 3, 4, 6, 8)] + [WeightCoding(8, 16), WeightCoding(8, 0, 0.75)]
#: Bits a weight of the fabricated encoder.
BITS = {coding: (coding.bits if not coding.clusters else 4) * (1 - 0.8 * coding.sparsity) for coding in CODINGS}


def truth(kernel: Kernel) -> Latency:
    """An NPU as the documentation describes it: the longest of array, feature maps and weights."""
    encoded = 0 if kernel.coding is None else round(kernel.weight_count * BITS[kernel.coding] / 8) + 32
    rounded = -(-kernel.in_channels // 32) * 32 * -(-kernel.out_channels // 8) * 8
    macs = kernel.window * rounded * kernel.out_height * kernel.out_width if kernel.op == "conv" else kernel.macs * 8
    array = macs / 256 / 500 + 0.2
    memory = (kernel.in_elements + kernel.out_elements) / 4000
    weights = (encoded + 10 * kernel.out_channels * (kernel.coding is not None)) / 500
    return Latency(max(array, memory, weights), parts=NpuParts(array, memory, weights, encoded))


def kernels(seed: int, count: int) -> list[Kernel]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        ins, outs = (8 * int(rng.integers(1, 40)) for _ in range(2))
        side, coding = int(rng.choice([1, 4, 7, 14, 28])), CODINGS[rng.integers(len(CODINGS))]
        window = int(rng.choice([1, 3]))
        if rng.random() < 0.6:
            found.append(Kernel("conv", "int8", ins, outs, side, side, window, window, coding=coding))
        elif rng.random() < 0.5:
            found.append(Kernel("depthwise", "int8", ins, ins, side, side, 3, 3, 1, ins, coding))
        else:
            found.append(Kernel("add", "int8", ins, ins, side, side))
    return found


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return LatencyTable({kernel: truth(kernel) for kernel in kernels(0, 250)})


@pytest.fixture(scope="module")
def model(table: LatencyTable) -> LatencyModel:
    return LatencyModel.from_table(table)


def test_codings_and_parts_are_read_back(table: LatencyTable) -> None:
    again = LatencyTable.parse(table.to_csv())
    assert dict(again) == dict(table) and again.digest == table.digest


def test_other_tables_have_no_columns_for_them() -> None:
    text = LatencyTable({Kernel("add", "fp32", 8, 8, 4, 4): Latency(1.0)}).to_csv()
    assert "weight_bits" not in text and "array_us" not in text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",clusters", "", "the header lacks clusters"),
        (",8,0,0.0,unstructured", ",9,0,0.0,unstructured", "weight_bits must be one of"),
        (",8,0,0.0,unstructured", ",8,7,0.0,unstructured", "clusters must be one of"),
        (",8,0,0.0,unstructured", ",8,0,1.5,unstructured", "sparsity must be a number"),
        (",8,0,0.0,unstructured", ",8,0,0.0,striped", "pattern must be one of"),
        (",8,0,0.0,unstructured", ",,,,", "weight_bits must be told exactly for what has weights"),
    ],
)
def test_a_fault_in_a_coding_is_one_line_with_its_row(old: str, new: str, message: str) -> None:
    kernel = Kernel("conv", "int8", 8, 8, 4, 4, coding=WeightCoding())
    text = LatencyTable({kernel: truth(kernel)}).to_csv()
    assert old in text
    with pytest.raises(UserError, match=message):
        LatencyTable.parse(text.replace(old, new))


def test_rows_are_returned_as_they_are(table: LatencyTable, model: LatencyModel) -> None:
    some = list(table)[:50]
    estimate = model.predict(some)
    np.testing.assert_allclose(estimate.us, [table[kernel].latency_us for kernel in some])
    assert estimate.measured.all() and not estimate.extrapolated.any()


def test_kernels_between_rows_are_close(table: LatencyTable, model: LatencyModel) -> None:
    others = [kernel for kernel in kernels(1, 300) if kernel not in table]
    errors = model.predict(others).us / [truth(kernel).latency_us for kernel in others] - 1
    assert np.median(np.abs(errors)) < 0.03
    assert np.quantile(np.abs(errors), 0.9) < 0.25


def test_encoded_bytes_between_rows_are_close(table: LatencyTable, model: LatencyModel) -> None:
    others = [k for k in kernels(2, 300) if k not in table and k.coding is not None and k.weight_count > 2000]
    assert model.encoded is not None
    errors = model.encoded.bytes(others) / [truth(kernel).parts.encoded_bytes for kernel in others] - 1
    assert np.abs(errors).max() < 0.1 and np.abs(errors).mean() < 0.02


def test_a_coding_that_the_table_lacks_lies_between_others(model: LatencyModel) -> None:
    assert model.encoded is not None
    found = [model.encoded.bits(WeightCoding(bits)) for bits in (4, 5, 6)]
    assert found == sorted(found) and found[0] < found[1] < found[2]


def test_fewer_bits_are_faster_only_where_weights_are_the_bottleneck(model: LatencyModel) -> None:
    few_positions = Kernel("conv", "int8", 256, 256, 1, 1, coding=WeightCoding(8))
    many_positions = replace(few_positions, height=28, width=28)
    coarse = [replace(kernel, coding=WeightCoding(2)) for kernel in (few_positions, many_positions)]
    (fast, fast2), (slow, slow2) = (
        model.predict([a, b]).us for a, b in zip((few_positions, many_positions), coarse, strict=True)
    )
    assert fast2 < 0.4 * fast
    assert slow2 == pytest.approx(slow, rel=0.15)


def test_what_limits_a_kernel_and_what_helps(model: LatencyModel) -> None:
    by_weights = Kernel("conv", "int8", 256, 256, 1, 1, coding=WeightCoding(8))
    by_array = replace(by_weights, height=28, width=28, kernel_h=3, kernel_w=3)
    by_memory = Kernel("add", "int8", 256, 256, 28, 28)
    limits = NpuLimits(model, skips_zeros=True)
    asked = [by_weights, by_array, by_memory]
    assert limits.limits(asked, np.ones(3))[:2] == ["weights", "compute"]
    weights, array, add = limits.levers(asked)
    assert weights.startswith("fewer bits, clusters or zeros, down to ") and array == "fewer channels, or 2:4"
    assert add == ""
    assert NpuLimits(model).levers([by_array]) == ["fewer channels"]


def test_other_models_have_no_parts() -> None:
    plain = LatencyModel.from_table(LatencyTable({Kernel("add", "fp32", 8, 8, 4, 4): Latency(1.0)}))
    assert plain.parts_us([Kernel("add", "fp32", 8, 8, 4, 4)]) is None and plain.encoded is None


def test_a_population_costs_what_its_members_cost(model: LatencyModel) -> None:
    spec = traced(networks.Residual).spec
    options = SpaceOptions(
        weight_bits=(2, 8),
        activations=("int8",),
        channel_multiple=4,
        keep_ratios=(0.5, 1.0),
        sparsities=(0.0, 0.75),
        clusters=(16,),
    )
    space = SearchSpace.build(spec, options, find_profile("npu_ethos_u55").veto)
    assert model.encoded is not None
    sizes = CompiledSizes(spec, model.encoded)
    costs = CostModel(space, model, sizes, integer_only=True)
    genes = np.random.default_rng(0).integers(0, space.cardinalities, (30, len(space)))
    together = costs(genes)
    for position, policy in enumerate(map(space.decode, genes)):
        alone = costs.of_policy(policy)
        for figure in together._fields:
            expected = float(getattr(alone, figure)[0])
            assert getattr(together, figure)[position] == pytest.approx(expected, rel=1e-9), figure
        assert together.size_bytes[position] == sizes.of_policy(policy)


def test_everything_is_int8_and_layers_are_told_apart_by_their_coding() -> None:
    spec = traced(networks.Residual).spec
    options = SpaceOptions(weight_bits=(4, 8), activations=("int8",), channel_multiple=4, clusters=(16,))
    space = SearchSpace.build(spec, options)
    foreseen = set(choosable_kernels(space, integer_only=True))
    for genes in (space.smallest, space.largest):
        found = [kernel for kernel, _ in network_kernels(spec, space.decode(genes), integer_only=True)]
        assert {kernel.precision for kernel in found} == {"int8"}
        assert not {"quantize", "dequantize"} & {kernel.op for kernel in found}
        assert all((kernel.coding is not None) == (kernel.weight_count > 0) for kernel in found)
        assert set(found) <= foreseen


def test_codings_are_decisions() -> None:
    for decision in (LayerPolicy(4, "int8"), clustered(16), LayerPolicy(8, "int8", 0.75)):
        coding = WeightCoding.of(decision)
        assert coding is not None and coding.decision == decision
    assert WeightCoding.of(LayerPolicy()) is None
    pruned = LayerPolicy(8, "int8").with_zeros(Sparsity(0.5, "2:4"))
    assert str(WeightCoding.of(pruned)) == "w8 2:4"


def test_observations_are_kept_and_averaged(tmp_path: Path) -> None:
    accelerator = find_profile("npu_ethos_u55").accelerator
    assert accelerator is not None
    kernel, other = Kernel("conv", "int8", 8, 8, 4, 4, coding=WeightCoding(4)), Kernel("add", "int8", 8, 8, 4, 4)
    path = tmp_path / "seen.jsonl"
    first = Observations(path, accelerator, "5.2.0")
    first.add("a", [Observation(kernel, 2.0, 1.0, 0.5, 2.0), Observation(other, 0.0, 0.0, 0.0, 0.0)])
    first.add("b", [Observation(kernel, 3.0, 1.0, 0.5, 3.0)])
    first.add_encoded(kernel, 100)
    with path.open("a") as file:
        file.write('{"network":"c","kern')  # killed while it wrote
    again = Observations(path, accelerator, "5.2.0")
    assert again.networks == {"a", "b"} and dict(again.table()) == dict(first.table())
    assert again.table()[kernel] == Latency(2.5, 0.5, 2, NpuParts(1.0, 0.5, 2.5, 100))
    assert again.table()[other].latency_us == 1e-3  # fused into the kernel before it
    again.add("c", [])
    assert Observations(path, accelerator, "5.2.0").networks == {"a", "b", "c"}
    with pytest.raises(UserError, match="--fresh"):
        Observations(path, accelerator, "5.3.0")
