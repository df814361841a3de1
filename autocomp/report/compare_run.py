"""A run's candidates on several devices: what each would have chosen, in the terminal, as a document, as a picture."""

from dataclasses import asdict
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.text import Text

from autocomp.compare_run import DeviceView, RunComparison
from autocomp.report.axes import INK, CostAxis
from autocomp.report.figures import percent, points, significant, size
from autocomp.report.panel import Panel, picture
from autocomp.report.text import heading, line, plain_table

#: A colour for each device's choice (Okabe & Ito 2008, told apart by the colour-blind); they come round again.
_CHOICES = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def document(found: RunComparison) -> dict[str, Any]:
    """As plain values: milliseconds, bytes, accuracies in [0, 1]."""
    return {
        "run": str(found.run),
        "network": found.title,
        "candidates": len(found.candidates),
        "run_choice": found.run_choice,
        "devices": [_device(found, view) for view in found.devices],
        "rank_correlations": [
            {"devices": list(pair), "spearman": rho} for pair, rho in found.rank_correlations.items()
        ],
    }


def _device(found: RunComparison, view: DeviceView) -> dict[str, Any]:
    behind = found.behind(view)
    return {
        "hw": view.name,
        "provenance": view.profile.provenance_note,
        "executes": len(view.taken),
        "refused": view.refused,
        "reason": view.reason,
        "choice": None if view.choice is None else _candidate(found, view, view.choice),
        "run_choice": None if behind is None else {
            **_candidate(found, view, found.run_choice or 0), "slower_ms": behind[0], "accuracy_gained": behind[1],
        },
        "front": [_candidate(found, view, name) for name in view.front],
    }  # fmt: skip


def _candidate(found: RunComparison, view: DeviceView, name: int) -> dict[str, Any]:
    return {"id": name, "accuracy": found.candidates[name].accuracy, **asdict(view.taken[name])}


def print_run_comparison(found: RunComparison, console: Console) -> None:
    """What each device would have chosen, how far the run's choice is from that, and how alike the devices rank."""
    table = plain_table("device", ">front", ">choice", ">valid. %", ">size", ">ms", ">run's, ms", ">points")
    for view in found.devices:
        behind = found.behind(view)
        cells = ["–"] * 4
        if view.choice is not None:
            taken = view.taken[view.choice]
            accuracy = percent(found.candidates[view.choice].accuracy).removesuffix(" %")
            cells = [str(view.choice), accuracy, size(taken.size_bytes), significant(taken.latency_ms)]
        against = ["–", "–"]
        if behind is not None:
            against = ["the same" if view.choice == found.run_choice else f"{behind[0]:+.3g}", points(behind[1])]
        table.add_row(Text(view.name), str(len(view.front)), *cells, *against)
    console.print(table)
    if found.rank_correlations:
        heading(console, "Do they rank the candidates alike? Spearman's ρ of their latencies")
        table = plain_table("device", "device", ">ρ")
        for (one, other), rho in found.rank_correlations.items():
            table.add_row(Text(one), Text(other), "–" if rho is None else significant(rho))
        console.print(table)
    console.print()
    line(console, f"{len(found.candidates)} candidates of {found.run}, scored once; only latency differs by device.")
    line(
        console,
        "choice: the fastest within the run's budget that is accurate enough, or else the most accurate. "
        f"run's: what {found.devices[0].name} chose, against this device's own choice: slower by, accuracy gained.",
    )
    for view in found.devices:
        if view.refused:
            line(console, f"{view.name} does not execute {view.refused} of them: {view.reason}")
        line(console, f"{view.name}: {view.profile.provenance_note}")


def comparison_svg(found: RunComparison) -> str:
    """Accuracy over latency, a panel for each device. The choices are in every panel, linked from one to the next."""
    views = [view for view in found.devices if view.taken]
    shown = {name for view in views for name in (*view.front, view.choice) if name is not None}
    accuracies = [100 * found.candidates[name].accuracy for name in shown]
    margin = max(0.25, 0.05 * (max(accuracies) - min(accuracies)))
    ends = min(accuracies) - margin, max(accuracies) + margin  # hopeless candidates must not squeeze the fronts
    panels, parts = [], []
    for index, view in enumerate(views):
        values = [figures.latency_ms for figures in view.taken.values()]
        panel = Panel(index, CostAxis(True, view.name), min(values), max(values), ends)
        panels.append(panel)
        parts += panel.frame(panel.axis.title)
        dots = [(figures.latency_ms, found.candidates[name].accuracy) for name, figures in view.taken.items()]
        parts += [panel.dot(*dot) for dot in dots if panel.holds(*dot)]
        at = [(panel.x(view.taken[name].latency_ms), panel.y(found.candidates[name].accuracy)) for name in view.front]
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{INK}"/>' for x, y in at]
    for name, chosen_by in _choices(found).items():
        colour = _CHOICES[[view.name for view in found.devices].index(chosen_by[0]) % len(_CHOICES)]
        places = [
            (panel.x(view.taken[name].latency_ms), panel.y(found.candidates[name].accuracy))
            for panel, view in zip(panels, views, strict=True)
            if name in view.taken
        ]
        parts += [
            f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="{colour}" stroke-dasharray="2 3"/>'
            for (x, y), (to_x, to_y) in pairwise(places)
        ]
        for x, y in places:
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{colour}" stroke="{INK}"/>',
                f'<text x="{x + 9:.1f}" y="{y + 16:.1f}" fill="{colour}">{name}</text>',
            ]
    marks = "; ".join(f"{name}: choice of {', '.join(devices)}" for name, devices in _choices(found).items())
    title = f"{found.title}: what each device would have chosen"
    return picture(title, "accuracy over latency on each device", marks, len(panels), parts)


def _choices(found: RunComparison) -> dict[int, list[str]]:
    """Candidate → the devices that chose it."""
    chosen: dict[int, list[str]] = {}
    for view in found.devices:
        if view.choice is not None:
            chosen.setdefault(view.choice, []).append(view.name)
    return chosen
