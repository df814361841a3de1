"""What limits a kernel, by the roofline argument (Williams, Waterman & Patterson 2009), with the table's own figures.

A device computes at most so many multiply-accumulates a microsecond and moves at most so many bytes. Their ratio, the
ridge point, divides kernels by their arithmetic intensity, the MACs for each byte of inputs, output and weights:

    conversion  a kernel that only changes how a tensor is stored. What makes it superfluous is another decision about
                its neighbours, not less work
    overhead    it takes less than three times what a call takes that does next to nothing
    compute     its intensity is above the ridge point: fewer MACs make it faster
    memory      its intensity is below: fewer bytes make it faster

    weights     an NPU that waits for its weights (`ethos_u.bottleneck`): fewer bits of them make it faster

A call takes as long as the table's fastest row. A peak is the third best that any row achieves (one or two may be
mismeasured) among the rows that are not overhead: MACs have one for each precision, bytes have one.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autocomp.hardware.table import LatencyTable
from autocomp.kernel import PRECISIONS, Kernel

Limit = Literal["compute", "memory", "overhead", "conversion", "weights"]
#: Operators that change how a tensor is stored and compute nothing.
CONVERSIONS = frozenset({"quantize", "dequantize"})
_FROM_TOP = 3
_CALLS = 3.0


class Roofline:
    """The limits of one device, read off its table.

    call_us: microseconds that a call takes at least. peak_bytes, peak_macs (of a precision): in a microsecond.
    """

    def __init__(self, table: LatencyTable) -> None:
        """An empty table is of no help: then a kernel is limited by what it has more of, MACs or bytes."""
        rows = [(kernel, row.latency_us) for kernel, row in table.items() if kernel.op not in CONVERSIONS]
        self.call_us = min((us for _, us in rows), default=0.0)
        working = [(kernel, us) for kernel, us in rows if us >= _CALLS * self.call_us]
        self.peak_bytes = _third_best([bytes_moved(kernel) / us for kernel, us in working])
        self.peak_macs = {
            precision: _third_best([k.macs / us for k, us in working if k.macs and k.precision == precision])
            for precision in PRECISIONS
        }

    def limits(self, kernels: Sequence[Kernel], latencies_us: NDArray[np.float64]) -> list[Limit]:
        """What limits each of n kernels. latencies_us: microseconds that they take, shape (n,)."""
        return [self._limit(kernel, us) for kernel, us in zip(kernels, latencies_us.tolist(), strict=True)]

    def levers(self, kernels: Sequence[Kernel]) -> list[str]:
        """Nothing beyond what the limit says."""
        return [""] * len(kernels)

    def _limit(self, kernel: Kernel, latency_us: float) -> Limit:
        if kernel.op in CONVERSIONS:
            return "conversion"
        if latency_us < _CALLS * self.call_us:
            return "overhead"
        above_ridge = kernel.macs / self.peak_macs[kernel.precision] > bytes_moved(kernel) / self.peak_bytes
        return "compute" if above_ridge else "memory"


def bytes_moved(kernel: Kernel) -> int:
    """Bytes of a kernel's inputs, output and weights, each once."""
    return kernel.value_bytes * (kernel.in_elements + kernel.out_elements + kernel.weight_count)


def _third_best(rates: Sequence[float]) -> float:
    """1 where there is no rate at all."""
    return sorted(rates)[-min(_FROM_TOP, len(rates))] if rates else 1.0
