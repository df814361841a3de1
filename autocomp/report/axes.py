"""Axes that the page's charts and the still picture share: ranges, round ticks, labels and colours."""

import math
from collections.abc import Sequence

from autocomp.rundir import Measured

#: Viridis without its yellow end, which vanishes on white. Position in [0, 1] and colour.
COLOURS = ((0.0, "#440154"), (0.35, "#3b528b"), (0.7, "#21918c"), (1.0, "#7ad151"))
INK, FAINT, GRID = "#1f2430", "#8a909c", "#e4e7ec"
FONT = "system-ui, sans-serif"


def accuracy_range(shown: Sequence[Measured]) -> tuple[float, float]:
    """The front and the references with a margin: hopeless trials must not squeeze them into a line."""
    values = [100 * measured.accuracy for measured in shown] or [0.0, 100.0]
    margin = max(0.25, 0.14 * (max(values) - min(values)))
    return min(values) - margin, max(values) + 0.7 * margin


def ticks(low: float, high: float) -> list[float]:
    """Round values between low and high, at least three where the span allows: powers of ten first, then finer."""
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(values) >= 3:  # more of them run into each other on a small chart
            return values
    return values if len(values) >= 2 else [low, high]


def label(value: float, axis: str) -> str:
    if axis == "latency_ms":
        return f"{value:.3g} ms"
    unit, factor = next((u, f) for u, f in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)) if value >= f or f == 1)
    return f"{value / factor:.3g} {unit}"
