"""`--strict`: what is left of a space where a table reaches only part of it."""

from collections.abc import Sequence

import networks
import numpy as np
import pytest
from networks import traced
from roofline import Roofline, true_us

from autocomp.errors import UserError
from autocomp.hardware.choices import choosable_kernels
from autocomp.hardware.cost import network_kernels
from autocomp.hardware.estimator import LatencyEstimate, LatencyModel
from autocomp.hardware.strict import nearest_range, within_measured_range
from autocomp.hardware.table import Latency, LatencyTable
from autocomp.kernel import Kernel
from autocomp.policy import LayerPolicy
from autocomp.space import SearchSpace, SpaceOptions

OPTIONS = SpaceOptions(weight_bits=(4, 8, None), sparsities=(0.0,), channel_multiple=4)


class Reaching(Roofline):
    """Knows every kernel but those that `beyond` names."""

    def __init__(self, beyond) -> None:
        self.beyond = beyond

    def predict(self, kernels: Sequence[Kernel]) -> LatencyEstimate:
        known = super().predict(kernels)
        far = np.array([self.beyond(kernel) for kernel in kernels], dtype=bool)
        return LatencyEstimate(known.us, known.own_us, known.common, far, known.measured, known.unlisted)


def space_of(kind) -> SearchSpace:
    return SearchSpace.build(traced(kind).spec, OPTIONS)


def table_of(space: SearchSpace, within=lambda kernel: True) -> LatencyTable:
    kernels = [kernel for kernel in choosable_kernels(space) if within(kernel)]
    return LatencyTable({kernel: Latency(true_us(kernel)) for kernel in kernels})


def choices(space: SearchSpace, kind: str) -> dict[str, tuple]:
    return {g.target: g.choices for g in (*space.genes, *space.fixed) if g.kind == kind}


def test_a_table_that_reaches_everything_leaves_the_space_alone():
    space = space_of(networks.Residual)
    assert within_measured_range(space, Reaching(lambda kernel: False), table_of(space)) is space


def test_numbers_of_channels_that_no_row_reaches_are_left_out():
    space = space_of(networks.Residual)
    narrowed = within_measured_range(
        space, Reaching(lambda k: min(k.in_channels, k.out_channels) in (4, 8) and k.op == "conv"), table_of(space)
    )
    assert choices(space, "channels")["narrow.0"] == (8, 12, 16, 20, 24)
    assert choices(narrowed, "channels")["narrow.0"] == (12, 16, 20, 24)
    assert choices(narrowed, "quant") == choices(space, "quant")
    assert any(what == "narrow.0: 8" and "is not measured" in why for what, why in narrowed.removed)
    for row in np.random.default_rng(0).integers(0, narrowed.cardinalities, (40, len(narrowed))):
        for kernel, _ in network_kernels(narrowed.network, narrowed.decode(row)):
            assert kernel.op != "conv" or min(kernel.in_channels, kernel.out_channels) not in (4, 8)


def test_a_precision_that_no_row_reaches_is_left_out_of_the_layer():
    space = space_of(networks.Residual)
    narrowed = within_measured_range(
        space, Reaching(lambda k: k.op == "depthwise" and k.precision == "int8"), table_of(space)
    )
    assert all(c.activation == "float" for c in choices(narrowed, "quant")["depthwise.0"])
    assert choices(narrowed, "quant")["stem.0"] == choices(space, "quant")["stem.0"]
    assert choices(narrowed, "channels") == choices(space, "channels")


def test_a_layer_without_a_measured_choice_is_refused():
    space = space_of(networks.Residual)
    within = table_of(space, lambda k: k.op != "depthwise" or k.out_channels < 12)
    message = r"--strict: layer depthwise.0: depthwise 3x3 16→16 .*in_channels 4 to 8, out_channels 4 to 8"
    with pytest.raises(UserError, match=message):
        within_measured_range(space, Reaching(lambda k: k.op == "depthwise" and k.out_channels >= 12), within)


def test_what_no_choice_stands_for_is_refused():
    space = space_of(networks.Concatenated)
    table = table_of(space, lambda k: k.op != "global_avg_pool" or k.precision == "fp32")
    beyond = Reaching(lambda k: k.op == "global_avg_pool" and k.precision == "int8")
    with pytest.raises(UserError, match="no int8 global_avg_pool at all"):
        within_measured_range(space, beyond, table)


def test_with_the_estimator_itself():
    space = space_of(networks.Pooled)
    small = table_of(space, lambda k: k.op != "conv" or k.out_channels >= 12)
    latency = LatencyModel.from_table(small)
    narrowed = within_measured_range(space, latency, small)
    assert not latency.predict(choosable_kernels(narrowed)).extrapolated.any()
    assert 4 in choices(space, "channels")["first.0"]
    assert 4 not in choices(narrowed, "channels")["first.0"]
    assert LayerPolicy(4, "int8") in choices(narrowed, "quant")["second.0"]


def test_the_range_names_the_sizes_that_are_outside():
    rows = [Kernel("conv", "int8", channels, 32, 8, 8, 3, 3) for channels in (16, 64)]
    table = LatencyTable(dict.fromkeys(rows, Latency(1.0)))
    assert nearest_range(Kernel("conv", "int8", 128, 32, 8, 4, 3, 3), table) == "in_channels 16 to 64, width 8 to 8"
    assert nearest_range(Kernel("conv", "fp32", 16, 32, 8, 8, 3, 3), table) == "no fp32 conv at all"
    assert nearest_range(Kernel("conv", "int8", 17, 32, 8, 8, 3, 3), table) == "2 int8 conv, none near it"
