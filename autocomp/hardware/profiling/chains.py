"""Which chains of copies a kernel is timed by, and what a table says of the slope between them.

Weights come from the same level of the memory as inside a network: the copies of a kernel with large weights add up
to more than a second-level cache holds, as the layers of the network that it comes from do. (Measured with copies
that fit the cache, a MobileNetV2 of 9 MB came out 17 % too fast; with this rule, 5 %.)
"""

import numpy as np

from autocomp.hardware.kernel_models import max_repeats
from autocomp.hardware.runner import Timing
from autocomp.hardware.table import Latency
from autocomp.kernel import Kernel

#: Timed in every round, and kept in the table: the yardstick for drift. As short as the kernels that it stands for,
#: because a longer chain is disturbed more often.
REFERENCE = Kernel("conv", "fp32", 32, 32, 16, 16)

_LONG_US, _MOST_COPIES = 60.0, 16  # a long chain takes this much more than a short one, within so many copies
_SLOWEST_CHAIN_US = 4_000.0  # a longer chain hardly ever runs undisturbed
_LARGE_WEIGHTS, _COLD_BYTES = 40_000, 9_000_000
#: What a slope of noise around zero is set to: kernels that cost nothing that can be measured.
SMALLEST_US = 0.02
#: What a kernel takes more inside a network, where another kernel ran before it, and its code and parameters are no
#: longer in the first-level caches. This and the three numbers below: experiments/latency_estimator.
IN_NETWORK_US = 0.45
#: Second-level cache that the two shares below are meant for.
_CACHE_BYTES = 1e6
#: A kernel's activations are cold by the share of the cache that they would fill, above so much of it. Its weights
#: are read once an inference, and many of them come from the third level as they do in a warm chain: a share of them.
_STILL_WARM, _COLD_WEIGHTS = 0.1, 0.1


def rough_us(kernel: Kernel) -> float:
    """Order of magnitude of a latency before anything was measured: 30 GMAC/s, 4 GB/s and a microsecond a call."""
    return 1.0 + kernel.macs / 3e4 + (kernel.in_elements + kernel.out_elements) / 4e3


def chain_copies(kernel: Kernel) -> tuple[int, int]:
    """Copies in the short and in the long chain."""
    expected = rough_us(kernel)
    more = int(np.clip(_LONG_US / expected, 2, _MOST_COPIES))
    weight_bytes = kernel.weight_count * kernel.value_bytes
    if weight_bytes > _LARGE_WEIGHTS:
        more = max(more, min(_MOST_COPIES, _COLD_BYTES // weight_bytes))
    more = max(1, min(more, int(_SLOWEST_CHAIN_US / expected)))
    limit = max_repeats(kernel)
    if limit is not None:
        more = max(1, min(more, limit - 1))
    return 1, 1 + more


def coldness(
    kernel: Kernel,
    cache_bytes: float = _CACHE_BYTES,
    still_warm: float = _STILL_WARM,
    cold_weights: float = _COLD_WEIGHTS,
) -> float:
    """How cold the caches are for a kernel inside a network, from 0 to 1: by the bytes that go through them."""
    moved = kernel.value_bytes * (kernel.in_elements + kernel.out_elements + cold_weights * kernel.weight_count)
    return min(1.0, max(0.0, moved / cache_bytes - still_warm))


def table_latency(kernel: Kernel, timing: Timing) -> Latency:
    """What a table says of a kernel whose chains were timed: between warm and cold, and what a network adds."""
    warm = max(timing.us, SMALLEST_US)
    us = warm + coldness(kernel) * max(0.0, timing.cold_us - warm)
    return Latency(us + IN_NETWORK_US, timing.spread_us, timing.rounds)
