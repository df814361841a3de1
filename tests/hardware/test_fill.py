"""Filling a table in a given time, with a fake stopwatch."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from autocomp.hardware.profiling.chains import rough_us
from autocomp.hardware.profiling.fill import Filling, Measured, Tier, fill
from autocomp.hardware.profiling.growing import GrowingTable
from autocomp.hardware.table import Latency
from autocomp.kernel import Kernel

FIRST = [Kernel("conv", "int8", 8 * i, 8 * o, 8, 8) for i in range(1, 8) for o in range(1, 8)]
SECOND = [Kernel("conv", "fp32", 8 * i, 8 * o, 8, 8) for i in range(1, 8) for o in range(1, 8)]
SECONDS_A_KERNEL = 0.05


class Machine:
    """Measures by the rough estimate, in fake seconds; `refuses` some kernels."""

    def __init__(self, refuses: Sequence[Kernel] = ()) -> None:
        self.now, self.seen, self.refuses = 0.0, list[Kernel](), set(refuses)

    def measure(self, kernels: Sequence[Kernel], deadline: float) -> Iterator[Measured]:
        for kernel in kernels:
            self.seen.append(kernel)
            self.now += SECONDS_A_KERNEL
            if kernel not in self.refuses:
                yield Measured(kernel, Latency(rough_us(kernel)), 6.0)

    def clock(self) -> float:
        return self.now


class Recorder:
    """What a display would have been told."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int | None]] = []
        self.advances: list[tuple[int, float]] = []

    def phase(self, name: str, total: int | None = None, detail: str = "") -> None:
        self.phases.append((name, total))

    def advance(self, done: int, seconds_left: float | None = None) -> None:
        assert seconds_left is not None
        self.advances.append((done, seconds_left))


def run(
    machine: Machine, path: Path, seconds: float, recorder: Recorder | None = None, kernels: Sequence[Kernel] = FIRST
) -> Filling:
    tiers = [Tier("first", kernels), Tier("second", SECOND)]
    return fill(GrowingTable(path), tiers, seconds, machine.measure, recorder or Recorder(), clock=machine.clock)


def test_one_tier_comes_before_the_next_and_nothing_twice(tmp_path: Path) -> None:
    machine, recorder = Machine(), Recorder()
    filling = run(machine, tmp_path / "t.csv", 1000, recorder)
    assert set(machine.seen[: len(FIRST)]) == set(FIRST)
    assert set(machine.seen[len(FIRST) :]) == set(SECOND)
    assert len(machine.seen) == len(FIRST) + len(SECOND)
    assert filling.added == machine.seen
    assert recorder.phases == [("first", 49), ("second", 49)]
    assert recorder.advances[-1] == (49, pytest.approx(1000 - machine.now))


def test_it_stops_on_time_and_the_next_call_measures_the_rest(tmp_path: Path) -> None:
    first, second = Machine(), Machine()
    run(first, tmp_path / "t.csv", 2.0)
    assert first.now == pytest.approx(2.0, abs=20 * SECONDS_A_KERNEL)
    run(second, tmp_path / "t.csv", 1000)
    assert not set(first.seen) & set(second.seen)
    assert {*first.seen, *second.seen} == {*FIRST, *SECOND}


def test_the_time_left_is_that_of_what_was_given(tmp_path: Path) -> None:
    recorder = Recorder()
    run(Machine(), tmp_path / "t.csv", 3.5, recorder)
    left = [seconds for _, seconds in recorder.advances]
    assert left == sorted(left, reverse=True)
    assert left[0] == pytest.approx(3.5 - 20 * SECONDS_A_KERNEL)
    assert left[-1] >= 0


def test_what_the_runtime_refuses_is_tried_once_and_named(tmp_path: Path) -> None:
    machine = Machine(refuses=FIRST[5:8])
    filling = run(machine, tmp_path / "t.csv", 1000)
    assert sorted(filling.refused) == sorted(FIRST[5:8])
    assert len(machine.seen) == len(set(machine.seen))
    assert not set(GrowingTable(tmp_path / "t.csv").table) & set(FIRST[5:8])


def test_an_interruption_leaves_what_was_done_in_the_hands_of_the_caller(tmp_path: Path) -> None:
    machine, filling = Machine(), Filling()

    def interrupted(kernels: Sequence[Kernel], deadline: float) -> Iterator[Measured]:
        for measured in machine.measure(kernels, deadline):
            yield measured
            if len(machine.seen) == 33:
                raise KeyboardInterrupt

    growing = GrowingTable(tmp_path / "t.csv")
    with pytest.raises(KeyboardInterrupt):
        fill(growing, [Tier("", FIRST)], 1000, interrupted, Recorder(), filling=filling, clock=machine.clock)
    assert filling.added == machine.seen
    assert len(filling.added) == 33
    assert set(machine.seen) <= set(GrowingTable(tmp_path / "t.csv").table)


def test_a_doubtful_row_is_measured_once_more_and_not_by_every_later_call(tmp_path: Path) -> None:
    machine, filling, growing, victims = Machine(), Filling(), GrowingTable(tmp_path / "t.csv"), FIRST[10:12]

    def slow_at_first(kernels: Sequence[Kernel], deadline: float) -> Iterator[Measured]:
        for kernel, latency, reference_us in machine.measure(kernels, deadline):
            disturbed = kernel == victims[0] and machine.seen.count(kernel) == 1
            slow = kernel == victims[1]  # always: it is what it is
            yield Measured(kernel, Latency(latency.latency_us * (4 if disturbed or slow else 1)), reference_us)

    for tier in (Tier("", FIRST), Tier("", SECOND)):
        fill(growing, [tier], 1000, slow_at_first, Recorder(), filling=filling, clock=machine.clock)
    assert set(victims) <= filling.checked
    assert all(machine.seen.count(kernel) == 2 for kernel in filling.checked)
    assert filling.corrected == 1
    assert growing.table[victims[0]].latency_us == rough_us(victims[0])
    assert growing.table[victims[1]].latency_us == 4 * rough_us(victims[1])
