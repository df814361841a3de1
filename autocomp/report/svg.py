"""A still picture of a front, for a README: accuracy over bytes and over latencies, side by side, as plain SVG."""

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from textwrap import shorten

from autocomp.report.axes import COLOURS, FAINT, INK, CostAxis, accuracy_range
from autocomp.report.figures import metric_of, provenances
from autocomp.report.panel import BOTTOM, TOP, Panel, picture
from autocomp.rundir import Measured, RunData


def front_svg(run: RunData) -> str:
    """The picture as a document of its own, a panel for each cost. A run without a front gives empty axes."""
    title = f"{run.settings.get('network') or run.settings.get('task', '')} on {run.settings.get('hw', '')}"
    axes = CostAxis.of_run(run)
    parts = [part for index, axis in enumerate(axes) for part in _panel(run, axis, index)]
    footnote = shorten("; ".join(provenances(run)), 70 * len(axes))
    return picture(title, f"{metric_of(run.settings)} over bytes and over latency", footnote, len(axes), parts)


def _panel(run: RunData, axis: CostAxis, index: int) -> list[str]:
    """One set of axes with the trials, the front, the references and the budget."""
    shown = [*run.front, *run.references.values()]
    bound = axis.bound(run)
    values = [cost for _, cost in axis.drawn(shown)] + ([bound] if bound else [])
    panel = Panel(index, axis, min(values, default=1), max(values, default=10), accuracy_range(shown))
    parts = panel.frame(
        f"{axis.title} (darker: less {'latency' if axis.other.latency else 'bytes'})", metric_of(run.settings)
    )
    if bound:
        x = panel.x(bound)
        parts += [
            f'<path d="M{x:.1f} {TOP}V{BOTTOM}" stroke="{INK}" stroke-dasharray="4 3"/>',
            f'<text x="{x - 4:.1f}" y="{BOTTOM - 6}" text-anchor="end">budget</text>',
        ]
    for entry in run.entries:
        cost, accuracy = axis.of_trial(entry), entry.outcome.accuracy
        if accuracy is not None and cost is not None and panel.holds(cost, accuracy):
            parts.append(panel.dot(cost, accuracy))
    parts += _front(run.front, panel)
    for reference, cost in axis.drawn(run.references.values()):
        x, y = panel.x(cost), panel.y(reference.accuracy)
        parts += [
            f'<path d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z" fill="#ffffff" stroke="{INK}" stroke-width="1.6"/>',
            f'<text x="{x:.1f}" y="{y + 22:.1f}" text-anchor="middle">{escape(reference.name)}</text>',
        ]
    return parts


def _front(front: Sequence[Measured], panel: Panel) -> list[str]:
    axis = panel.axis
    costs = [math.log10(cost) for _, cost in axis.other.drawn(front)]
    spread = max(costs, default=0.0) - min(costs, default=0.0)
    parts = []
    for (point, own), cost in zip(axis.drawn(front), costs, strict=True):
        height = f"{panel.y(point.accuracy):.1f}"
        if axis.latency:
            low, high = (panel.x(end) for end in axis.band(point))
            parts.append(f'<path d="M{low:.1f} {height}H{high:.1f}" stroke="{FAINT}" stroke-width="1.2"/>')
        colour = _colour((cost - min(costs)) / spread if spread else 0.0)
        parts.append(f'<circle cx="{panel.x(own):.1f}" cy="{height}" r="5.5" fill="{colour}" stroke="{INK}"/>')
    return parts


def _colour(position: float) -> str:
    """The colour at `position` in [0, 1], between its neighbours in COLOURS."""
    for (start, before), (stop, after) in pairwise(COLOURS):
        if position <= stop:
            share = (position - start) / (stop - start)
            mixed = [
                round(int(before[at : at + 2], 16) * (1 - share) + int(after[at : at + 2], 16) * share)
                for at in (1, 3, 5)
            ]
            return "#" + "".join(f"{channel:02x}" for channel in mixed)
    return COLOURS[-1][1]
