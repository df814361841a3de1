"""Measuring on the spot, with a fake stopwatch: nothing is measured twice, nothing is lost, drift is corrected."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from autocomp.errors import UserError
from autocomp.hardware.host import (
    REFERENCE,
    Sample,
    chain_copies,
    ensure_host_table,
    host_table,
    host_table_path,
    informative_order,
    rough_us,
)
from autocomp.hardware.kernel_models import max_repeats
from autocomp.hardware.table import Latency, LatencyTable
from autocomp.kernel import Kernel

KERNELS = [Kernel("conv", "int8", 8 * i, 8 * o, 8, 8) for i in range(1, 8) for o in range(1, 8)]


class Stopwatch:
    """A machine on which a kernel takes `slowness` times its rough estimate; a batch takes a second."""

    def __init__(self, slowness: float = 1.0) -> None:
        self.slowness, self.now = slowness, 0.0
        self.seen: list[Kernel] = []

    def measure(self, kernels: Sequence[Kernel]) -> Sample:
        self.seen += kernels
        self.now += 1.0
        return Sample({k: Latency(rough_us(k) * self.slowness) for k in kernels}, 100.0 * self.slowness)

    def clock(self) -> float:
        return self.now


def ensure(
    stopwatch: Stopwatch, folder: Path, kernels: Sequence[Kernel] = KERNELS, seconds: float = 1000
) -> LatencyTable:
    return ensure_host_table(kernels, seconds, folder=folder, measure=stopwatch.measure, clock=stopwatch.clock)


def test_all_kernels_are_measured_once_and_remembered(tmp_path: Path) -> None:
    first, second = Stopwatch(), Stopwatch()
    table = ensure(first, tmp_path, KERNELS + KERNELS)
    assert set(table) == {*KERNELS, REFERENCE}
    assert dict(ensure(second, tmp_path)) == dict(table)
    assert second.seen == []


def test_when_the_time_is_up_the_rest_is_left_for_the_next_call(tmp_path: Path) -> None:
    first, second = Stopwatch(), Stopwatch()
    some = ensure(first, tmp_path, seconds=1.5)
    assert 0 < len(some) < len(KERNELS)
    ensure(second, tmp_path)
    assert not set(first.seen) & set(second.seen)
    assert set(first.seen) | set(second.seen) == set(KERNELS)


def test_an_interruption_loses_nothing_that_was_measured(tmp_path: Path) -> None:
    stopwatch = Stopwatch()

    def interrupted(kernels: Sequence[Kernel]) -> Sample:
        if stopwatch.seen:
            raise KeyboardInterrupt
        return stopwatch.measure(kernels)

    with pytest.raises(KeyboardInterrupt):
        ensure_host_table(KERNELS, 1000, folder=tmp_path, measure=interrupted, clock=stopwatch.clock)
    assert set(host_table(tmp_path)) == {*stopwatch.seen, REFERENCE}


def test_a_slower_clock_is_corrected_by_the_reference_kernel(tmp_path: Path) -> None:
    ensure(Stopwatch(), tmp_path, KERNELS[:10])
    table = ensure(Stopwatch(slowness=1.3), tmp_path)
    for kernel in KERNELS:
        assert table[kernel].latency_us == pytest.approx(rough_us(kernel))


def test_a_slow_first_session_is_corrected_when_the_machine_is_fast_again(tmp_path: Path) -> None:
    ensure(Stopwatch(slowness=1.5), tmp_path, KERNELS[:10])
    table = ensure(Stopwatch(), tmp_path)
    for kernel in KERNELS:
        assert table[kernel].latency_us == pytest.approx(rough_us(kernel))


def test_a_kernel_that_was_disturbed_is_measured_again(tmp_path: Path) -> None:
    stopwatch, victim = Stopwatch(), KERNELS[20]

    def disturbed(kernels: Sequence[Kernel]) -> Sample:
        first_time = victim not in stopwatch.seen
        sample = stopwatch.measure(kernels)
        if victim in kernels and first_time:
            return Sample({**sample.latencies, victim: Latency(5 * rough_us(victim))}, sample.reference_us)
        return sample

    table = ensure_host_table(KERNELS, 1000, folder=tmp_path, measure=disturbed, clock=stopwatch.clock)
    assert table[victim].latency_us == pytest.approx(rough_us(victim))
    assert stopwatch.seen.count(victim) == 2


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    stopwatch, calls = Stopwatch(), []
    ensure_host_table(
        KERNELS,
        1000,
        lambda *call: calls.append(call),
        folder=tmp_path,
        measure=stopwatch.measure,
        clock=stopwatch.clock,
    )
    assert [done for done, _, _ in calls] == sorted({done for done, _, _ in calls})
    assert calls[-1][:2] == (len(KERNELS), len(KERNELS))


def test_a_damaged_cache_names_the_file(tmp_path: Path) -> None:
    host_table_path(tmp_path).write_text("op,precision\n")
    with pytest.raises(UserError, match="lacks"):
        ensure(Stopwatch(), tmp_path)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_no_time_is_refused(seconds: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="above 0 seconds"):
        ensure(Stopwatch(), tmp_path, seconds=seconds)


def test_the_first_kernels_asked_for_span_the_range_and_every_family() -> None:
    mixed = KERNELS + [Kernel("add", "fp32", 8 * c, 8 * c, 8, 8) for c in range(1, 8)]
    order = informative_order(mixed, LatencyTable({}))
    assert sorted(order) == sorted(mixed)
    first = order[:4]
    assert {kernel.op for kernel in first} == {"conv", "add"}
    assert Kernel("conv", "int8", 56, 56, 8, 8) in first
    known = LatencyTable({order[0]: Latency(1.0)})
    assert order[1] == informative_order(order[1:], known)[0]


@pytest.mark.parametrize("kernel", [
    *KERNELS[:3], Kernel("conv", "fp32", 512, 512, 28, 28, 3, 3), Kernel("max_pool", "fp32", 24, 24, 16, 16, 3, 3, 2),
    Kernel("conv", "fp32", 3, 64, 224, 224, 7, 7, 2),
])  # fmt: skip
def test_the_long_chain_is_longer_and_can_be_built(kernel: Kernel) -> None:
    short, long = chain_copies(kernel)
    limit = max_repeats(kernel)
    assert 1 <= short < long
    assert limit is None or long <= limit
