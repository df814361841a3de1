"""Latency of kernels that are not in the table: a physical model of each operator family, corrected by its neighbours.

For one (op, precision) the estimate is  exp(GP(x)) · Σ w_j f_j,  where

* f_j are roofline-like terms in microseconds per unit (Williams et al. 2009): a call, multiply-accumulates with
  channels rounded up to the vector width, bytes of input, output and weights, bytes of the im2col buffer. The weights
  w_j ≥ 0 are fitted by non-negative least squares on relative errors (rows divided by their latency).
* GP is a Gaussian process on the logarithm of measured / modelled over log-sizes (Rasmussen & Williams 2006, §2.2),
  so measured kernels are met nearly exactly, their neighbours are smooth, and far from data the physical model stands.
  Each kernel is conditioned on its nearest rows only (Vecchia 1988; Datta et al. 2016), so a table may have any size.
* the band is the GP's own deviation, widened until 90 % of the leave-one-out residuals lie inside it: a number learned
  from kernels that were held out, not assumed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.spatial import cKDTree

from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Kernel

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

COVERAGE = 0.9
_Z = 1.6449  # half-width of a normal's central 90 %, in deviations
#: A family with fewer rows is extrapolated from what is known of other families.
_FEWEST_ROWS = 3
#: Band of a kernel outside the measured range is at least this wide, as a fraction.
_EXTRAPOLATED = 0.3
#: Band of a kernel whose family was never measured: a factor of 4 either way.
_UNKNOWN = np.log(4.0)
#: Nearest rows that a kernel's correction is taken from, and kernels that are solved for at once.
_NEIGHBOURS, _CHUNK = 32, 500
#: Rows on which length and noise are tried.
_MOST_TRIED = 600
#: Distance of a doubling of a size, and of channels that are no multiple of 4, 8, 16, or less than 16.
_WORTH = {"in": 0.7, "out": 0.7, "area": 0.5, "window": 1.0, "stride": 1.5, "groups": 1.0}
_STEPS = {"in": (2.0, 1.0, 2.0, 2.0), "out": (2.0, 0.5, 1.0, 1.0)}
_LENGTHS = (0.35, 0.7, 1.4, 2.8)
_NOISES = (0.01, 0.03, 0.1)


@dataclass(frozen=True)
class LatencyEstimate:
    """Latencies of n kernels.

    us: microseconds, shape (n,). own_us: half-width of the 90 % band of what a kernel is off by alone, shape (n,).
    common: the same of what all are off by together (the board, the clock, the method), in log-units. extrapolated:
    outside what was measured, shape (n,). measured: the kernel is a row of the table, shape (n,).
    """

    us: Floats
    own_us: Floats
    common: float
    extrapolated: Bools
    measured: Bools

    @property
    def low_us(self) -> Floats:
        """Lower end of each kernel's 90 % band, shape (n,)."""
        return band(self.us, np.square(self.own_us), self.common)[0]

    @property
    def high_us(self) -> Floats:
        """Upper end of each kernel's 90 % band, shape (n,)."""
        return band(self.us, np.square(self.own_us), self.common)[1]

    @property
    def total_us(self) -> tuple[float, float, float]:
        """Of all kernels one after the other: microseconds, and the ends of the 90 % band."""
        us, squares = np.array([self.us.sum()]), np.array([np.square(self.own_us).sum()])
        low, high = band(us, squares, self.common)
        return float(us[0]), float(low[0]), float(high[0])


def band(us: Floats, own_squares: Floats, common: float) -> tuple[Floats, Floats]:
    """Ends of the 90 % band of sums of kernels, in the unit of `us`; (n,).

    own_squares: sums of the squares of what the kernels are off by each alone, which partly cancels out. common: what
    they are off by together, in log-units, which does not.
    """
    half = np.sqrt(own_squares / np.square(np.maximum(us, 1e-12)) + common**2)
    return us * np.exp(-half), us * np.exp(half)


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
        ragged += [(size["out"] % multiple != 0) * macs[0] for multiple in (8, 16)]
        return np.stack([one, *macs, reads, writes, size["out_area"] * size["window"], size["out"], *ragged], axis=1)
    windows = size["out_area"] * size["window"]
    return np.stack([one, reads, writes, windows * size["out"], windows, size["out"]], axis=1)


def _position(size: dict[str, Floats]) -> Floats:
    """Where a kernel lies among others of its family, shape (n, 14): log₂ of sizes, and how channels divide.

    What each is worth was chosen by the error on left-out rows of this repository's reference machine
    (experiments/latency_estimator): latencies follow the roofline from one area to another more than elsewhere.
    """
    log = {name: np.log2(size[name]) for name in ("in", "out", "area", "window", "stride", "groups")}
    log["groups"] = np.where(size["groups"] >= size["in"], 0.0, log["groups"])  # depthwise: one a channel, told already
    scaled: list[NDArray[Any]] = [_WORTH[name] * value for name, value in log.items()]
    # Channels that do not fill a vector, or less than one, take another code path: as far as a change of size by that.
    for name, worth in _STEPS.items():
        scaled += [step * (size[name] % multiple != 0) for multiple, step in zip((4, 8, 16), worth[:3], strict=True)]
        scaled.append(worth[3] * (size[name] < 16))
    return np.stack(scaled, axis=1)


def kernel_positions(kernels: Sequence[Kernel]) -> Floats:
    """Where kernels lie among others of their (op, precision), shape (n, 14); near ones have similar latencies."""
    return _position(_sizes(kernels))


class _Family:
    """The fitted model of one (op, precision)."""

    def __init__(self, op: str, kernels: Sequence[Kernel], latencies_us: Floats) -> None:
        self.op = op
        self.kernels = tuple(kernels)
        size = _sizes(kernels)
        self.weights, self.scale = _fit_terms(_terms(op, size), latencies_us)
        self.points = _position(size)
        self.low, self.high = self.points.min(0), self.points.max(0)
        residuals = np.log(latencies_us) - np.log(self._physical(size))
        self.offset = float(np.median(residuals))
        self.residuals = residuals - self.offset
        self.variance = max(float(np.mean(self.residuals**2)), 1e-4)
        self.tree = cKDTree(self.points)
        self._choose()

    def _physical(self, size: dict[str, Floats]) -> Floats:
        return np.maximum(_terms(self.op, size) / self.scale @ self.weights, 1e-3)

    def _choose(self) -> None:
        """Length and noise with the best leave-one-out likelihood (R&W eq. 5.10-5.12), then the band's factor."""
        some = np.arange(len(self.points))[:: -(-len(self.points) // _MOST_TRIED)]
        best = -np.inf
        for length, noise in product(_LENGTHS, _NOISES):
            self.length, self.noise = length, noise
            mean, spread = self._left_out(some)
            errors = self.residuals[some] - mean
            likelihood = float(np.sum(-0.5 * np.log(spread) - 0.5 * errors**2 / spread))
            if likelihood > best:
                best, chosen, scores = likelihood, (length, noise), np.abs(errors) / np.sqrt(spread)
        self.length, self.noise = chosen
        # The empirical quantile of few scores is optimistic: take the next higher order statistic.
        rank = min(len(scores) - 1, int(np.ceil(COVERAGE * (len(scores) + 1))) - 1)
        self.widening = max(1.0, float(np.sort(scores)[rank]) / _Z)

    @cached_property
    def surprises(self) -> Floats:
        """log(measured / what the other rows predict) of each row, shape (rows,)."""
        errors: Floats = self.residuals - self._left_out(np.arange(len(self.points)))[0]
        return errors

    def _left_out(self, rows: Ints) -> tuple[Floats, Floats]:
        """What the other rows predict of some rows' residuals: mean and variance, each of the shape of `rows`."""
        if len(self.points) == 1:
            return np.zeros(len(rows)), np.full(len(rows), self.variance + self.noise**2)
        most = min(_NEIGHBOURS, len(self.points) - 1)
        near = self.tree.query(self.points[rows], k=most + 1)[1]
        # The row itself is the nearest, or ties with rows at its place: it goes, wherever it stands.
        own = near == rows[:, None]
        own[~own.any(1), -1] = True
        return self._process(self.points[rows], near[~own].reshape(len(rows), most))

    def _process(self, points: Floats, near: Ints) -> tuple[Floats, Floats]:
        """The process at `points`, (n, d), given each one's rows `near`, (n, k): mean and variance, (n,)."""
        mean, spread = np.empty(len(points)), np.empty(len(points))
        for start in range(0, len(points), _CHUNK):
            part = slice(start, start + _CHUNK)
            known = self.points[near[part]]  # (n, k, d)
            between = np.sqrt(np.square(known[:, :, None] - known[:, None]).sum(-1))
            # Matérn-1/2: latency has steps, so nothing smoother.
            covariance = self.variance * np.exp(-between / self.length)
            covariance += self.noise**2 * np.eye(near.shape[1])
            away = np.sqrt(np.square(known - points[part, None]).sum(-1))
            cross = self.variance * np.exp(-away / self.length)  # (n, k)
            weights = np.linalg.solve(covariance, cross[..., None])[..., 0]
            mean[part] = (weights * self.residuals[near[part]]).sum(1)
            spread[part] = np.maximum(self.variance - (weights * cross).sum(1), 0.0) + self.noise**2
        return mean, spread

    def predict(self, kernels: Sequence[Kernel]) -> tuple[Floats, Floats, Bools]:
        """Microseconds, half-width of the band in log-units, and whether it lies outside the measured range."""
        size = _sizes(kernels)
        points = _position(size)
        near = self.tree.query(points, k=min(_NEIGHBOURS, len(self.points)))[1].reshape(len(points), -1)
        correction, spread = self._process(points, near)
        outside = np.maximum(self.low - points, points - self.high).max(1)
        extrapolated = outside > 0.1
        band = _Z * self.widening * np.sqrt(spread)
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
        #: What all kernels are off by together, in log-units.
        self.common = float(np.log1p(floor))

    @classmethod
    def from_table(cls, table: LatencyTable, calibration: Mapping[str, float] | None = None) -> "LatencyModel":
        """The model of `table`. calibration: of the profile; a network is off by its `relative_error`."""
        grouped: dict[tuple[str, str], list[Kernel]] = {}
        for kernel in sorted(table):
            grouped.setdefault((kernel.op, kernel.precision), []).append(kernel)
        families = {}
        for (op, precision), kernels in grouped.items():
            if len(kernels) >= _FEWEST_ROWS:
                latencies = np.array([table[kernel].latency_us for kernel in kernels])
                families[op, precision] = _Family(op, kernels, latencies)
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
        us, own = np.zeros(n), np.zeros(n)
        extrapolated, measured = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        grouped: dict[tuple[str, str], dict[Kernel, list[int]]] = {}
        for index, kernel in enumerate(kernels):
            grouped.setdefault((kernel.op, kernel.precision), {}).setdefault(kernel, []).append(index)
        for family, places in grouped.items():
            distinct = list(places)
            values = self._predict_family(family, distinct)
            where = np.concatenate([np.array(p) for p in places.values()])
            source = np.repeat(np.arange(len(distinct)), [len(p) for p in places.values()])
            us[where], own[where], extrapolated[where] = (v[source] for v in values)
        for index, kernel in enumerate(kernels):
            if kernel in self._rows:
                us[index], measured[index], extrapolated[index] = self._rows[kernel], True, False
                own[index] = self._spread[kernel] / us[index]
        return LatencyEstimate(us, us * own, self.common, extrapolated, measured)

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
