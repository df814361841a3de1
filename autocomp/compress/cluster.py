"""Codebooks: the few int8 levels that all weights of a layer take, chosen by k-means in one dimension."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Levels lie on the symmetric int8 grid.
LARGEST = 127
#: Times that the scales are fitted to a codebook and the codebook to the scales: later ones gain less than 1 %.
_ROUNDS = 4


@dataclass(frozen=True, eq=False)
class Codebook:
    """int8 levels of a weight, ascending, the last one repeated where fewer are of use.

    levels: (clusters,) float32, whole numbers in −127 … 127.
    """

    levels: torch.Tensor
    largest: int = LARGEST
    #: Weights beyond it are clipped: no gradient reaches them.
    reach: int = LARGEST

    def round(self, x: torch.Tensor) -> torch.Tensor:
        """Nearest level to each element of `x` (in units of the scale)."""
        between = (self.levels[1:] + self.levels[:-1]) / 2
        return self.levels[torch.bucketize(x.contiguous(), between)]

    @property
    def table(self) -> NDArray[np.int8]:
        """The levels as a file stores them, (clusters,)."""
        return self.levels.to(torch.int8).numpy()


def fit_codebook(
    weight: torch.Tensor, scale: torch.Tensor, clusters: int, mask: torch.Tensor | None = None
) -> tuple[Codebook, torch.Tensor]:
    """One codebook of at most `clusters` levels for a whole layer, and the scale per channel that goes with it.

    weight: (out, …). scale: (out, 1, …), where the search for better ones starts. mask: True where a weight is kept;
    the others do not count. Codebook and scales are the best for each other in turn (Lloyd 1982): the codebook by
    k-means on the scaled weights, each weighted by its squared scale so that the error is the weight's own; the
    scales by least squares. The levels always span the whole grid, else rounding them to integers would cost more.
    """
    counted = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    weight = weight.detach().double()
    scale = scale.detach().double()
    kept = weight * counted
    for _ in range(_ROUNDS):
        levels = _codebook(weight, scale, clusters, counted).levels.double()
        rounded = Codebook(levels).round(weight / scale) * counted
        over = tuple(range(1, weight.ndim))
        power = rounded.square().sum(over, keepdim=True)
        fitted = (kept * rounded).sum(over, keepdim=True) / power.clamp_min(1e-12)
        # A channel whose weights all fell to level 0, or are 0, keeps the scale it has.
        scale = torch.where((power > 0) & (fitted > 0), fitted, scale)
        scale = scale * (levels.abs().max().clamp_min(1) / LARGEST)
    return _codebook(weight, scale, clusters, counted), scale.float()


def _codebook(weight: torch.Tensor, scale: torch.Tensor, clusters: int, counted: torch.Tensor) -> Codebook:
    x = (weight / scale)[counted].numpy()
    importance = scale.square().expand_as(weight)[counted].numpy()
    levels = kmeans_levels(x, clusters, importance).astype(np.float32)
    return Codebook(torch.from_numpy(np.pad(levels, (0, clusters - len(levels)), mode="edge")))


def kmeans_levels(x: Floats, clusters: int, importance: Floats | None = None) -> NDArray[np.int8]:
    """The at most `clusters` int8 levels of least squared error to `x`, ascending.

    x, importance: (n,); the error is Σ importance · (x − level)². Exact, hence the same on every machine, by dynamic
    programming (Wang & Song 2011, Ckmeans.1d.dp, eq. 1) over the 255 whole numbers that x rounds to: values that round
    alike share a cluster, and a cluster's best level is its mean, rounded, since the error is a parabola around it.
    """
    weights = np.ones_like(x) if importance is None else importance / importance.max()
    bins = (np.clip(np.rint(x), -LARGEST, LARGEST) + LARGEST).astype(np.int64)
    used, place = np.unique(bins, return_inverse=True)
    # Moments of each bin, and sums of them up to it: the error of bins i … j−1 as one cluster is then a difference.
    moments = np.stack([np.bincount(place, weights * x**power) for power in range(3)])
    n, first, second = np.concatenate([np.zeros((3, 1)), moments.cumsum(axis=1)], axis=1)
    count = len(used)
    i, j = np.meshgrid(np.arange(count + 1), np.arange(count + 1), indexing="ij")
    mass = n[j] - n[i]
    mean = np.divide(first[j] - first[i], mass, out=np.zeros(mass.shape), where=mass > 0)
    level = np.clip(np.rint(mean), -LARGEST, LARGEST)
    error = second[j] - second[i] - 2 * level * (first[j] - first[i]) + level**2 * mass
    error = np.where(i < j, error, np.inf)
    # least[j]: error of the first j bins in so many clusters; back[k][j]: where the last of them begins.
    least, back = error[0].copy(), []
    for _ in range(1, min(clusters, count)):
        through = least[:, None] + error
        back.append(through.argmin(axis=0))
        least = through.min(axis=0)
    ends = [count]
    for begins in reversed(back):
        ends.append(int(begins[ends[-1]]))
    starts = [0, *ends[:0:-1]]
    return np.unique([level[start, end] for start, end in zip(starts, reversed(ends), strict=True)]).astype(np.int8)
