"""Which of many possible candidates is worth a trial, judged by the trials so far. Costs are exact and free to know;
only accuracy has to be predicted."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autocomp.controllers.costs import CostFunction, Floats
from autocomp.front import non_dominated
from autocomp.space import Genes, SearchSpace

#: Trials that the regression looks at, the latest first to be kept: its time grows with their cube.
MAX_TRIALS = 256
NOISE = 1e-2
LENGTHS = (0.15, 0.3, 0.6, 1.2)
#: Standard deviations of optimism: how much an untried region is favoured over one known to be good.
OPTIMISM = 0.5
#: From so many trials on, what lies so many standard deviations below the bound on accuracy is not tried.
FEWEST_TRIALS, DOUBT = 4, 1.0


class AccuracyModel:
    """Gaussian-process regression of accuracy on genes (Rasmussen & Williams 2006, algorithm 2.1).

    The kernel is squared-exponential in the mean squared distance of gene positions, averaged within each kind, so
    that 150 genes are compared as easily as 15. Its length is the likeliest of `LENGTHS` (eq. 2.30).
    """

    def __init__(self, space: SearchSpace, genes: Genes, accuracy: Floats) -> None:
        """genes: (n, G), n ≥ 1; accuracy: (n,)."""
        kinds = [gene.kind for gene in space.genes]
        self._scale = 1.0 / np.maximum(1, space.cardinalities - 1)
        self._weight = np.array([1.0 / kinds.count(kind) for kind in kinds])
        self._x = self._features(genes)
        self._mean = float(accuracy.mean())
        self._spread = max(float(accuracy.std()), 1e-6)
        y = (accuracy - self._mean) / self._spread
        distance = self._distances(self._x)
        best = -np.inf
        for length in LENGTHS:
            cholesky = np.linalg.cholesky(np.exp(-distance / (2 * length**2)) + NOISE * np.eye(len(y)))
            alpha = np.linalg.solve(cholesky.T, np.linalg.solve(cholesky, y))
            likelihood = -0.5 * float(y @ alpha) - float(np.log(np.diag(cholesky)).sum())
            if likelihood > best:
                best, self._length, self._cholesky, self._alpha = likelihood, length, cholesky, alpha

    def _features(self, genes: Genes) -> Floats:
        return np.asarray(genes * self._scale * np.sqrt(self._weight), dtype=float)

    def _distances(self, x: Floats) -> Floats:
        """Squared distances between rows of x (m, G) and the trials, (m, n)."""
        squares = (x**2).sum(axis=1)[:, None] + (self._x**2).sum(axis=1)[None] - 2 * x @ self._x.T
        return np.asarray(np.maximum(squares, 0.0), dtype=float)

    def predict(self, genes: Genes) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the accuracy of genes (m, G): (m,) each."""
        kernel = np.exp(-self._distances(self._features(genes)) / (2 * self._length**2))
        explained = (np.linalg.solve(self._cholesky, kernel.T) ** 2).sum(axis=0)
        deviation = np.sqrt(np.maximum(1.0 + NOISE - explained, 0.0))
        return self._mean + self._spread * (kernel @ self._alpha), self._spread * deviation


def most_promising(
    space: SearchSpace,
    cost: CostFunction,
    pool: Genes,
    waiting: Genes,
    scored: Sequence[tuple[Genes, tuple[float, ...]]],
    least_accuracy: float | None = None,
) -> int:
    """Index of the candidate of `pool` (m, G) that should advance the front of `scored` (at least one) the most.

    The gain is by how much a candidate must worsen, in its least affected objective, until a front point dominates
    it (maximin improvement, Svenson & Santner 2016, eq. 4), with accuracy predicted with some optimism; each
    objective in units of its range, size and latency as logarithms. `waiting` (w, G) are candidates not told yet:
    they count as front points at their predicted accuracy, so that parallel asks spread.

    Whatever is predicted to fall short of `least_accuracy` comes last, the less it does the earlier (Deb et al. 2002,
    §VI), and what did fall short is on no front.
    """
    model, known = _regression(space, scored)
    unknown = np.concatenate([pool, waiting])
    mean, deviation = model.predict(unknown)
    mean[: len(pool)] += OPTIMISM * deviation[: len(pool)]
    points = _objectives(-mean, *cost(unknown)[:2])
    front = _objectives(*known.T)
    short = np.zeros(len(pool))
    if least_accuracy is not None:
        short = np.maximum(0.0, least_accuracy - mean[: len(pool)])
        if short.all():
            return int(np.argmin(short))
        within = -known[:, 0] >= least_accuracy
        front = front[within] if within.any() else front
    front = np.concatenate([front[non_dominated(front)], points[len(pool) :]])
    span = np.ptp(front, axis=0)
    span[span <= 0] = 1.0
    gains = ((front[None] - points[: len(pool), None]) / span).max(axis=2).min(axis=1)
    return int(np.argmax(np.where(short > 0, -np.inf, gains)))


def within_reach(
    space: SearchSpace, genes: Genes, scored: Sequence[tuple[Genes, tuple[float, ...]]], least_accuracy: float
) -> NDArray[np.bool_]:
    """Which of `genes` (m, G) may be as accurate as `least_accuracy`, by what was scored so far: (m,)."""
    if len(scored) < FEWEST_TRIALS:
        return np.ones(len(genes), dtype=bool)
    mean, deviation = _regression(space, scored)[0].predict(genes)
    reach: NDArray[np.bool_] = mean + DOUBT * deviation >= least_accuracy
    return reach


def _regression(space: SearchSpace, scored: Sequence[tuple[Genes, tuple[float, ...]]]) -> tuple[AccuracyModel, Floats]:
    """The model of the latest trials, and their objectives (n, 3)."""
    recent = scored[-MAX_TRIALS:]
    known = np.array([values for _, values in recent])
    return AccuracyModel(space, np.stack([genes for genes, _ in recent]), -known[:, 0]), known


def _objectives(negative_accuracy: Floats, size_bytes: Floats, latency_ms: Floats) -> Floats:
    logs = [np.log(np.maximum(np.asarray(column, dtype=float), 1e-12)) for column in (size_bytes, latency_ms)]
    return np.stack([np.asarray(negative_accuracy, dtype=float), *logs], axis=1)
