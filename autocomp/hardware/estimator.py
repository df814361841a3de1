"""Latency of kernels that are not in the table: a physical model of each operator family, corrected by its neighbours.

For one (op, precision) the estimate is  exp(GP(x)) · Σ w_j f_j,  where

* f_j are roofline-like terms in microseconds per unit (Williams et al. 2009): a call, multiply-accumulates with
  channels rounded up to the vector width, bytes of input, output and weights, bytes of the im2col buffer. The weights
  w_j ≥ 0 are fitted by non-negative least squares on relative errors (rows divided by their latency).
* GP is a Gaussian process on the logarithm of measured / modelled over log-sizes (Rasmussen & Williams 2006, §2.2),
  so measured kernels are met nearly exactly, their neighbours are smooth, and far from data the physical model stands.
* the band is the GP's own deviation, widened until 90 % of the leave-one-out residuals (R&W eq. 5.12, in closed form)
  lie inside it: a number learned from kernels that were held out, not assumed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import nnls

from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Kernel

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

COVERAGE = 0.9
_Z = 1.6449  # half-width of a normal's central 90 %, in deviations
#: A family with fewer rows is extrapolated from what is known of other families.
_FEWEST_ROWS = 3
#: Band of a kernel outside the measured range is at least this wide, as a fraction.
_EXTRAPOLATED = 0.3
#: Band of a kernel whose family was never measured: a factor of 4 either way.
_UNKNOWN = np.log(4.0)
#: Largest family whose process is solved exactly; beyond it a subset of rows is kept.
_MOST_ROWS = 1500
_LENGTHS = (0.35, 0.7, 1.4, 2.8)
_NOISES = (0.01, 0.03, 0.1)


@dataclass(frozen=True)
class LatencyEstimate:
    """Latencies of n kernels.

    us: microseconds, shape (n,). low_us, high_us: the 90 % band, shape (n,). extrapolated: outside what was
    measured, shape (n,). measured: the kernel is a row of the table, shape (n,).
    """

    us: Floats
    low_us: Floats
    high_us: Floats
    extrapolated: Bools
    measured: Bools


def _sizes(kernels: Sequence[Kernel]) -> dict[str, Floats]:
    """Columns of the kernels' sizes, each of shape (n,)."""
    raw = np.array(
        [
            (
                k.in_channels, k.out_channels, k.height * k.width, k.out_height * k.out_width, k.kernel_h * k.kernel_w,
                k.stride, k.groups, k.weight_count, k.in_elements, k.out_elements, k.precision == "fp32",
            )
            for k in kernels
        ],
        dtype=np.float64,
    ).reshape(len(kernels), 11)  # fmt: skip
    names = ("in", "out", "area", "out_area", "window", "stride", "groups", "weights", "reads", "writes", "fp32")
    return dict(zip(names, raw.T, strict=True))


def _up(channels: Floats, multiple: int) -> Floats:
    return np.ceil(channels / multiple) * multiple


def _ragged(channels: Floats) -> Floats:
    """1 where the channels do not fill vectors of 4, else 0: kernels fall back to slower code there."""
    return np.asarray(channels % 4 != 0, np.float64)


def _bytes_moved(size: dict[str, Floats]) -> Floats:
    width = np.where(size["fp32"] > 0, 4.0, 1.0)
    return width * (size["weights"] + size["reads"] + size["writes"])


def _terms(op: str, size: dict[str, Floats]) -> Floats:
    """Terms that the latency of a family is a non-negative combination of, shape (n, terms)."""
    width = np.where(size["fp32"] > 0, 4.0, 1.0)
    one = np.ones_like(width)
    reads, writes, weights = width * size["reads"], width * size["writes"], width * size["weights"]
    if op in ("conv", "linear"):
        per_group_in, per_group_out = size["in"] / size["groups"], size["out"] / size["groups"]
        depth = per_group_in * size["window"]
        macs = [size["groups"] * size["out_area"] * depth * per_group_out]
        for rounded in (8, 16):
            macs.append(size["groups"] * size["out_area"] * _up(depth, 4) * _up(per_group_out, rounded))
            macs.append(size["groups"] * size["out_area"] * size["window"] * _up(per_group_in, rounded)
                        * _up(per_group_out, rounded))  # fmt: skip
        macs.append(size["groups"] * _up(size["out_area"], 6) * depth * _up(per_group_out, 16))
        unfolded = width * size["in"] * size["window"] * size["out_area"]
        ragged = [reads * _ragged(size["in"]), writes * _ragged(size["out"]), size["out_area"] * _ragged(size["out"])]
        calls = [size["groups"], size["out_area"]]
        return np.stack([one, *macs, reads, writes, weights, unfolded, *calls, *ragged], axis=1)
    if op == "depthwise":
        macs = [size["out_area"] * size["window"] * _up(size["out"], multiple) for multiple in (1, 8, 16)]
        ragged = [_ragged(size["out"]) * term for term in (macs[0], size["out"], writes)]
        return np.stack([one, *macs, reads, writes, size["out_area"] * size["window"], size["out"], *ragged], axis=1)
    windows = size["out_area"] * size["window"]
    return np.stack([one, reads, writes, windows * size["out"], windows, size["out"]], axis=1)


def _position(size: dict[str, Floats]) -> Floats:
    """Where a kernel lies among others of its family, shape (n, 10): log₂ of sizes, and how channels divide."""
    log = [np.log2(size[name]) for name in ("in", "out", "area", "window", "stride", "groups")]
    log[5] = np.where(size["groups"] >= size["in"], 0.0, log[5])  # depthwise: one group a channel, told already
    # A row of channels that does not fill its vectors takes another code path: as far as a change of size by `step`.
    steps = [(name, multiple, step) for name in ("in", "out") for multiple, step in ((4, 2.0), (16, 0.4))]
    return np.stack([*log, *(step * (size[name] % multiple != 0) for name, multiple, step in steps)], axis=1)


def kernel_positions(kernels: Sequence[Kernel]) -> Floats:
    """Where kernels lie among others of their (op, precision), shape (n, 10); near ones have similar latencies."""
    return _position(_sizes(kernels))


def _squared_distances(a: Floats, b: Floats) -> Floats:
    squared: Floats = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
    return np.maximum(squared, 0.0)


class _Family:
    """The fitted model of one (op, precision)."""

    def __init__(self, op: str, kernels: Sequence[Kernel], latencies_us: Floats) -> None:
        self.op = op
        size = _sizes(kernels)
        self.weights, self.scale = _fit_terms(_terms(op, size), latencies_us)
        self.points = _position(size)
        self.low, self.high = self.points.min(0), self.points.max(0)
        residuals = np.log(latencies_us) - np.log(self._physical(size))
        self.offset = float(np.median(residuals))
        self._fit_process(residuals - self.offset)
        self.kernels = tuple(kernels)

    @property
    def surprises(self) -> Floats:
        """log(measured / what the other rows predict) of each row, shape (rows,); R&W eq. 5.12."""
        errors: Floats = self.dual / np.diag(self.inverse)
        return errors

    def _physical(self, size: dict[str, Floats]) -> Floats:
        return np.maximum(_terms(self.op, size) / self.scale @ self.weights, 1e-3)

    def _fit_process(self, residuals: Floats) -> None:
        """Length and noise with the best leave-one-out likelihood (R&W eq. 5.10-5.12), then the band's factor."""
        distances = _squared_distances(self.points, self.points)
        variance = max(float(np.mean(residuals**2)), 1e-4)
        best = -np.inf
        for length in _LENGTHS:
            shape = np.exp(-np.sqrt(distances) / length)  # Matérn-1/2: latency has steps, so nothing smoother
            for noise in _NOISES:
                covariance = variance * shape + (noise**2) * np.eye(len(residuals))
                factor = cho_factor(covariance, lower=True)
                inverse = cho_solve(factor, np.eye(len(residuals)))
                spread = 1.0 / np.diag(inverse)
                error = inverse @ residuals * spread
                likelihood = float(np.sum(-0.5 * np.log(spread) - 0.5 * error**2 / spread))
                if likelihood > best:
                    best = likelihood
                    self.length, self.noise, self.variance = length, noise, variance
                    self.inverse, self.dual = inverse, inverse @ residuals
                    scores = np.abs(error) / np.sqrt(spread)
        # The empirical quantile of few scores is optimistic: take the next higher order statistic.
        rank = min(len(scores) - 1, int(np.ceil(COVERAGE * (len(scores) + 1))) - 1)
        self.widening = max(1.0, float(np.sort(scores)[rank]) / _Z)

    def predict(self, kernels: Sequence[Kernel]) -> tuple[Floats, Floats, Bools]:
        """Microseconds, half-width of the band in log-units, and whether it lies outside the measured range."""
        size = _sizes(kernels)
        points = _position(size)
        cross = self.variance * np.exp(-np.sqrt(_squared_distances(points, self.points)) / self.length)
        correction = cross @ self.dual
        known = np.einsum("ij,ij->i", cross @ self.inverse, cross)
        deviation = np.sqrt(np.maximum(self.variance - known, 0.0) + self.noise**2)
        outside = np.maximum(self.low - points, points - self.high).max(1)
        extrapolated = outside > 0.1
        band = _Z * self.widening * deviation
        band = np.where(extrapolated, np.maximum(band, _EXTRAPOLATED) * (1 + np.maximum(outside, 0.0)), band)
        return self._physical(size) * np.exp(correction + self.offset), band, extrapolated


def _fit_terms(terms: Floats, latencies_us: Floats) -> tuple[Floats, Floats]:
    """Weights ≥ 0 of `terms` / scale that minimize the relative error; scale: shape (terms,)."""
    scale = np.maximum(terms.max(0), 1e-12)
    weights, _ = nnls(terms / scale / latencies_us[:, None], np.ones(len(latencies_us)), maxiter=100 * terms.shape[1])
    return weights, scale


class LatencyModel:
    """Latencies of any kernel from a table of some. Fitted once; see the module's docstring for the method."""

    def __init__(
        self,
        families: Mapping[tuple[str, str], _Family],
        fallback: tuple[float, float],
        table: LatencyTable,
        floor: float,
    ) -> None:
        self._families = dict(families)
        self._call_us, self._us_per_byte = fallback
        self._rows = {kernel: row.latency_us for kernel, row in table.items()}
        self._spread = {kernel: row.spread_us or 0.0 for kernel, row in table.items()}
        self._floor = floor

    @classmethod
    def from_table(cls, table: LatencyTable, calibration: Mapping[str, float] | None = None) -> "LatencyModel":
        """The model of `table`. calibration: of the profile; its `relative_error` is the narrowest band, a fraction."""
        grouped: dict[tuple[str, str], list[Kernel]] = {}
        for kernel in sorted(table):
            grouped.setdefault((kernel.op, kernel.precision), []).append(kernel)
        families = {}
        for (op, precision), kernels in grouped.items():
            if len(kernels) >= _FEWEST_ROWS:
                chosen = kernels[:: -(-len(kernels) // _MOST_ROWS)]
                latencies = np.array([table[kernel].latency_us for kernel in chosen])
                families[op, precision] = _Family(op, chosen, latencies)
        return cls(families, _bytes_model(table), table, (calibration or {}).get("relative_error", 0.0))

    @cached_property
    def families(self) -> tuple[tuple[str, str], ...]:
        """The (op, precision) that were fitted; any other is estimated from the bytes that it moves."""
        return tuple(sorted(self._families))

    def surprises(self) -> dict[Kernel, float]:
        """log(measured / what the other rows predict) of the fitted rows: large where a measurement was disturbed."""
        return {
            kernel: float(surprise)
            for family in self._families.values()
            for kernel, surprise in zip(family.kernels, family.surprises, strict=True)
        }

    def predict(self, kernels: Sequence[Kernel]) -> LatencyEstimate:
        """Latency of each kernel, in the order given. Always above 0; see `LatencyEstimate` for the shapes."""
        n = len(kernels)
        us, band = np.zeros(n), np.zeros(n)
        extrapolated, measured = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        grouped: dict[tuple[str, str], dict[Kernel, list[int]]] = {}
        for index, kernel in enumerate(kernels):
            grouped.setdefault((kernel.op, kernel.precision), {}).setdefault(kernel, []).append(index)
        for family, places in grouped.items():
            distinct = list(places)
            values = self._predict_family(family, distinct)
            where = np.concatenate([np.array(p) for p in places.values()])
            source = np.repeat(np.arange(len(distinct)), [len(p) for p in places.values()])
            us[where], band[where], extrapolated[where] = (v[source] for v in values)
        for index, kernel in enumerate(kernels):
            if kernel in self._rows:
                us[index], measured[index], extrapolated[index] = self._rows[kernel], True, False
                band[index] = self._spread[kernel] / us[index]
        band = np.maximum(band, np.log1p(self._floor))
        return LatencyEstimate(us, us * np.exp(-band), us * np.exp(band), extrapolated, measured)

    def _predict_family(self, family: tuple[str, str], kernels: Sequence[Kernel]) -> tuple[Floats, Floats, Bools]:
        if family in self._families:
            return self._families[family].predict(kernels)
        us = self._call_us + self._us_per_byte * _bytes_moved(_sizes(kernels))
        return us, np.full(len(kernels), _UNKNOWN), np.ones(len(kernels), np.bool_)


def _bytes_model(table: LatencyTable) -> tuple[float, float]:
    """Microseconds a call and a byte of the kernels that only move bytes; typical values for an empty table."""
    light = [k for k in table if k.weight_count == 0] or list(table)
    if not light:
        return 1.0, 1e-3
    latencies = np.array([table[kernel].latency_us for kernel in light])
    moved = _bytes_moved(_sizes(light))
    weights, scale = _fit_terms(np.stack([np.ones_like(moved), moved], axis=1), latencies)
    call, per_byte = weights / scale
    return max(float(call), 0.1), max(float(per_byte), 1e-6)
