"""Axes that the page's charts and the still picture share: ranges, round ticks, labels and colours."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autocomp.journal import Entry
from autocomp.rundir import Measured, RunData

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


@dataclass(frozen=True, slots=True)
class CostAxis:
    """A cost that accuracy is drawn over: bytes, or the latency on a device ("" for the only one of a run)."""

    latency: bool
    device: str = ""

    @classmethod
    def of_run(cls, run: RunData) -> "list[CostAxis]":
        """Bytes, then the latency on each device."""
        return [cls(False), *(cls(True, device) for device in run.devices or ("",))]

    def of(self, point: Measured) -> float | None:
        """Of a point or a reference; None for a latency where the device does not execute it."""
        if not self.latency:
            return point.stored_bytes
        on = point.devices.get(self.device) if self.device else point
        return None if on is None else on.latency_ms

    def drawn(self, points: Iterable[Measured]) -> list[tuple[Measured, float]]:
        """Those of `points` that have such a cost, each with it."""
        return [(point, cost) for point in points if (cost := self.of(point)) is not None]

    def band(self, point: Measured) -> tuple[float, float]:
        """The ends of the latency table's band; of a point that has a latency."""
        on = point.devices[self.device] if self.device else point
        assert on.latency_low_ms is not None and on.latency_high_ms is not None
        return on.latency_low_ms, on.latency_high_ms

    def of_trial(self, entry: Entry) -> float | None:
        """Of a trial that need not be on the front; None where it has no such cost."""
        if not self.latency:
            return entry.outcome.size_bytes
        if not self.device:
            return entry.outcome.latency_ms
        figures = entry.details.get("devices", {}).get(self.device)
        return None if figures is None else float(figures["latency_ms"])

    def bound(self, run: RunData) -> float | None:
        """The least that the run's budget allows of it, None for no bound."""
        name = "latency_ms" if self.latency else "size_bytes"
        devices = run.settings.get("devices") or {}
        asked = [devices[self.device]] if self.device in devices else [*devices.values()] or [run.settings]
        budgets = [facts.get("budget") for facts in asked]
        bounds = [budget[name] for budget in budgets if isinstance(budget, dict) and budget.get(name)]
        return min(bounds, default=None)

    @property
    def title(self) -> str:
        if not self.latency:
            return "bytes on the device"
        return f"latency on {self.device}" if self.device else "latency by the device's table"

    @property
    def other(self) -> "CostAxis":
        """What the points are coloured by: latency where this is bytes, and bytes where it is latency."""
        return CostAxis(not self.latency)


def label(value: float, axis: CostAxis) -> str:
    """A tick in words."""
    if axis.latency:
        return f"{value:.3g} ms"
    unit, factor = next((u, f) for u, f in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)) if value >= f or f == 1)
    return f"{value / factor:.3g} {unit}"
