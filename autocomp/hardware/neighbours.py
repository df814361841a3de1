"""What a physical model leaves over, learned from near rows: a Gaussian process on log-ratios, with its band.

Rasmussen & Williams 2006, §2.2. Each point is conditioned on its nearest rows only (Vecchia 1988; Datta et al. 2016),
so a table may have any size. The band is the process's own deviation, widened until 90 % of the leave-one-out residuals
lie inside it: a number learned from rows that were held out, not assumed.
"""

from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

COVERAGE = 0.9
_Z = 1.6449  # half-width of a normal's central 90 %, in deviations
#: Band of a kernel outside the measured range is at least this wide, as a fraction.
_EXTRAPOLATED = 0.3
#: Nearest rows that a point's correction is taken from, and points that are solved for at once.
_NEIGHBOURS, _CHUNK = 32, 500
#: Rows on which length and noise are tried.
_MOST_TRIED = 600
_LENGTHS = (0.35, 0.7, 1.4, 2.8)
_NOISES = (0.01, 0.03, 0.1)


class Neighbours:
    """The process through rows at `points`, (n, d), whose measurement is exp(`log_ratios`), (n,), times a model."""

    def __init__(self, points: Floats, log_ratios: Floats) -> None:
        self.points = points
        self.low, self.high = points.min(0), points.max(0)
        self.offset = float(np.median(log_ratios))
        self.residuals = log_ratios - self.offset
        self.variance = max(float(np.mean(self.residuals**2)), 1e-4)
        self.tree = cKDTree(points)
        self._choose()

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
        """log(measured / what the other rows predict) of each row, shape (n,)."""
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

    def predict(self, points: Floats) -> tuple[Floats, Floats, Bools]:
        """At points (n, d): what to multiply the model by, half-width of the band in log-units, and whether outside.

        Outside the measured range, the band is wider.
        """
        near = self.tree.query(points, k=min(_NEIGHBOURS, len(self.points)))[1].reshape(len(points), -1)
        correction, spread = self._process(points, near)
        outside = np.maximum(self.low - points, points - self.high).max(1)
        extrapolated = outside > 0.1
        band = _Z * self.widening * np.sqrt(spread)
        band = np.where(extrapolated, np.maximum(band, _EXTRAPOLATED) * (1 + np.maximum(outside, 0.0)), band)
        return np.exp(correction + self.offset), band, extrapolated


def fit_terms(terms: Floats, latencies_us: Floats) -> tuple[Floats, Floats]:
    """Weights ≥ 0 of `terms` / scale that minimize the relative error; scale: shape (terms,)."""
    scale = np.maximum(terms.max(0), 1e-12)
    relative = terms / scale / latencies_us[:, None]
    weights, _ = nnls(relative, np.ones(len(latencies_us)), maxiter=100 * terms.shape[1])
    return weights, scale
