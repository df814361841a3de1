"""Pareto dominance over any number of objectives."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def non_dominated(costs: ArrayLike) -> NDArray[np.bool_]:
    """Which rows no other row dominates.

    costs: (n, k), every column to be minimized, no NaN. Of identical rows only the first is kept: a front
    lists a trade-off once. Returns (n,) booleans.

    A row dominates another if it is no worse in every column and better in one (Deb et al. 2002, NSGA-II, §III).
    """
    points = np.asarray(costs, dtype=float)
    if points.ndim != 2:
        raise ValueError(f"expected an (n, k) array of costs, got shape {points.shape}")
    if np.isnan(points).any():
        raise ValueError("costs contain NaN: a point that could not be scored cannot be compared")
    keep = np.zeros(len(points), dtype=bool)
    # In lexicographic order a row can only be dominated by (or equal to) an earlier one; a stable sort keeps
    # the first of identical rows first.
    order = np.lexsort(points.T[::-1])
    front = np.empty_like(points)
    size = 0
    for index in order:
        if not (front[:size] <= points[index]).all(axis=1).any():
            front[size] = points[index]
            size += 1
            keep[index] = True
    return keep


def ranks(costs: ArrayLike) -> NDArray[np.int64]:
    """Front number of each row: 0 for the front, 1 for the front without it, and so on. Shape (n,).

    Identical rows share a rank.
    """
    points = np.asarray(costs, dtype=float)
    unique, inverse = np.unique(points, axis=0, return_inverse=True)
    rank = np.full(len(unique), -1, dtype=np.int64)
    level = 0
    while (rank < 0).any():
        rest = np.flatnonzero(rank < 0)
        rank[rest[non_dominated(unique[rest])]] = level
        level += 1
    return rank[inverse.reshape(-1)] if len(points) else np.zeros(0, dtype=np.int64)


def crowding_distance(costs: ArrayLike) -> NDArray[np.float64]:
    """Crowding distance of each row among the rows given (Deb et al. 2002, §III-B); extremes are infinite."""
    points = np.asarray(costs, dtype=float)
    distance = np.zeros(len(points))
    if not len(points):
        return distance
    for column in points.T:
        order = np.argsort(column, kind="stable")
        distance[order[[0, -1]]] = np.inf
        spread = column[order[-1]] - column[order[0]]
        if spread > 0 and len(order) > 2:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return distance
