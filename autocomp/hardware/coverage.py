"""What a latency table covers: how many kernels of each kind, and over which sizes."""

from collections.abc import Iterable
from dataclasses import dataclass

from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Kernel


@dataclass(frozen=True, slots=True)
class Span:
    """The smallest and the largest of some whole numbers."""

    low: int
    high: int

    @classmethod
    def of(cls, values: Iterable[int]) -> "Span":
        found = list(values)
        return cls(min(found), max(found))

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}–{self.high}"


@dataclass(frozen=True, slots=True)
class Coverage:
    """The rows of one (op, precision).

    side: the longer spatial side of the input. window: the longer side of the window, 1 for what has none.
    fastest_us, slowest_us: the smallest and the largest latency.
    """

    op: str
    precision: str
    rows: int
    in_channels: Span
    out_channels: Span
    side: Span
    window: Span
    fastest_us: float
    slowest_us: float


def coverage(table: LatencyTable) -> list[Coverage]:
    """One entry for each (op, precision) of the table, most rows first."""
    grouped: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in sorted(table):
        grouped.setdefault((kernel.op, kernel.precision), []).append(kernel)
    found = []
    for (op, precision), kernels in grouped.items():
        latencies = [table[kernel].latency_us for kernel in kernels]
        found.append(
            Coverage(
                op,
                precision,
                len(kernels),
                Span.of(kernel.in_channels for kernel in kernels),
                Span.of(kernel.out_channels for kernel in kernels),
                Span.of(max(kernel.height, kernel.width) for kernel in kernels),
                Span.of(max(kernel.kernel_h, kernel.kernel_w) for kernel in kernels),
                min(latencies),
                max(latencies),
            )
        )
    return sorted(found, key=lambda entry: -entry.rows)
