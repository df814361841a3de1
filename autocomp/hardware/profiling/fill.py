"""Fills a table within a given time: most informative kernels first, doubtful rows once more."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.kernel_models import EXECUTED_AS
from autocomp.hardware.profiling.chains import REFERENCE
from autocomp.hardware.profiling.growing import GrowingTable
from autocomp.hardware.profiling.planning import SURPRISING, doubtful, informative_order
from autocomp.hardware.runner import BATCH
from autocomp.hardware.table import Latency
from autocomp.kernel import Kernel

#: Operators that models of single kernels can be built of; any other is left to the estimator.
MEASURED_OPS = frozenset(op for op, _ in EXECUTED_AS)
#: Share of the time that is kept for measuring doubtful rows once more.
_FOR_DOUBTS = 0.15
#: The estimator is fitted anew when the table has grown by this fraction.
_GROWTH = 0.2


class Measured(NamedTuple):
    """One kernel's latency, and the microseconds of the reference kernel in the same rounds."""

    kernel: Kernel
    latency: Latency
    reference_us: float


#: Measures kernels, one by one as they are known; past the deadline (of `time.monotonic`) it comes to its end.
Measure = Callable[[Sequence[Kernel], float], Iterable[Measured]]


class Watch(Protocol):
    """Who is told how far it is. `autocomp.display.Display` is one."""

    def phase(self, name: str, total: int | None = None, detail: str = "") -> None: ...

    def advance(self, done: int, seconds_left: float | None = None) -> None: ...


class Tier(NamedTuple):
    """Kernels that come before those of the next tier. name: of the phase, for who watches."""

    name: str
    kernels: Sequence[Kernel]


@dataclass
class Filling:
    """What calls of `fill` did.

    added: rows, in the order in which they were measured. checked: those that were measured once more, of which some
    were `corrected`. refused: kernels that the runtime does not build.
    """

    added: list[Kernel] = field(default_factory=list)
    checked: set[Kernel] = field(default_factory=set)
    corrected: int = 0
    refused: list[Kernel] = field(default_factory=list)


def fill(
    table: GrowingTable,
    tiers: Sequence[Tier],
    seconds: float,
    measure: Measure,
    watch: Watch,
    *,
    filling: Filling | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Filling:
    """Measures the kernels of `tiers` that `table` lacks, for `seconds` at most; ends early when there are none left.

    Each row is saved as it is measured, so an interruption loses none; `filling` then holds what was done. Rows that
    come out clearly slower than the others predict are measured once more, and a clearly lower value replaces the
    first: something disturbed it. Only a clear one, since the lower of any two would favour lucky placements in
    memory, which networks do not have.
    """
    run = _Run(table, measure, watch, Filling() if filling is None else filling, clock, clock() + seconds)
    for until in (run.end - _FOR_DOUBTS * seconds, run.end):
        for tier in tiers:
            run.sample(tier, until)
        run.check_doubtful()
    return run.filling


class _Run:
    def __init__(
        self,
        table: GrowingTable,
        measure: Measure,
        watch: Watch,
        filling: Filling,
        clock: Callable[[], float],
        end: float,
    ) -> None:
        self.table, self.filling, self.end = table, filling, end
        self._measure, self._watch, self._clock = measure, watch, clock
        self._tried: set[Kernel] = {REFERENCE}

    def sample(self, tier: Tier, until: float) -> None:
        """Measures what the table lacks of one tier, the most informative first, by what is known by then."""
        wanted = [kernel for kernel in dict.fromkeys(tier.kernels) if kernel.op in MEASURED_OPS]
        left = self._lacking(wanted)
        if not left or self._clock() >= until:
            return
        self._watch.phase(tier.name, total=len(wanted))
        while left and self._clock() < until:
            known = self.table.table
            most = max(BATCH, int(_GROWTH * len(known)))
            for batch in _batches(informative_order(left, known, LatencyModel.from_table(known), most)):
                if self._clock() >= until:
                    break
                self._tried.update(batch)
                for kernel, latency, reference_us in self._measure(batch, until):
                    self.table.add(kernel, latency, reference_us)
                    self.filling.added.append(kernel)
                self.filling.refused += [kernel for kernel in batch if kernel not in self.table.table]
                self._advance(len(wanted) - len(self._lacking(wanted)))
            left = self._lacking(left)

    def check_doubtful(self) -> None:
        """Measures rows that this run added and that look disturbed once more, each once."""
        if not self.filling.added or self._clock() >= self.end:
            return
        model = LatencyModel.from_table(self.table.table)
        fresh = [kernel for kernel in self.filling.added if kernel not in self.filling.checked]
        rows = doubtful(fresh, self.table.table, model)
        if not rows:
            return
        self._watch.phase("measuring doubtful rows again", total=len(rows))
        for done, batch in enumerate(_batches(rows)):
            if self._clock() >= self.end:
                break
            self.filling.checked.update(batch)
            for kernel, latency, reference_us in self._measure(batch, self.end):
                if latency.latency_us < np.exp(-SURPRISING) * self.table.table[kernel].latency_us:
                    self.table.add(kernel, latency, reference_us)
                    self.filling.corrected += 1
            self._advance(min(len(rows), (done + 1) * BATCH))

    def _lacking(self, kernels: Iterable[Kernel]) -> list[Kernel]:
        return [kernel for kernel in kernels if kernel not in self._tried and kernel not in self.table.table]

    def _advance(self, done: int) -> None:
        self._watch.advance(done, max(0.0, self.end - self._clock()))


def _batches(kernels: Sequence[Kernel]) -> Iterable[Sequence[Kernel]]:
    return (kernels[start : start + BATCH] for start in range(0, len(kernels), BATCH))
