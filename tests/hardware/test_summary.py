"""What a table is worth, on tables whose worth is known."""

import numpy as np
import pytest

from autocomp.hardware.profiling.chains import rough_us
from autocomp.hardware.profiling.summary import summarize
from autocomp.hardware.table import Latency, LatencyTable
from autocomp.kernel import Kernel

REACHABLE = [
    Kernel("conv", p, 8 * i, 8 * o, 8, 8) for p in ("fp32", "int8") for i in range(1, 11) for o in range(1, 11)
]


def table_of(kernels: list[Kernel], noise: float = 0.0) -> LatencyTable:
    rng = np.random.default_rng(0)
    return LatencyTable({k: Latency(rough_us(k) * float(np.exp(noise * rng.standard_normal()))) for k in kernels})


def test_coverage_counts_what_was_asked_for_only() -> None:
    other = Kernel("add", "fp32", 8, 8, 8, 8)
    summary = summarize(table_of([*REACHABLE[:150], other]), REACHABLE, {})
    assert (summary.rows, summary.reachable, summary.measured) == (151, 200, 150)
    assert "150 of 200 kernels that the space reaches (75 %)" in "\n".join(summary.lines())


def test_more_time_helps_where_the_unmeasured_kernels_are() -> None:
    fp32 = [kernel for kernel in REACHABLE if kernel.precision == "fp32"]
    int8 = [kernel for kernel in REACHABLE if kernel.precision == "int8"]
    summary = summarize(table_of([*fp32, *int8[:20]]), REACHABLE, {})
    worst = summary.improvable[0]
    assert (worst.kind, worst.kernels, worst.measured) == ("conv int8", 100, 20)
    assert "conv int8 (20 of 100 measured" in summary.lines()[-1]
    assert "conv fp32" not in summary.lines()[-1]


def test_a_noisy_table_has_a_larger_held_out_error() -> None:
    quiet, noisy = (summarize(table_of(REACHABLE, noise), REACHABLE, {}) for noise in (0.0, 0.2))
    assert quiet.held_out_median is not None and noisy.held_out_median is not None
    assert noisy.held_out_median > 0.05 > quiet.held_out_median
    assert noisy.held_out_90pct is not None and noisy.held_out_90pct > noisy.held_out_median


def test_the_band_is_no_narrower_than_the_profile_says() -> None:
    assert summarize(table_of(REACHABLE), REACHABLE, {"relative_error": 0.3}).band > 0.25


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows_are_said_to_be_few(rows: int) -> None:
    summary = summarize(table_of(REACHABLE[:rows]), REACHABLE, {})
    assert summary.held_out_median is None
    assert any("too few rows" in line for line in summary.lines())
