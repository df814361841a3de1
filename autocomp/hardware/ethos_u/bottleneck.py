"""What limits a kernel of an NPU, and which decisions about its layer make it faster."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autocomp.hardware.roofline import Limit
from autocomp.kernel import Kernel

Floats = NDArray[np.float64]
#: In the order of `LatencyModel.parts_us`.
_LIMITS: tuple[Limit, ...] = ("compute", "memory", "weights")


class _InParts(Protocol):
    def parts_us(self, kernels: Sequence[Kernel]) -> Floats | None: ...


class NpuLimits:
    """By the part that is busy longest: array, feature-map memory or weight memory.

    skips_zeros: whether the array leaves out two of four zeros (2:4), as an Ethos-U85 does.
    """

    def __init__(self, model: _InParts, *, skips_zeros: bool = False) -> None:
        self._model, self._skips_zeros = model, skips_zeros

    def limits(self, kernels: Sequence[Kernel], latencies_us: Floats) -> list[Limit]:
        """What limits each kernel; latencies_us, (n,), are not needed: the parts say it."""
        return [_LIMITS[longest] for longest in self._parts(kernels).argmax(axis=1)]

    def levers(self, kernels: Sequence[Kernel]) -> list[str]:
        """What makes each kernel faster, in words; "" for what has no decisions of its own.

        Weights: fewer encoded bits pay until the next part takes as long; the remaining share is said.
        """
        parts = self._parts(kernels)
        return [self._lever(kernel, row) for kernel, row in zip(kernels, parts, strict=True)]

    def _parts(self, kernels: Sequence[Kernel]) -> Floats:
        parts = self._model.parts_us(kernels)
        if parts is None:
            raise ValueError("the latency model is no NPU's")
        return parts

    def _lever(self, kernel: Kernel, parts: Floats) -> str:
        if not kernel.weight_count:
            return ""
        array, memory, weights = parts.tolist()
        longest = max(array, memory, weights)
        if longest == weights and weights > 0:
            return f"fewer bits, clusters or zeros, down to {max(array, memory) / weights:.0%} of its bytes"
        if longest == array and self._skips_zeros and kernel.op != "depthwise":
            return "fewer channels, or 2:4"
        return "fewer channels"
