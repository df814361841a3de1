"""Measuring on the spot, with a fake stopwatch: nothing is measured twice, nothing is lost, drift is corrected."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from autocomp.errors import UserError
from autocomp.hardware.host import host_table_path
from autocomp.hardware.profiling.chains import REFERENCE, rough_us
from autocomp.hardware.profiling.fill import Measured
from autocomp.hardware.profiling.on_demand import ensure_table
from autocomp.hardware.table import Latency, LatencyTable
from autocomp.kernel import Kernel

KERNELS = [Kernel("conv", "int8", 8 * i, 8 * o, 8, 8) for i in range(1, 8) for o in range(1, 8)]


class Stopwatch:
    """A machine on which a kernel takes `slowness` times its rough estimate; measuring one takes 50 ms."""

    def __init__(self, slowness: float = 1.0) -> None:
        self.slowness, self.now = slowness, 0.0
        self.seen: list[Kernel] = []

    def measure(self, kernels: Sequence[Kernel], deadline: float) -> Iterator[Measured]:
        for kernel in kernels:
            self.seen.append(kernel)
            self.now += 0.05
            yield Measured(kernel, Latency(rough_us(kernel) * self.slowness), 100.0 * self.slowness)

    def clock(self) -> float:
        return self.now


def ensure(
    stopwatch: Stopwatch, folder: Path, kernels: Sequence[Kernel] = KERNELS, seconds: float = 1000
) -> LatencyTable:
    return ensure_table(host_table_path(folder), kernels, stopwatch.measure, seconds, clock=stopwatch.clock)


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

    def interrupted(kernels: Sequence[Kernel], deadline: float) -> Iterator[Measured]:
        for measured in stopwatch.measure(kernels, deadline):
            yield measured
            if len(stopwatch.seen) == 27:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_table(host_table_path(tmp_path), KERNELS, interrupted, 1000, clock=stopwatch.clock)
    assert set(LatencyTable.read(host_table_path(tmp_path))) == {*stopwatch.seen, REFERENCE}


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

    def disturbed(kernels: Sequence[Kernel], deadline: float) -> Iterator[Measured]:
        for kernel, latency, reference_us in stopwatch.measure(kernels, deadline):
            slow = kernel == victim and stopwatch.seen.count(victim) == 1
            yield Measured(kernel, Latency(5 * latency.latency_us) if slow else latency, reference_us)

    table = ensure_table(host_table_path(tmp_path), KERNELS, disturbed, 1000, clock=stopwatch.clock)
    assert table[victim].latency_us == pytest.approx(rough_us(victim))
    assert stopwatch.seen.count(victim) == 2


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    stopwatch, calls = Stopwatch(), []
    ensure_table(
        host_table_path(tmp_path), KERNELS, stopwatch.measure, 1000, lambda *call: calls.append(call),
        clock=stopwatch.clock,
    )  # fmt: skip
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
