"""Filling a latency table by simulation: a CSV that grows row by row and can be continued at any time."""

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from autocomp.hardware.arm_simulation.simulate import Simulation
from autocomp.hardware.table import KEY_COLUMNS, LatencyTable
from autocomp.kernel import Kernel

COLUMNS = (*KEY_COLUMNS, "latency_us", "spread_us")

#: Kernels simulated by one process: enough to share its start (seconds), few enough to lose little to a kill.
BATCH = 60


def kernels_in(path: Path) -> set[Kernel]:
    """Kernels that a table already holds; none if there is no file. UserError if it isn't a table.

    A last line that a kill cut short is removed from the file.
    """
    if not path.exists():
        return set()
    text = path.read_text()
    if not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1])
    return set(LatencyTable.read(path)) if path.stat().st_size else set()


def append(path: Path, simulations: Iterable[Simulation]) -> None:
    """Add rows to a table, under a header if it is new."""
    new = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        if new:
            rows.writerow(COLUMNS)
        for simulation in simulations:
            key = (getattr(simulation.kernel, column) for column in KEY_COLUMNS)
            rows.writerow((*key, f"{simulation.latency_us:.3f}", f"{simulation.spread_us:.3f}"))


def build_table(
    path: Path, kernels: Sequence[Kernel], simulate: Callable[[Sequence[Kernel]], Iterable[Simulation]]
) -> int:
    """Simulate the kernels that the table lacks, append them as they come, and return how many were added."""
    present = kernels_in(path)
    missing = [kernel for kernel in kernels if kernel not in present]
    added = 0
    for batch in _batches(missing):
        simulations = list(simulate(batch))
        append(path, simulations)
        added += len(simulations)
        print(f"{len(present) + added} rows of {len(kernels)}: {batch[-1]}", file=sys.stderr, flush=True)
    return added


def _batches(kernels: Sequence[Kernel]) -> Iterator[Sequence[Kernel]]:
    for start in range(0, len(kernels), BATCH):
        yield kernels[start : start + BATCH]
