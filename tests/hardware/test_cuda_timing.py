"""A fake device with a known launch cost and known kernels: what comes out of its noise is the kernel's time."""

import numpy as np
import pytest
from fake_gpu import H100, FakeReplay, fake_chains, true_us
from hypothesis import given
from hypothesis import strategies as st

from autocomp.hardware.cuda.measuring import gpu_table_path, measure_on
from autocomp.hardware.cuda.timing import ReplayedChains, chain_copies, table_latency, typical, without_outliers
from autocomp.hardware.profiling.chains import REFERENCE
from autocomp.hardware.profiling.on_demand import ensure_table
from autocomp.hardware.runner import FEWEST_ROUNDS, MOST_ROUNDS, Timing, time_in_rounds
from autocomp.kernel import Kernel

LAUNCH_US = 9.0


def timed(kernel_us: float, noise_us: float, spikes: float, copies: tuple[int, int] = (1, 33), seed: int = 0) -> Timing:
    """By the rounds that a kernel is given, beside a reference without noise."""
    rng = np.random.default_rng(seed)
    short, long = (FakeReplay(rng, LAUNCH_US, kernel_us, count, noise_us, spikes) for count in copies)
    steady = (FakeReplay(rng, LAUNCH_US, 3.0, count) for count in copies)
    chains = ReplayedChains(short, long, copies[1] - copies[0])
    ((_, timing, reference),) = time_in_rounds({0: chains}, ReplayedChains(*steady, copies[1] - copies[0]))
    assert reference.us == pytest.approx(3.0)
    return timing


@pytest.mark.parametrize("kernel_us", [0.8, 3.2, 45.0, 700.0])
@pytest.mark.parametrize(("noise_us", "spikes"), [(0.0, 0.0), (1.0, 0.0), (1.0, 0.15)])
def test_launch_overhead_noise_and_outliers_leave_the_kernel(kernel_us: float, noise_us: float, spikes: float) -> None:
    for seed in range(5):
        # Three standard errors of a median of 8 differences of two chains.
        tolerance = 1e-6 + 3 * noise_us * np.sqrt(2) / 32 * 1.2533 / np.sqrt(FEWEST_ROUNDS)
        assert timed(kernel_us, noise_us, spikes, seed=seed).us == pytest.approx(kernel_us, abs=tolerance)


def test_a_single_chain_would_count_the_launch() -> None:
    """The fake is no straw man: without the difference, a short kernel comes out many times too slow."""
    chain = FakeReplay(np.random.default_rng(0), LAUNCH_US, 0.8, 1)
    assert chain.replay_us() > 10 * timed(0.8, 0.0, 0.0).us


def test_rounds_go_on_until_the_median_is_known() -> None:
    quiet, noisy = timed(3.0, 0.01, 0.0), timed(3.0, 20.0, 0.0)
    assert quiet.rounds == FEWEST_ROUNDS
    assert noisy.rounds == MOST_ROUNDS
    assert quiet.spread_us < 0.01 * quiet.us < noisy.spread_us
    assert noisy.spread_us == pytest.approx(20 * np.sqrt(2) / 32, rel=0.5)


def test_outliers_by_hand() -> None:
    # Median 11, distances 1 1 0 1 89 → their median is 1: kept is what lies within 4.4478 of 11.
    assert without_outliers([10.0, 12.0, 11.0, 10.0, 100.0]).tolist() == [10.0, 12.0, 11.0, 10.0]
    assert typical([10.0, 12.0, 11.0, 10.0, 100.0]) == 10.5
    assert without_outliers([5.0, 5.0, 5.0, 6.0]).tolist() == [5.0, 5.0, 5.0]
    assert without_outliers([7.0]).tolist() == [7.0]


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=40))
def test_at_least_half_of_the_rounds_are_kept(values: list[float]) -> None:
    kept = without_outliers(values)
    assert 2 * len(kept) >= len(values)
    assert min(values) <= typical(values) <= max(values)


@pytest.mark.parametrize(
    ("kernel", "more"),
    [
        (Kernel("conv", "fp32", 8, 8, 8, 8), 64),  # next to nothing: as many as there may be
        (Kernel("conv", "fp32", 64, 64, 56, 56, 3, 3), 7),  # 2 + 115.6e6 / 5e6 + 1.753e6 / 1e6 = 26.9 us
        (Kernel("conv", "fp32", 512, 512, 112, 112, 3, 3), 4),  # milliseconds: the fewest
        (Kernel("linear", "fp32", 16384, 16384, 1, 1), 1),  # a gigabyte of weights: no second copy would fit
    ],
)
def test_chains_are_long_enough_to_be_timed_and_short_enough_to_be_built(kernel: Kernel, more: int) -> None:
    assert chain_copies(kernel) == (1, 1 + more)


def test_a_kernel_that_costs_nothing_has_a_latency_nevertheless() -> None:
    assert table_latency(Timing(-0.3, 0.1, 8, -0.3)).latency_us > 0


def test_a_table_is_filled_with_what_the_device_runs(tmp_path) -> None:
    rng = np.random.default_rng(0)
    runs = [Kernel("conv", "fp32", 32, 8 * n, 14, 14, 3, 3) for n in range(1, 8)]
    runs += [Kernel("conv", "fp16", 32, 8 * n, 14, 14, 3, 3) for n in range(1, 8)]
    not_run = [Kernel("conv", "int8", 32, 32, 14, 14), Kernel("linear", "int8", 64, 64, 1, 1)]
    path = gpu_table_path(H100, tmp_path)
    table = ensure_table(path, runs + not_run, measure_on(H100, lambda kernel: fake_chains(rng, kernel)), 1000)
    assert set(table) == {*runs, REFERENCE}
    for kernel in runs:
        assert table[kernel].latency_us == pytest.approx(true_us(kernel), rel=0.03)


def test_rows_of_other_software_never_meet(tmp_path) -> None:
    from dataclasses import replace

    others = [
        replace(H100, driver="580.1"), replace(H100, torch="2.15.0"), replace(H100, onnxruntime="1.33.0"),
        replace(H100, cuda="13.1"), replace(H100, name="NVIDIA A10"),
    ]  # fmt: skip
    paths = {gpu_table_path(gpu, tmp_path) for gpu in (H100, *others)}
    assert len(paths) == 6
    assert all(path.parent == tmp_path and path.suffix == ".csv" for path in paths)
