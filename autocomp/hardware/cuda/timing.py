"""How the times of a CUDA device become a kernel's latency. Arithmetic only: the device is behind `Replay`.

A kernel is put n and m times into two CUDA graphs, n > m. The time of the long one less that of the short one, over
n - m, is the kernel's: what a launch of a graph costs is in both. Before each replay the second-level cache is filled
with something else. Each copy has weights of its own, so they come from the device's memory, as in an inference that
other work precedes; its activations are in the cache, as after the layer before it.

Clocks of a GPU go up and down, so times err to both sides, and the median over the rounds counts (on a CPU
disturbances only ever slow a chain down; see `hardware.runner`). Rounds further from it than 3 scaled median absolute
deviations are left out (Leys et al. 2013).
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autocomp.hardware.kernel_models import max_repeats
from autocomp.hardware.profiling.chains import SMALLEST_US
from autocomp.hardware.runner import Timing
from autocomp.hardware.table import Latency
from autocomp.kernel import Kernel

#: The long chain takes this much more than the short one, within so many copies: times are known to half of 1 us.
_LONG_US, _FEWEST_COPIES, _MOST_COPIES = 200.0, 4, 64
#: Copies of a kernel with large weights, all together: a model must stay below 2 GB.
_MOST_BYTES = 1_000_000_000
_OUTLIER = 3.0
#: Standard deviations of a normal distribution in a median absolute deviation, and in the error of a median of n
#: values, which is this over sqrt(n).
_DEVIATION, _MEDIAN_ERROR = 1.4826, 1.2533
#: The median is known this well, as a fraction, when a chain has settled.
_WITHIN = 0.01


class Replay(Protocol):
    """A chain on the device."""

    def replay_us(self) -> float:
        """Microseconds that the device takes for the chain once, with nothing of it in the caches before."""
        ...


def rough_us(kernel: Kernel) -> float:
    """Order of magnitude of a latency before anything was measured: 5 TMAC/s, 1 TB/s and 2 us a kernel."""
    moved = kernel.value_bytes * (kernel.in_elements + kernel.out_elements + kernel.weight_count)
    return 2.0 + kernel.macs / 5e6 + moved / 1e6


def chain_copies(kernel: Kernel) -> tuple[int, int]:
    """Copies in the short and in the long chain. At most so many as an ONNX model can keep apart."""
    more = int(np.clip(_LONG_US / rough_us(kernel), _FEWEST_COPIES, _MOST_COPIES))
    weight_bytes = kernel.weight_count * kernel.value_bytes
    if weight_bytes:
        more = min(more, max(1, _MOST_BYTES // weight_bytes - 1))
    limit = max_repeats(kernel)
    return 1, 1 + (more if limit is None else max(1, min(more, limit - 1)))


def without_outliers(values: Sequence[float]) -> NDArray[np.float64]:
    """The (k,) of the (n,) `values` that lie within 3 scaled median absolute deviations of their median."""
    given = np.asarray(values, np.float64)
    distance = np.abs(given - np.median(given))
    kept: NDArray[np.float64] = given[distance <= _OUTLIER * _DEVIATION * np.median(distance)]
    return kept


def typical(values: Sequence[float]) -> float:
    """Median of `values` without outliers."""
    return float(np.median(without_outliers(values)))


class ReplayedChains:
    """A short and a long chain of one kernel, for `hardware.runner.time_in_rounds`. more: copies the long one has more.

    Both are replayed right after one another, so that a round's difference is of one clock frequency.
    """

    def __init__(self, short: Replay, long: Replay, more: int) -> None:
        self._short, self._long, self._more = short, long, more
        self._slopes: list[float] = []

    def time_once(self) -> None:
        """One round."""
        short = self._short.replay_us()
        self._slopes.append((self._long.replay_us() - short) / self._more)

    @property
    def _deviation_us(self) -> float:
        """Standard deviation of the rounds, as far as they are no outliers, by the median absolute deviation."""
        kept = without_outliers(self._slopes)
        return float(_DEVIATION * np.median(np.abs(kept - np.median(kept))))

    @property
    def settled(self) -> bool:
        """Whether the standard error of the median over the rounds is small."""
        error = _MEDIAN_ERROR * self._deviation_us / np.sqrt(len(self._slopes))
        return bool(error <= _WITHIN * max(typical(self._slopes), SMALLEST_US))

    @property
    def timing(self) -> Timing:
        """Microseconds of a copy, with their deviation from round to round. All rounds were cold."""
        us = typical(self._slopes)
        return Timing(us, self._deviation_us, len(self._slopes), us)


def table_latency(timing: Timing) -> Latency:
    """What a table says of a kernel whose chains were timed."""
    return Latency(max(timing.us, SMALLEST_US), timing.spread_us, timing.rounds)
