"""Where the time goes: sums and shares that add up, limits that follow from a device whose peaks are known."""

import math

import numpy as np
import pytest
from roofline import Roofline as Model
from roofline import true_us

from autocomp.hardware.breakdown import break_down
from autocomp.hardware.coverage import Span, coverage
from autocomp.hardware.roofline import Limit, Roofline, bytes_moved
from autocomp.hardware.table import Latency, LatencyTable
from autocomp.kernel import Kernel

CALL_US, MACS_PER_US, BYTES_PER_US = 2.0, 10_000.0, 1_000.0


def ideal_us(kernel: Kernel) -> float:
    """The roofline itself: a device that is limited by exactly one thing at a time."""
    return max(CALL_US, kernel.macs / MACS_PER_US, bytes_moved(kernel) / BYTES_PER_US)


def limits_of(table: LatencyTable, kernels: list[Kernel]) -> list[Limit]:
    return Roofline(table).limits(kernels, np.array([ideal_us(kernel) for kernel in kernels]))


TINY = Kernel("add", "fp32", 8, 8, 2, 2)
BUSY = Kernel("conv", "fp32", 64, 256, 28, 28, 3, 3)  # 578 MACs a byte
STREAM = Kernel("add", "fp32", 64, 64, 56, 56)  # no MACs at all
WEIGHTS = Kernel("linear", "fp32", 1024, 1000, 1, 1)  # a MAC for each weight
ROWS = [
    TINY,
    STREAM,
    WEIGHTS,
    BUSY,
    *(Kernel("conv", "fp32", 64, out, 28, 28, 3, 3) for out in (64, 128, 192)),
    *(Kernel("add", "fp32", channels, channels, 56, 56) for channels in (16, 32, 48)),
]


def test_limits_of_a_device_whose_roofline_is_known() -> None:
    table = LatencyTable({kernel: Latency(ideal_us(kernel)) for kernel in ROWS})
    conversion = Kernel("quantize", "fp32", 64, 64, 28, 28)
    limits = limits_of(table, [TINY, BUSY, STREAM, WEIGHTS, conversion])
    assert limits == ["overhead", "compute", "memory", "memory", "conversion"]


def test_a_kernel_near_the_ridge_falls_on_its_side() -> None:
    table = LatencyTable({kernel: Latency(ideal_us(kernel)) for kernel in ROWS})
    ridge = MACS_PER_US / BYTES_PER_US
    for channels in (8, 16, 24, 48, 96, 192):
        kernel = Kernel("conv", "fp32", channels, channels, 56, 56)
        expected = "compute" if kernel.macs / bytes_moved(kernel) > ridge else "memory"
        assert limits_of(table, [kernel]) == [expected]


def test_one_mismeasured_row_does_not_move_the_roof() -> None:
    rows = {kernel: Latency(ideal_us(kernel)) for kernel in ROWS}
    rows[Kernel("conv", "fp32", 64, 320, 28, 28, 3, 3)] = Latency(7.0)  # 200 times too fast
    assert limits_of(LatencyTable(rows), [BUSY, STREAM]) == ["compute", "memory"]


def test_precisions_have_roofs_of_their_own_and_an_empty_table_is_no_fault() -> None:
    table = LatencyTable({kernel: Latency(ideal_us(kernel)) for kernel in ROWS})
    int8 = Kernel("conv", "int8", 64, 256, 28, 28, 3, 3)
    assert limits_of(table, [int8]) == limits_of(LatencyTable({}), [int8]) == ["compute"]


def test_what_takes_little_more_than_a_call_is_overhead_whatever_its_intensity() -> None:
    table = LatencyTable({kernel: Latency(ideal_us(kernel)) for kernel in ROWS})
    small = Kernel("conv", "fp32", 16, 16, 4, 4)
    assert ideal_us(small) < 3 * CALL_US
    assert limits_of(table, [small]) == ["overhead"]
    assert Roofline(table).limits([small], np.array([3 * CALL_US])) == ["memory"]


def test_a_breakdown_adds_up() -> None:
    kernels = [BUSY, STREAM, Kernel("quantize", "int8", 8, 8, 4, 4), STREAM]
    table = LatencyTable({kernel: Latency(ideal_us(kernel)) for kernel in ROWS})
    found = break_down([(kernel, f"layer {i}") for i, kernel in enumerate(kernels)], Model(), Roofline(table))
    assert [line.name for line in found.kernels] == ["layer 0", "layer 1", "layer 2", "layer 3"]
    assert found.latency_ms == pytest.approx(sum(map(true_us, kernels)) / 1000)
    own = [0.1 * true_us(kernel) / 1000 for kernel in kernels]  # each alone, so they add up as squares
    half = math.hypot(math.hypot(*own) / found.latency_ms, Model.common)
    assert found.low_ms == pytest.approx(found.latency_ms * math.exp(-half))
    assert found.high_ms == pytest.approx(found.latency_ms * math.exp(half))
    assert sum(line.share for line in found.kernels) == pytest.approx(1)
    assert found.kernels[0].share == pytest.approx(true_us(BUSY) / 1000 / found.latency_ms)
    assert found.limit_shares == pytest.approx(
        {
            "compute": found.kernels[0].share,
            "memory": 2 * found.kernels[1].share,
            "conversion": found.kernels[2].share,
        }
    )
    assert list(found.limit_shares) == ["compute", "memory", "conversion"]
    assert found.extrapolated_share == found.measured_share == 0


def test_coverage_counts_rows_and_finds_their_ranges() -> None:
    rows = {
        Kernel("conv", "int8", 3, 32, 224, 224, 3, 3, 2): Latency(10.0),
        Kernel("conv", "int8", 96, 8, 14, 7): Latency(2.0),
        Kernel("linear", "fp32", 1280, 10, 1, 1): Latency(5.0),
    }
    conv, linear = coverage(LatencyTable(rows))
    assert (conv.op, conv.precision, conv.rows) == ("conv", "int8", 2)
    assert (conv.in_channels, conv.out_channels) == (Span(3, 96), Span(8, 32))
    assert (conv.side, conv.window) == (Span(14, 224), Span(1, 3))
    assert (conv.fastest_us, conv.slowest_us) == (2.0, 10.0)
    assert (linear.op, linear.rows, str(linear.in_channels), str(conv.in_channels)) == ("linear", 1, "1280", "3–96")
    assert coverage(LatencyTable({})) == []
