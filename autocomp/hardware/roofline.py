"""What limits a kernel, by the roofline argument (Williams, Waterman & Patterson 2009), with the table's own figures.

A device computes at most so many multiply-accumulates a microsecond, moves at most so many bytes a microsecond, and
spends some time on every call, whatever it does. Each of the three alone would take a kernel

    macs / peak_macs        bytes / peak_bytes        call_us

and the longest of them is what limits it: a kernel gets faster when that one gets smaller. The figures are taken from
the rows of the same precision. A call costs as much as the fastest row, which does next to nothing else. A peak is the
third best that any row achieves (one or two may be mismeasured), among the rows that take at least three calls' time.
Conversions between precisions and layouts are named as such: what makes them superfluous is another decision about
their neighbours, not less work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Kernel

Limit = Literal["compute", "memory", "overhead", "conversion"]
#: Operators that change how a tensor is stored and compute nothing.
CONVERSIONS = frozenset({"quantize", "dequantize"})
_FROM_TOP = 3
_WORKING = 3.0  # calls' time


@dataclass(frozen=True, slots=True)
class _Peaks:
    """macs, bytes: per microsecond. call_us: microseconds that a call takes at least."""

    macs: float
    bytes: float
    call_us: float

    def limit(self, kernel: Kernel) -> Limit:
        times: dict[Limit, float] = {
            "compute": kernel.macs / self.macs if self.macs else 0.0,
            "memory": bytes_moved(kernel) / self.bytes if self.bytes else 0.0,
            "overhead": self.call_us,
        }
        return max(times, key=times.__getitem__)


class Roofline:
    """The limits of one device, read off its table."""

    def __init__(self, table: LatencyTable) -> None:
        """An empty table is of no help: then a kernel is limited by what it has more of, MACs or bytes."""
        self._peaks = {precision: _peaks(table, precision) for precision in ("fp32", "int8")}

    def limits(self, kernels: Sequence[Kernel]) -> list[Limit]:
        """What limits each of `kernels`, in the order given."""
        return ["conversion" if k.op in CONVERSIONS else self._peaks[k.precision].limit(k) for k in kernels]


def bytes_moved(kernel: Kernel) -> int:
    """Bytes of a kernel's inputs, output and weights, each once."""
    width = 4 if kernel.precision == "fp32" else 1
    return width * (kernel.in_elements + kernel.out_elements + kernel.weight_count)


def _peaks(table: LatencyTable, precision: str) -> _Peaks:
    rows = [(k, row.latency_us) for k, row in table.items() if k.precision == precision and k.op not in CONVERSIONS]
    if not rows:
        return _Peaks(1.0, 1.0, 0.0)
    call_us = min(us for _, us in rows)
    working = [(kernel, us) for kernel, us in rows if us >= _WORKING * call_us] or rows
    macs = _third_best([kernel.macs / us for kernel, us in working])
    moved = _third_best([bytes_moved(kernel) / us for kernel, us in working])
    return _Peaks(macs, moved, call_us)


def _third_best(rates: Sequence[float]) -> float:
    return sorted(rates)[-min(_FROM_TOP, len(rates))]
