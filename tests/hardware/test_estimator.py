"""The estimator against a device whose latencies are known: a roofline with steps, and noise of 2 %."""

from dataclasses import replace

import numpy as np
import pytest

from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.table import Latency, LatencyTable
from autocomp.kernel import Kernel, Precision

NOISE = 0.02


def true_us(kernel: Kernel) -> float:
    """Two microseconds a call, full vectors of 16 output channels, 20 GMAC/s (int8: 60), 8 GB/s."""
    rate, width = (2e4, 4) if kernel.precision == "fp32" else (6e4, 1)
    full = -(-kernel.out_channels // 16) * 16 / kernel.out_channels
    moved = width * (kernel.in_elements + kernel.out_elements + kernel.weight_count)
    return 2.0 + max(kernel.macs * full / rate, moved / 8e3)


def some_kernels(n: int, seed: int) -> list[Kernel]:
    rng = np.random.default_rng(seed)
    kernels: set[Kernel] = set()
    while len(kernels) < n:
        precision: Precision = "fp32" if rng.random() < 0.5 else "int8"
        size, channels = int(rng.choice([4, 8, 16, 32])), int(rng.integers(8, 257))
        if rng.random() < 0.3:
            stride = int(rng.integers(1, 3))
            kernels.add(Kernel("depthwise", precision, channels, channels, size, size, 3, 3, stride, channels))
        else:
            window = int(rng.choice([1, 3]))
            out = int(rng.integers(8, 257))
            kernels.add(Kernel("conv", precision, channels, out, size, size, window, window))
    return sorted(kernels)


def measured(kernels: list[Kernel], seed: int = 0) -> LatencyTable:
    rng = np.random.default_rng(seed)
    return LatencyTable({k: Latency(true_us(k) * float(np.exp(rng.normal(0, NOISE)))) for k in kernels})


@pytest.fixture(scope="module")
def model() -> LatencyModel:
    return LatencyModel.from_table(measured(some_kernels(400, seed=1)))


def test_the_band_covers_kernels_that_were_held_out(model: LatencyModel) -> None:
    held_out = some_kernels(600, seed=2)
    estimate = model.predict(held_out)
    truth = np.array([table_row.latency_us for table_row in map(measured(held_out, 3).__getitem__, held_out)])
    inside = ~estimate.extrapolated & ~estimate.measured
    covered = (truth >= estimate.low_us) & (truth <= estimate.high_us)
    assert 0.80 <= covered[inside].mean() <= 0.99
    assert np.median(np.abs(estimate.us / truth - 1)[inside]) < 0.06


def test_measured_kernels_are_met_and_marked() -> None:
    kernels = some_kernels(60, seed=4)
    table = measured(kernels)
    estimate = LatencyModel.from_table(table).predict(kernels)
    assert estimate.measured.all() and not estimate.extrapolated.any()
    np.testing.assert_allclose(estimate.us, [table[k].latency_us for k in kernels])


def test_the_smooth_part_alone_meets_measured_kernels_nearly() -> None:
    kernels = some_kernels(200, seed=5)
    table = measured(kernels)
    neighbours = [replace(kernel, width=kernel.width + 1) for kernel in kernels]
    estimate = LatencyModel.from_table(table).predict(neighbours)
    grown = estimate.us / np.array([table[k].latency_us for k in kernels])
    assert np.median(np.abs(np.log(grown))) < 0.3


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_more_channels_cost_more_within_the_noise(model: LatencyModel, precision: Precision) -> None:
    kernels = [Kernel("conv", precision, 64, out, 16, 16, 3, 3) for out in range(16, 257, 16)]
    us = model.predict(kernels).us
    assert (us[1:] > us[:-1] * 0.93).all()
    assert us[-1] > 5 * us[0]


def test_outside_the_measured_range_is_flagged_with_a_wider_band(model: LatencyModel) -> None:
    inside, outside = (Kernel("conv", "int8", c, c, s, s, 3, 3) for c, s in ((100, 16), (1024, 128)))
    estimate = model.predict([inside, outside])
    assert estimate.extrapolated.tolist() == [False, True]
    band = estimate.high_us / estimate.low_us
    assert band[1] > 1.5 * band[0]
    assert estimate.low_us[1] < true_us(outside) < estimate.high_us[1]


def test_a_family_that_was_never_measured_is_estimated_from_bytes_and_flagged(model: LatencyModel) -> None:
    small, large = (Kernel("add", "int8", c, c, 16, 16) for c in (16, 512))
    estimate = model.predict([small, large])
    assert estimate.extrapolated.all() and not estimate.measured.any()
    assert (estimate.low_us > 0).all()
    assert estimate.us[1] > estimate.us[0]
    assert (estimate.high_us > 3 * estimate.us).all()


def test_an_empty_table_still_gives_a_flagged_estimate() -> None:
    estimate = LatencyModel.from_table(LatencyTable({})).predict(some_kernels(5, seed=6))
    assert (estimate.us > 0).all() and estimate.extrapolated.all()


def test_no_kernels_give_empty_arrays(model: LatencyModel) -> None:
    assert model.predict([]).us.shape == (0,)


def test_the_calibration_is_the_narrowest_band() -> None:
    kernels = some_kernels(50, seed=7)
    estimate = LatencyModel.from_table(measured(kernels), {"relative_error": 0.5}).predict(kernels)
    np.testing.assert_allclose(estimate.high_us, 1.5 * estimate.us)
    np.testing.assert_allclose(estimate.low_us, estimate.us / 1.5)


def test_order_and_repetition_of_the_kernels_do_not_matter(model: LatencyModel) -> None:
    kernels = some_kernels(30, seed=8)
    us = model.predict(kernels).us
    again = model.predict([*reversed(kernels), *kernels]).us
    np.testing.assert_allclose(again, np.concatenate([us[::-1], us]), rtol=1e-9)


def test_a_disturbed_measurement_is_a_surprise() -> None:
    kernels = some_kernels(200, seed=9)
    table = measured(kernels)
    victim = kernels[100]
    table = table.with_rows({victim: Latency(3 * table[victim].latency_us)})
    surprises = LatencyModel.from_table(table).surprises()
    assert max(surprises, key=lambda kernel: surprises[kernel]) == victim


@pytest.mark.parametrize("rows", [3, 4, 7])
def test_few_rows_give_a_band_that_says_so(rows: int) -> None:
    kernels = [Kernel("conv", "fp32", 16 * c, 16 * c, 8, 8) for c in range(1, rows + 1)]
    estimate = LatencyModel.from_table(measured(kernels)).predict([Kernel("conv", "fp32", 40, 24, 8, 8)])
    assert np.isfinite(estimate.us).all() and (estimate.us > 0).all()
    assert (estimate.high_us >= estimate.us).all() and (estimate.low_us <= estimate.us).all()
