"""The table of a front in the terminal."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from autocomp.report.figures import percent, points, significant, size, times
from autocomp.rundir import Measured, RunData


def front_table(run: RunData) -> Table:
    """Reference rows on top, then the front from the fewest bytes to the most. Fits into 80 columns.

    Where memory was bounded, it stands in the place of how much smaller a file is.
    """
    with_memory = (run.settings.get("budget") or {}).get("memory_bytes") is not None
    reference = run.float_reference
    # Units stand in the headings: with them in the cells the table is wider than 80 columns.
    unit, factor = _unit_of_time([*run.references.values(), *run.front])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("id", no_wrap=True)
    beside_size = "memory" if with_memory else "smaller"
    for heading in ("valid. %", "test %", "Δ test", "size", beside_size, unit, "low–high", "faster"):
        table.add_column(heading, justify="right", no_wrap=True)
    for measured in run.references.values():
        last = measured is [*run.references.values()][-1]
        cells = _cells(measured, reference, factor, with_memory=with_memory)
        table.add_row(*cells, style="dim", end_section=last)
    for point in run.front:
        table.add_row(*_cells(point, reference, factor, with_memory=with_memory))
    return table


def _unit_of_time(shown: Sequence[Measured]) -> tuple[str, float]:
    """The unit in which no latency takes more columns than there are, and how many of it a millisecond has."""
    shortest = min((measured.latency_low_ms for measured in shown), default=1.0)
    return ("µs", 1000.0) if shortest < 0.0995 else ("ms", 1.0)


def print_front(run: RunData, console: Console) -> None:
    """The table, and under it where the latency comes from, where the files are and what to type next."""
    if not run.front:
        console.print(f"No file is on the front of {run.path}.", markup=False, highlight=False)
    else:
        console.print(front_table(run))
    for text in footnotes(run):
        # Wrapped by hand: a path that rich breaks in two cannot be copied.
        wrapped = textwrap.wrap(text, max(40, console.width), break_long_words=False, break_on_hyphens=False)
        console.print("\n".join(wrapped), markup=False, highlight=False, soft_wrap=True)


def footnotes(run: RunData) -> list[str]:
    notes = []
    provenances = dict.fromkeys(point.provenance for point in run.front if point.provenance)
    if provenances:
        notes.append(f"Latency: {'; '.join(provenances)}.")
    beyond = max((point.extrapolated_share or 0.0 for point in run.front), default=0.0)
    if beyond >= 0.005:
        notes.append(f"Extrapolated beyond what the table measured: up to {beyond:.0%} of a point's latency.")
    if run.front:
        split = "Δ test: percentage points against the float network."
        notes.append(f"Accuracy of each file, scored by the runtime; {split}")
    left = run.settings.get("left_alone") or []
    if left:
        notes.append(f"Left as they were: {len(left)} parts of the network; the report says which and why.")
    notes.append(f"Files:   {run.path / 'models'}")
    notes.append(f"Report:  {run.path / 'report.html'}")
    return notes


def _cells(measured: Measured, reference: Measured | None, factor: float, *, with_memory: bool) -> tuple[str, ...]:
    drop = smaller = faster = None
    if reference is not None and measured is not reference:
        smaller = reference.size_bytes / measured.size_bytes
        faster = reference.latency_ms / measured.latency_ms
        if measured.test_accuracy is not None and reference.test_accuracy is not None:
            drop = measured.test_accuracy - reference.test_accuracy
    low, high = significant(measured.latency_low_ms * factor), significant(measured.latency_high_ms * factor)
    memory = "" if measured.memory_bytes is None else size(measured.memory_bytes)
    return (
        measured.name,
        percent(measured.accuracy).removesuffix(" %"),
        percent(measured.test_accuracy).removesuffix(" %"),
        points(drop),
        size(measured.size_bytes),
        memory if with_memory else times(smaller),
        significant(measured.latency_ms * factor),
        f"{low}–{high}",
        times(faster),
    )


def as_document(run: RunData) -> dict[str, Any]:
    """What `--json` prints: the front, the references and how the run went, in the units of front.csv."""
    settings = run.settings
    return {
        "run": str(run.path),
        "status": settings.get("status", ""),
        "counts": settings.get("counts", {}),
        "references": [asdict(reference) for reference in run.references.values()],
        "front": [asdict(point) for point in run.front],
        "left_alone": settings.get("left_alone") or [],
    }
