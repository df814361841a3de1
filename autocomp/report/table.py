"""The table of a front in the terminal."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from autocomp.report.figures import failed_references, metric_of, percent, points, provenances, significant, size, times
from autocomp.rundir import Measured, OnDevice, RunData


def front_table(run: RunData) -> Table:
    """Reference rows on top, then the front from the fewest bytes to the most. Fits into 80 columns.

    Where memory was bounded, it stands in the place of how much smaller a file is. For several devices each has a
    column of its latency and of how many times faster that is than the float network's.
    """
    if run.devices:
        return _several_devices(run)
    with_memory = (run.settings.get("budget") or {}).get("memory_bytes") is not None
    # Units stand in the headings: with them in the cells the table is wider than 80 columns.
    unit, factor = _unit_of_time([*run.references.values(), *run.front])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("id", no_wrap=True)
    beside_size = "memory" if with_memory else "smaller"
    for heading in ("valid. %", "test %", "Δ test", "size", beside_size, unit, "low–high", "faster"):
        table.add_column(heading, justify="right", no_wrap=True)
    for measured in run.references.values():
        table.add_row(*_cells(measured, run, factor, with_memory=with_memory), style="dim")
    _end_references(table, run)
    for point in run.front:
        table.add_row(*_cells(point, run, factor, with_memory=with_memory))
    return table


def _several_devices(run: RunData) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("id", no_wrap=True)
    for heading in ("valid. %", "test %", "Δ test", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown = [*run.references.values(), *run.front]
    units = {name: _unit_of_time([m.devices[name] for m in shown if name in m.devices]) for name in run.devices}
    for name, (unit, _) in units.items():
        # A long name is folded before a figure is.
        table.add_column(f"{name} {unit}", justify="right", min_width=10, overflow="fold")
    for measured in shown:
        is_reference = measured.name in run.references
        reference = None if measured is run.float_reference else run.float_reference
        cells = []
        for name, (_, factor) in units.items():
            gain = run.faster(measured, name)
            latency = measured.devices[name].latency_ms * factor if name in measured.devices else None
            cells.append(significant(latency) + ("" if gain is None else f" {times(gain)}"))
        if measured in run.front[:1]:
            _end_references(table, run)
        table.add_row(
            *_accuracies(measured, reference), size(measured.stored_bytes), *cells,
            style="dim" if is_reference else None,
        )  # fmt: skip
    return table


def _end_references(table: Table, run: RunData) -> None:
    """A row for each reference that failed, whose reason is a footnote, and the rule above the front."""
    for name in run.failed:
        table.add_row(name, "failed", style="dim")
    if run.references or run.failed:
        table.add_section()


def _unit_of_time(shown: Sequence[Measured] | Sequence[OnDevice]) -> tuple[str, float]:
    """The unit in which no latency takes more columns than there are, and how many of it a millisecond has."""
    shortest = min((m.latency_low_ms for m in shown if m.latency_low_ms is not None), default=1.0)
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
    if sources := provenances(run):
        notes.append(f"Latency: {'; '.join(sources)}.")
    beyond = max((point.extrapolated_share or 0.0 for point in run.front), default=0.0)
    if beyond >= 0.005:
        notes.append(f"Extrapolated beyond what the table measured: up to {beyond:.0%} of a point's latency.")
    if run.front:
        split = "; Δ test: percentage points against the float network." if run.float_reference is not None else "."
        metric = metric_of(run.settings)
        judged = "Accuracy of each file" if metric == "accuracy" else f"Valid. and test: {metric} of each file"
        notes.append(f"{judged}, scored by the runtime{split}")
    notes += failed_references(run)
    if run.float_reference is None and run.baseline is not None:
        notes.append("Smaller, faster: than plain int8; there is no float file to compare with.")
    elif run.baseline is None and run.float_reference is not None:
        notes.append("Size: what the compiler makes of the file. No ratios: no float runs here, and int8 failed.")
    elif run.baseline is not run.float_reference:
        notes.append("Size: what the compiler makes of the file. Smaller, faster: than plain int8; no float runs here.")
    for point in run.front:
        if point.cpu_operators:
            notes.append(f"Left to the CPU in {point.name}, not in its latency: {point.cpu_operators}.")
    left = run.settings.get("left_alone") or []
    if left:
        notes.append(f"Left as they were: {len(left)} parts of the network; the report says which and why.")
    notes.append(f"Files:   {run.path / 'models'}")
    notes.append(f"Report:  {run.path / 'report.html'}")
    return notes


def _cells(measured: Measured, run: RunData, factor: float, *, with_memory: bool) -> tuple[str, ...]:
    ends = (measured.latency_low_ms, measured.latency_high_ms)
    band = "–".join(significant(end * factor) for end in ends if end is not None)
    memory = "" if measured.memory_bytes is None else size(measured.memory_bytes)
    return (
        *_accuracies(measured, None if measured is run.float_reference else run.float_reference),
        size(measured.stored_bytes),
        memory if with_memory else times(run.smaller(measured)),
        significant(None if measured.latency_ms is None else measured.latency_ms * factor),
        band or "–",
        times(run.faster(measured)),
    )


def _accuracies(measured: Measured, reference: Measured | None) -> tuple[str, str, str, str]:
    """Name, accuracy on both splits, and what the test split lost against the reference."""
    drop = None
    if reference is not None and measured.test_accuracy is not None and reference.test_accuracy is not None:
        drop = measured.test_accuracy - reference.test_accuracy
    validation, test = (percent(a).removesuffix(" %") for a in (measured.accuracy, measured.test_accuracy))
    return measured.name, validation, test, points(drop)


def as_document(run: RunData) -> dict[str, Any]:
    """What `--json` prints: the front, the references and how the run went, in the units of front.csv."""
    settings = run.settings
    return {
        "run": str(run.path),
        "status": settings.get("status", ""),
        "counts": settings.get("counts", {}),
        "references": [asdict(reference) for reference in run.references.values()],
        "failed_references": [{"name": name, "reason": reason} for name, reason in run.failed.items()],
        "front": [asdict(point) for point in run.front],
        "left_alone": settings.get("left_alone") or [],
    }
