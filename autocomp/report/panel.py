"""One set of axes of a still picture: accuracy over a cost on a logarithmic scale, as parts of an SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from textwrap import shorten

from autocomp.report.axes import FAINT, GRID, INK, CostAxis, label, ticks

HEIGHT, WIDTH, LEFT, TOP, BOTTOM = 400, 375, 62, 44, 330
_GAP, _RIGHT = 70, 18


@dataclass(frozen=True, slots=True)
class Panel:
    """index: place in the picture, from 0 at the left. axis: the cost. low, high: ends of what is drawn of it.

    accuracies: ends of the other axis, in percent.
    """

    index: int
    axis: CostAxis
    low: float
    high: float
    accuracies: tuple[float, float]

    @property
    def left(self) -> float:
        return LEFT + self.index * (WIDTH + _GAP)

    @property
    def _span(self) -> tuple[float, float]:
        """In powers of ten, with a margin."""
        pad = max(0.03, 0.06 * math.log10(self.high / self.low))
        return math.log10(self.low) - pad, math.log10(self.high) + pad

    def x(self, cost: float) -> float:
        """Of a cost; what lies beyond the panel ends at its edge."""
        start, stop = self._span
        return self.left + WIDTH * min(max((math.log10(cost) - start) / (stop - start), 0.0), 1.0)

    def y(self, accuracy: float) -> float:
        """Of an accuracy in [0, 1]."""
        bottom, top = self.accuracies
        return BOTTOM - (BOTTOM - TOP) * (100 * accuracy - bottom) / (top - bottom)

    def holds(self, cost: float, accuracy: float) -> bool:
        start, stop = self._span
        return cost > 0 and start <= math.log10(cost) <= stop and 100 * accuracy > self.accuracies[0]

    def frame(self, title: str, metric: str = "accuracy") -> list[str]:
        """Grid, ticks and titles, `title` under the axis of the cost; the leftmost panel says what the other one is.

        metric: what is shown in percent.
        """
        parts = []
        for tick in ticks(self.low, self.high):
            parts += [
                f'<path d="M{self.x(tick):.1f} {TOP}V{BOTTOM}" stroke="{GRID}"/>',
                f'<text x="{self.x(tick):.1f}" y="{BOTTOM + 18}" text-anchor="middle">{label(tick, self.axis)}</text>',
            ]
        for percent in _round_steps(*self.accuracies):
            height = self.y(percent / 100)
            parts += [
                f'<path d="M{self.left} {height:.1f}H{self.left + WIDTH}" stroke="{GRID}"/>',
                f'<text x="{self.left - 6}" y="{height + 4:.1f}" text-anchor="end">{percent:g}</text>',
            ]
        parts += [
            f'<path d="M{self.left} {TOP}V{BOTTOM}H{self.left + WIDTH}" fill="none" stroke="{FAINT}"/>',
            f'<text x="{self.left + WIDTH / 2}" y="{BOTTOM + 38}" text-anchor="middle">{escape(title)}</text>',
        ]
        if self.index == 0:
            parts.append(
                f'<text transform="translate({self.left - 42} {(TOP + BOTTOM) / 2}) rotate(-90)" '
                f'text-anchor="middle">{escape(shorten(metric, 44))} on validation, %</text>'
            )
        return parts

    def dot(self, cost: float, accuracy: float) -> str:
        """A trial among many."""
        x, y = self.x(cost), self.y(accuracy)
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{FAINT}" opacity="0.35"/>'


def picture(title: str, description: str, footnote: str, panels: int, parts: Sequence[str]) -> str:
    """`parts` as a document of its own, under `title` and wide enough for so many panels."""
    width = LEFT + panels * (WIDTH + _GAP) - _GAP + _RIGHT
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}" role="img">',
        f"<title>{escape(title)}: {escape(description)}</title>",
        f'<rect width="{width}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="600">{escape(title)}</text>',
    ]
    foot = f'<text x="{LEFT}" y="{HEIGHT - 8}" font-size="11">{escape(footnote)}</text>'
    return "\n".join([*head, *parts, foot, "</svg>", ""])


def _round_steps(low: float, high: float) -> list[float]:
    """Four to eight round values of accuracy between low and high, in percent."""
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 8)
    first = math.ceil(low / step)
    return [round(index * step, 6) for index in range(first, math.floor(high / step) + 1) if index * step <= 100]
