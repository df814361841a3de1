"""Which kernels to measure next: those whose latency would tell most.

Nothing is known at first, so kernels far from each other come first: greedy k-centre (Gonzalez 1985). Once there is a
table, adaptive sampling as in nn-Meter (Zhang et al. 2021, §4.3): more where the estimator's error on held-out
kernels is large. Here the kernels that can be sampled are those that a network may execute, and the expected error of
one is its latency times (half of its band + the held-out errors of its measured neighbours): microseconds by which a
network's latency would be off.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.positions import kernel_positions
from autocomp.hardware.profiling.chains import rough_us
from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Kernel

Floats = NDArray[np.float64]

#: Rows from which on the estimator knows more than the sizes of kernels do.
_FEWEST_ROWS = 30
_UNSEEN = 40.0  # farther than any two kernels of one family are apart
#: Distance within which a held-out error says something about a neighbour: a doubling of one size, roughly.
_NEAR = 1.0
#: Measured above what the other rows predict by so much (log): something disturbed it?
SURPRISING = 0.08


def informative_order(
    kernels: Sequence[Kernel], table: LatencyTable, model: LatencyModel | None = None, most: int | None = None
) -> list[Kernel]:
    """The first `most` of `kernels` by how much measuring each tells (all by default).

    Far from what is known and from those chosen before, and costly: by the square root of the rough latency before
    there is a table, by the expected error in microseconds where `model`, fitted to `table`, says it.
    """
    points = kernel_positions(kernels) if kernels else np.zeros((0, 1))
    families = _families(kernels)
    distance = np.full(len(kernels), _UNSEEN)
    rows = list(table)
    row_points, row_families = (kernel_positions(rows), _families(rows)) if rows else (points[:0], families[:0])
    for family in np.unique(families):
        ours, theirs = families == family, row_families == family
        if theirs.any():
            distance[ours] = cdist(points[ours], row_points[theirs], "cityblock").min(1)
    if model is not None and len(table) >= _FEWEST_ROWS:
        weight = expected_errors_us(kernels, model)
    else:
        weight = np.sqrt([rough_us(kernel) for kernel in kernels])
    order: list[Kernel] = []
    left = np.ones(len(kernels), np.bool_)
    for _ in range(len(kernels) if most is None else min(most, len(kernels))):
        best = int(np.argmax(np.where(left, (distance + 1e-6) * weight, -1.0)))
        order.append(kernels[best])
        left[best] = False
        alike = families == families[best]
        distance[alike] = np.minimum(distance[alike], np.abs(points[alike] - points[best]).sum(1))
    return order


def expected_errors_us(kernels: Sequence[Kernel], model: LatencyModel) -> Floats:
    """Microseconds by which the estimate of each kernel may be off, shape (n,); see the module's docstring."""
    estimate = model.predict(kernels)
    errors = (estimate.high_us - estimate.low_us) / 2
    surprises = model.surprises()
    rows = list(surprises)
    if not rows:
        return errors
    points, row_points = kernel_positions(kernels), kernel_positions(rows)
    families, row_families = _families(kernels), _families(rows)
    size = np.abs(np.array([surprises[row] for row in rows]))
    for family in np.unique(families):
        ours, theirs = families == family, row_families == family
        if theirs.any():
            near = np.exp(-cdist(points[ours], row_points[theirs], "cityblock") / _NEAR) + 1e-12
            errors[ours] += estimate.us[ours] * np.minimum(near @ size[theirs] / near.sum(1), 1.0)
    return errors


def doubtful(kernels: Sequence[Kernel], table: LatencyTable, model: LatencyModel) -> list[Kernel]:
    """Those of `kernels` that came out slower than the other rows predict, costliest first: were they disturbed?"""
    surprises = model.surprises()
    slow = [kernel for kernel in kernels if surprises.get(kernel, 0.0) > SURPRISING]
    return sorted(slow, key=lambda kernel: -table[kernel].latency_us)


def _families(kernels: Sequence[Kernel]) -> NDArray[np.str_]:
    return np.array([f"{kernel.op} {kernel.precision}" for kernel in kernels], dtype=np.str_)
