"""A latency model whose answers are known: two microseconds a call, one per 1,000 multiply-accumulates or bytes."""

from collections.abc import Sequence

import numpy as np

from autocomp.hardware.estimator import LatencyEstimate
from autocomp.kernel import Kernel


def true_us(kernel: Kernel) -> float:
    width, rate = (4, 1e3) if kernel.precision == "fp32" else (1, 3e3)
    return 2.0 + kernel.macs / rate + width * (kernel.in_elements + kernel.out_elements + kernel.weight_count) / 1e3


class Roofline:
    """Takes the place of `LatencyModel`."""

    common = 0.05

    def predict(self, kernels: Sequence[Kernel]) -> LatencyEstimate:
        us = np.array([true_us(kernel) for kernel in kernels])
        never = np.zeros(len(kernels), dtype=bool)
        return LatencyEstimate(us, us * 0.1, self.common, never, never, never)
