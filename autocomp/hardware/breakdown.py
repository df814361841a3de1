"""Where the time of a network goes: its kernels one by one, with band, share and what limits each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.roofline import Limit
from autocomp.kernel import Kernel


@dataclass(frozen=True, slots=True)
class KernelLatency:
    """One kernel of a network.

    name: of the layer or node that it executes. latency_ms, low_ms, high_ms: milliseconds and their 90 % band.
    share: of the network's latency, a fraction. measured: it is a row of the table. extrapolated: it lies outside what
    the table covers. listed: the table has its operator in its precision; else another stands in for it.
    limit: see `autocomp.hardware.roofline`. lever: which decisions make it faster, where that is known better than by
    the limit; else "".
    """

    name: str
    kernel: Kernel
    latency_ms: float
    low_ms: float
    high_ms: float
    share: float
    measured: bool
    extrapolated: bool
    limit: Limit
    lever: str = ""
    listed: bool = True


class Limits(Protocol):
    """Says what limits kernels: `hardware.roofline.Roofline`, or `hardware.ethos_u.bottleneck.NpuLimits`."""

    def limits(self, kernels: Sequence[Kernel], latencies_us: NDArray[np.float64]) -> list[Limit]:
        """Of n kernels. latencies_us: microseconds that they take, shape (n,)."""
        ...

    def levers(self, kernels: Sequence[Kernel]) -> list[str]:
        """What makes each faster; "" where the limit says it."""
        ...


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The kernels of one network in the order given; latency_ms, low_ms, high_ms: of the whole."""

    kernels: tuple[KernelLatency, ...]
    latency_ms: float
    low_ms: float
    high_ms: float

    @property
    def extrapolated_share(self) -> float:
        """Share of the latency that lies outside what the table covers, a fraction."""
        return sum(kernel.share for kernel in self.kernels if kernel.extrapolated)

    @property
    def measured_share(self) -> float:
        """Share of the latency that was read off the table, not estimated between its rows; a fraction."""
        return sum(kernel.share for kernel in self.kernels if kernel.measured)

    @property
    def limit_shares(self) -> dict[Limit, float]:
        """Limit → share of the latency, a fraction; the largest first, what limits nothing is left out."""
        shares: dict[Limit, float] = {}
        for kernel in self.kernels:
            shares[kernel.limit] = shares.get(kernel.limit, 0.0) + kernel.share
        return dict(sorted(shares.items(), key=lambda item: -item[1]))


def break_down(kernels: Sequence[tuple[Kernel, str]], model: LatencyModel, roofline: Limits) -> Breakdown:
    """The latency of a network, given as (kernel, name) pairs.

    The band of the whole is narrower than those of its kernels: what each is off by alone partly cancels out.
    """
    only = [kernel for kernel, _ in kernels]
    estimate = model.predict(only)
    total_us, low_us, high_us = estimate.total_us
    lines = [
        KernelLatency(
            name, kernel, us / 1000, low / 1000, high / 1000, us / total_us, bool(measured), bool(extrapolated), limit,
            lever, not unlisted,
        )
        for (kernel, name), us, low, high, measured, extrapolated, unlisted, limit, lever in zip(
            kernels, estimate.us.tolist(), estimate.low_us.tolist(), estimate.high_us.tolist(), estimate.measured,
            estimate.extrapolated, estimate.unlisted, roofline.limits(only, estimate.us), roofline.levers(only),
            strict=True,
        )
    ]  # fmt: skip
    return Breakdown(tuple(lines), total_us / 1000, low_us / 1000, high_us / 1000)
