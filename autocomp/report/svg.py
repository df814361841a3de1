"""A still picture of a front, for a README: accuracy over bytes and over latencies, side by side, as plain SVG."""

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise
from textwrap import shorten

from autocomp.report.axes import COLOURS, FAINT, GRID, INK, CostAxis, accuracy_range, label, ticks
from autocomp.report.figures import provenances
from autocomp.rundir import Measured, RunData

HEIGHT = 400
_PANEL_WIDTH, _LEFT, _TOP, _BOTTOM = 375, 62, 44, 330
_GAP, _RIGHT = 70, 18

Scale = Callable[[float], float]


def front_svg(run: RunData) -> str:
    """The picture as a document of its own, a panel for each cost. A run without a front gives empty axes."""
    title = f"{run.settings.get('network') or run.settings.get('task', '')} on {run.settings.get('hw', '')}"
    axes = CostAxis.of_run(run)
    width = _LEFT + len(axes) * (_PANEL_WIDTH + _GAP) - _GAP + _RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}" role="img">',
        f"<title>{escape(title)}: accuracy over bytes and over latency</title>",
        f'<rect width="{width}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="24" font-size="15" font-weight="600">{escape(title)}</text>',
    ]
    for index, axis in enumerate(axes):
        parts += _panel(run, axis, _LEFT + index * (_PANEL_WIDTH + _GAP))
    provenance = shorten("; ".join(provenances(run)), 70 * len(axes))
    parts.append(f'<text x="{_LEFT}" y="{HEIGHT - 8}" font-size="11">{escape(provenance)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(run: RunData, axis: CostAxis, left: int) -> list[str]:
    """One set of axes with the trials, the front, the references and the budget."""
    shown = [*run.front, *run.references.values()]
    bottom_accuracy, top_accuracy = accuracy_range(shown)
    bound = axis.bound(run)
    values = [axis.of(measured) for measured in shown] + ([bound] if bound else [])
    low, high = min(values, default=1), max(values, default=10)
    pad = max(0.03, 0.06 * math.log10(high / low))
    start, stop = math.log10(low) - pad, math.log10(high) + pad

    def x(value: float) -> float:
        return left + _PANEL_WIDTH * (math.log10(value) - start) / (stop - start)

    def y(accuracy: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (100 * accuracy - bottom_accuracy) / (top_accuracy - bottom_accuracy)

    parts = []
    for tick in ticks(low, high):
        parts += [
            f'<path d="M{x(tick):.1f} {_TOP}V{_BOTTOM}" stroke="{GRID}"/>',
            f'<text x="{x(tick):.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{label(tick, axis)}</text>',
        ]
    for percent in _round_steps(bottom_accuracy, top_accuracy):
        height = y(percent / 100)
        parts += [
            f'<path d="M{left} {height:.1f}H{left + _PANEL_WIDTH}" stroke="{GRID}"/>',
            f'<text x="{left - 6}" y="{height + 4:.1f}" text-anchor="end">{percent:g}</text>',
        ]
    other = "latency" if axis.other.latency else "bytes"
    middle = (_TOP + _BOTTOM) / 2
    parts += [
        f'<path d="M{left} {_TOP}V{_BOTTOM}H{left + _PANEL_WIDTH}" fill="none" stroke="{FAINT}"/>',
        f'<text x="{left + _PANEL_WIDTH / 2}" y="{_BOTTOM + 38}" text-anchor="middle">{escape(axis.title)} '
        f"(darker: less {other})</text>",
    ]
    if left == _LEFT:
        parts.append(
            f'<text transform="translate({left - 42} {middle}) rotate(-90)" text-anchor="middle">'
            "validation accuracy, %</text>"
        )
    if bound:
        parts += [
            f'<path d="M{x(bound):.1f} {_TOP}V{_BOTTOM}" stroke="{INK}" stroke-dasharray="4 3"/>',
            f'<text x="{x(bound) - 4:.1f}" y="{_BOTTOM - 6}" text-anchor="end">budget</text>',
        ]
    for entry in run.entries:
        cost, accuracy = axis.of_trial(entry), entry.outcome.accuracy
        if accuracy is not None and cost and start <= math.log10(cost) <= stop and 100 * accuracy > bottom_accuracy:
            parts.append(f'<circle cx="{x(cost):.1f}" cy="{y(accuracy):.1f}" r="2" fill="{FAINT}" opacity="0.35"/>')

    def x_inside(value: float) -> float:
        """A band may reach beyond the panel: it ends at its edge."""
        return min(max(x(value), left), left + _PANEL_WIDTH)

    parts += _front(run.front, axis, x_inside, y)
    for reference in run.references.values():
        cx, cy = x(axis.of(reference)), y(reference.accuracy)
        parts += [
            f'<path d="M{cx:.1f} {cy - 7:.1f}l7 7l-7 7l-7 -7z" fill="#ffffff" stroke="{INK}" stroke-width="1.6"/>',
            f'<text x="{cx:.1f}" y="{cy + 22:.1f}" text-anchor="middle">{escape(reference.name)}</text>',
        ]
    return parts


def _front(front: Sequence[Measured], axis: CostAxis, x: Scale, y: Scale) -> list[str]:
    costs = [math.log10(axis.other.of(point)) for point in front]
    spread = max(costs, default=0.0) - min(costs, default=0.0)
    parts = []
    for point, cost in zip(front, costs, strict=True):
        height = f"{y(point.accuracy):.1f}"
        if axis.latency:
            low, high = (x(end) for end in axis.band(point))
            parts.append(f'<path d="M{low:.1f} {height}H{high:.1f}" stroke="{FAINT}" stroke-width="1.2"/>')
        colour = _colour((cost - min(costs)) / spread if spread else 0.0)
        parts.append(f'<circle cx="{x(axis.of(point)):.1f}" cy="{height}" r="5.5" fill="{colour}" stroke="{INK}"/>')
    return parts


def _round_steps(low: float, high: float) -> list[float]:
    """Four to eight round values of accuracy between low and high, in percent."""
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 8)
    first = math.ceil(low / step)
    return [round(index * step, 6) for index in range(first, math.floor(high / step) + 1) if index * step <= 100]


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
