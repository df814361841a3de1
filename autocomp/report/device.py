"""Devices in the terminal: which there are, what one executes, what its table covers, and latency over channels."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autocomp.hardware.channel_sweep import Curve
from autocomp.hardware.constraints import CONSTRAINTS, reason
from autocomp.hardware.coverage import coverage
from autocomp.hardware.profile import INSTALLED, Capability, HardwareProfile
from autocomp.hardware.runtime_version import installed_version
from autocomp.hardware.table import LatencyTable
from autocomp.report.figures import significant
from autocomp.report.text import heading, line, plain_table

#: Rows of the chart in the terminal.
_CHART_ROWS = 12


def summary(profile: HardwareProfile, table: LatencyTable) -> dict[str, Any]:
    """One device of a list, as plain values. runtime_version: of the one that filled the table."""
    return {
        "name": profile.name,
        "title": profile.title,
        "provenance": profile.provenance.kind,
        "rows": len(table),
        "runtime": profile.runtime.name,
        "runtime_version": _version(profile),
        "stale": profile.staleness is not None,
    }


def document(profile: HardwareProfile, table: LatencyTable, shown: Curve | None) -> dict[str, Any]:
    """All that `hw show` knows, as plain values; `shown` is the curve that it draws."""
    described = profile.model_dump(mode="json") | summary(profile, table)
    described["runtime"] = {"name": profile.runtime.name, "version": _version(profile)}
    described["provenance"] = profile.provenance.model_dump(mode="json")
    described["staleness"] = profile.staleness
    described["constraints"] = {name: reason(CONSTRAINTS[name]) for name in profile.constraints}
    described["coverage"] = [asdict(entry) for entry in coverage(table)]
    if shown is not None:
        estimate = shown.estimate
        described["curve"] = {
            "kernel": str(shown.sweep),
            "measured": [{"channels": count, "latency_us": row.latency_us} for count, row in shown.measured.items()],
            "model": [
                {"channels": count, "latency_us": us, "low_us": low, "high_us": high, "extrapolated": far}
                for count, us, low, high, far in zip(
                    shown.channels, estimate.us.tolist(), estimate.low_us.tolist(), estimate.high_us.tolist(),
                    estimate.extrapolated.tolist(), strict=True,
                )
            ],
        }  # fmt: skip
    return described


def print_list(devices: Sequence[tuple[HardwareProfile, LatencyTable]], console: Console) -> None:
    """A line for each device, a warning for each whose table is stale, and one for each GPU that was not measured."""
    table = plain_table("name", "device", "latencies", ">kernels", "runtime")
    for profile, latencies in devices:
        row = summary(profile, latencies)
        source = Text(row["provenance"] + (", stale" if row["stale"] else ""), no_wrap=True)
        runtime = f"{row['runtime']} {row['runtime_version']}"
        table.add_row(row["name"], row["title"], source, f"{row['rows']:,}", runtime)
    console.print(table)
    for profile, _ in devices:
        if profile.staleness is not None:
            line(console, f"Stale: {profile.staleness}.")
    for profile, latencies in devices:
        if not latencies and profile.cuda_device is not None:
            line(console, _without_table(profile))


def print_device(profile: HardwareProfile, table: LatencyTable, console: Console) -> None:
    """What a device is, what it executes, where its latencies come from and what they cover."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(no_wrap=True, style="dim")
    facts.add_column()
    rows = [
        ("device", profile.device),
        ("core", profile.core),
        ("runtime", f"{profile.runtime.name} {_version(profile)}"),
        ("threads", str(profile.threads)),
        ("latencies", str(profile.provenance)),
    ]
    if profile.staleness is not None:
        rows.append(("stale", profile.staleness))
    for name, value in rows:
        facts.add_row(name, Text(value))
    console.print(Text(f"{profile.name}: {profile.title}", style="bold"))
    console.print(facts)
    _print_executes(profile, console)
    _print_coverage(profile, table, console)


def print_curve(shown: Curve, console: Console) -> None:
    """Latency over channels as a chart of one row a channel count: measured rows, the model, and its band."""
    heading(console, f"{shown.sweep}: latency over channels")
    chart = plain_table(">channels", ">µs", ">band", "")
    at = _chart_places(shown)
    estimate = shown.estimate
    largest = max(float(estimate.high_us[place]) for place in at)
    width = max(20, min(60, console.width - 36))
    for place in at:
        low, us, high = (float(v[place]) for v in (estimate.low_us, estimate.us, estimate.high_us))
        measured = shown.channels[place] in shown.measured
        marks = [" "] * (width + 1)
        first, middle, last = (round(width * value / largest) for value in (low, us, high))
        marks[first : last + 1] = "─" * (last + 1 - first)
        marks[middle] = "●" if measured else "○"
        beyond = " beyond the table" if estimate.extrapolated[place] else ""
        chart.add_row(
            str(shown.channels[place]), significant(us), f"{significant(low)}–{significant(high)}",
            Text("".join(marks).rstrip() + beyond),
        )  # fmt: skip
    console.print(chart)
    line(console, "● measured, ○ estimated between the rows, ─ 90 % band.")


def _chart_places(shown: Curve) -> list[int]:
    """Positions in the curve: measured channels and, between them, channels at equal distance."""
    channels = shown.channels
    measured = sorted(shown.measured)
    kept = measured[:: -(-len(measured) // _CHART_ROWS)] if measured else []
    extra = max(4, _CHART_ROWS - len(kept))
    even = [max(1, round(channels[-1] * step / extra / 8) * 8) for step in range(1, extra + 1)]
    nearest = {min(range(len(channels)), key=lambda i: abs(channels[i] - wish)) for wish in (*kept, *even)}
    return sorted(nearest)


def _print_executes(profile: HardwareProfile, console: Console) -> None:
    heading(console, "Executes")
    coded = any(map(_coding, profile.executes))  # a column that says nothing is left out
    table = plain_table("operators", "weight bits", *(["coded"] if coded else []), "activations", "runs as", "saves")
    notes: dict[str, int] = {}
    for capability in profile.executes:
        mark = ""
        if capability.note:
            mark = f" [{notes.setdefault(capability.note, len(notes) + 1)}]"
        saves = (
            "nothing" if capability.weight_bits == (None,) else "bytes" if capability.bytes_only else "bytes and time"
        )
        table.add_row(
            ", ".join(capability.operators), _bits(capability), *([_coding(capability)] if coded else []),
            capability.activation, capability.runs_as, Text(saves + mark),
        )  # fmt: skip
    console.print(table)
    for note, number in notes.items():
        line(console, f"[{number}] {note}")
    if profile.unstructured_sparsity_bytes_only:
        line(console, "Zeros inside a layer save bytes, but no time.")
    line(console, f"Kept channels are multiples of {profile.channel_multiple}.")
    for name in profile.constraints:
        line(console, f"Not offered: {reason(CONSTRAINTS[name])}")


def _print_coverage(profile: HardwareProfile, table: LatencyTable, console: Console) -> None:
    if not table:
        heading(console, "No kernel was measured yet")
        if profile.cuda_device is not None:
            line(console, _without_table(profile))
        else:
            line(console, f"Measure this machine: autocomp profile {profile.name} --minutes 10")
        return
    heading(console, f"{len(table):,} kernels in the table")
    shown = plain_table("kernel", "", ">rows", ">in", ">out", ">side", ">window", ">µs")
    for entry in coverage(table):
        shown.add_row(
            entry.op, entry.precision, str(entry.rows), str(entry.in_channels), str(entry.out_channels),
            str(entry.side), str(entry.window), f"{significant(entry.fastest_us)}–{significant(entry.slowest_us)}",
        )  # fmt: skip
    console.print(shown)
    heading(console, "Calibration")
    figures = Table.grid(padding=(0, 2, 0, 0))
    for name, value in profile.calibration.items():
        figures.add_row(Text(name.replace("_", " "), style="dim"), f"{value:g}")
    console.print(figures)


def _without_table(profile: HardwareProfile) -> str:
    """One sentence about a GPU that was not measured."""
    gpu = f"an {profile.cuda_device}" if profile.cuda_device else "a CUDA GPU"
    return f"{profile.name} ships without a table: autocomp profile {profile.name} fills one on a machine with {gpu}."


def _version(profile: HardwareProfile) -> str:
    version = profile.runtime.version
    return version if version != INSTALLED else installed_version(profile.runtime.name) or "not installed"


def _bits(capability: Capability) -> str:
    """[2, 3, 4, 5, 8] → "2–5, 8"; float32 is "float"."""
    numbers = sorted(bits for bits in capability.weight_bits if bits is not None)
    runs: list[list[int]] = []
    for bits in numbers:
        if runs and bits == runs[-1][-1] + 1:
            runs[-1].append(bits)
        else:
            runs.append([bits])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    return ", ".join((["float"] if None in capability.weight_bits else []) + parts)


def _coding(capability: Capability) -> str:
    """What else its weights may be: "4, 8, 16 clusters; 2:4 zeros"."""
    clusters = f"{', '.join(map(str, capability.clusters))} clusters" if capability.clusters else ""
    patterns = f"{', '.join(capability.patterns)} zeros" if capability.patterns else ""
    return "; ".join(filter(None, (clusters, patterns)))
