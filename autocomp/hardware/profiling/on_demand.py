"""A device's table, after what somebody needs of it was measured."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from autocomp.errors import UserError
from autocomp.hardware.profiling.fill import Measure, Tier, fill
from autocomp.hardware.profiling.growing import GrowingTable
from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Kernel

#: Called with kernels done, kernels in all, and seconds left of the time that was given.
Progress = Callable[[int, int, float], None]


def ensure_table(
    path: Path,
    kernels: Sequence[Kernel],
    measure: Measure,
    max_seconds: float,
    progress: Progress | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> LatencyTable:
    """The table in the file `path`, after those of `kernels` that it lacked were measured, most informative first.

    Stops after `max_seconds`; kernels that were not reached are left to the estimator. Each row is saved as soon as
    it is measured, so an interruption loses none, and no later call measures it again. See `profiling.fill`.
    UserError if `max_seconds` is not above 0 or the table is damaged.
    """
    if not max_seconds > 0:
        raise UserError(f"the time for measuring must be above 0 seconds, got {max_seconds!r}")
    table = GrowingTable(path)
    fill(table, [Tier("", kernels)], max_seconds, measure, _Counting(progress), clock=clock)
    return table.table


class _Counting:
    """Passes on how many of the kernels are done; what is measured a second time is not counted."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._total: int | None = None

    def phase(self, name: str, total: int | None = None, detail: str = "") -> None:
        self._total = None if name else total

    def advance(self, done: int, seconds_left: float | None = None) -> None:
        if self._progress is not None and self._total is not None:
            self._progress(done, self._total, seconds_left or 0.0)
