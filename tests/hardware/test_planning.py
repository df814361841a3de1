"""What is measured next: far from the known, costly, and where the estimator errs."""

from typing import Any

import numpy as np
import pytest

from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.profiling.chains import rough_us
from autocomp.hardware.profiling.planning import doubtful, expected_errors_us, informative_order
from autocomp.hardware.table import Latency, LatencyTable
from autocomp.kernel import Kernel

KERNELS = [Kernel("conv", "int8", 8 * i, 8 * o, 8, 8) for i in range(1, 8) for o in range(1, 8)]


def test_the_first_kernels_asked_for_span_the_range_and_every_family() -> None:
    mixed = KERNELS + [Kernel("add", "fp32", 8 * c, 8 * c, 8, 8) for c in range(1, 8)]
    order = informative_order(mixed, LatencyTable({}))
    assert sorted(order) == sorted(mixed)
    first = order[:4]
    assert {kernel.op for kernel in first} == {"conv", "add"}
    assert Kernel("conv", "int8", 56, 56, 8, 8) in first
    known = LatencyTable({order[0]: Latency(1.0)})
    assert order[1] == informative_order(order[1:], known)[0]


def test_only_as_many_as_are_asked_for_and_the_same_ones() -> None:
    table = LatencyTable({KERNELS[0]: Latency(1.0)})
    assert informative_order(KERNELS[1:], table, most=5) == informative_order(KERNELS[1:], table)[:5]
    assert informative_order([], table) == []


def table_with_a_wild_corner() -> tuple[LatencyTable, list[Kernel]]:
    """Every other kernel is known; those of many channels follow no rule. Returns what is not known, too."""
    rng = np.random.default_rng(0)
    every = [Kernel("conv", "int8", 8 * i, 8 * o, 8, 8) for i in range(1, 17) for o in range(1, 17)]
    wild = {k: rng.uniform(0.4, 2.5) if k.in_channels > 96 else 1.0 for k in every}
    return LatencyTable({k: Latency(rough_us(k) * wild[k]) for k in every[::2]}), every[1::2]


def test_more_is_sampled_where_held_out_kernels_are_predicted_badly() -> None:
    table, unknown = table_with_a_wild_corner()
    chosen = informative_order(unknown, table, LatencyModel.from_table(table), most=16)
    share_of_all = np.mean([kernel.in_channels > 96 for kernel in unknown])
    assert np.mean([kernel.in_channels > 96 for kernel in chosen]) > 2 * share_of_all


def test_the_expected_error_grows_with_latency_and_with_held_out_errors() -> None:
    table, unknown = table_with_a_wild_corner()
    errors = expected_errors_us(unknown, LatencyModel.from_table(table))
    relative = errors / [rough_us(kernel) for kernel in unknown]
    wild = np.array([kernel.in_channels > 96 for kernel in unknown])
    assert errors.min() > 0
    assert np.median(relative[wild]) > 1.05 * np.median(relative[~wild])


@pytest.mark.parametrize(("factor", "expected"), [(3.0, True), (1 / 3.0, False)])
def test_slow_rows_are_doubtful_and_fast_ones_are_not(factor: float, expected: bool) -> None:
    rows: dict[Kernel, Any] = {kernel: Latency(rough_us(kernel)) for kernel in KERNELS}
    rows[KERNELS[24]] = Latency(factor * rough_us(KERNELS[24]))
    table = LatencyTable(rows)
    assert (KERNELS[24] in doubtful(KERNELS, table, LatencyModel.from_table(table))) is expected
