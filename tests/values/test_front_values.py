"""Pareto dominance against brute force, and against pymoo's sorting."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from autocomp.front import crowding_distance, non_dominated, ranks

Points = NDArray[np.float64]


@st.composite
def point_sets(draw: st.DrawFn) -> Points:
    """Up to 14 points of 1 to 4 objectives, with many ties."""
    columns = draw(st.integers(1, 4))
    number = st.one_of(st.integers(0, 3).map(float), st.floats(-5, 5), st.just(float("inf")))
    rows = draw(st.lists(st.lists(number, min_size=columns, max_size=columns), max_size=14))
    return np.array(rows, dtype=float).reshape(len(rows), columns)


def dominates(a: Points, b: Points) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def brute_force_front(points: Points) -> list[bool]:
    return [
        not any(dominates(other, point) for other in points) and not any((points[:i] == point).all(axis=1))
        for i, point in enumerate(points)
    ]


@given(point_sets())
@settings(max_examples=150)
def test_front_is_what_brute_force_finds(points: Points) -> None:
    assert non_dominated(points).tolist() == brute_force_front(points)


@given(point_sets(), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_front_does_not_depend_on_the_order(points: Points, random: Random) -> None:
    order = list(range(len(points)))
    random.shuffle(order)
    shuffled = points[order]
    assert {*map(tuple, points[non_dominated(points)])} == {*map(tuple, shuffled[non_dominated(shuffled)])}


@given(point_sets())
@settings(max_examples=100)
def test_ranks_peel_the_fronts_off(points: Points) -> None:
    expected = np.full(len(points), -1)
    left = list(range(len(points)))
    level = 0
    while left:
        front = [i for i in left if not any(dominates(points[j], points[i]) for j in left)]
        expected[front] = level
        left = [i for i in left if i not in front]
        level += 1
    assert ranks(points).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_ranks_agree_with_pymoo(seed: int) -> None:
    points = np.random.default_rng(seed).integers(0, 12, size=(60, 3)).astype(float)
    expected = np.zeros(len(points), dtype=int)
    for level, members in enumerate(NonDominatedSorting().do(points)):
        expected[members] = level
    assert ranks(points).tolist() == expected.tolist()


def test_front_worked_by_hand() -> None:
    points = [(3, 1), (1, 3), (2, 2), (2, 2), (3, 3), (1, 4)]
    assert non_dominated(points).tolist() == [True, True, True, False, False, False]
    assert ranks(points).tolist() == [0, 0, 0, 0, 1, 1]


def test_crowding_distance_worked_by_hand() -> None:
    # Sorted along both axes the points are 0, 1, 3, 4: inner ones span (3 − 0)/4 and (4 − 1)/4 in each objective.
    points = [(0, 4), (1, 3), (3, 1), (4, 0)]
    assert crowding_distance(points).tolist() == [np.inf, 1.5, 1.5, np.inf]
    assert crowding_distance([(1.0, 2.0), (1.0, 2.0)]).tolist() == [np.inf, np.inf]


def test_nothing_has_no_front() -> None:
    nothing = np.zeros((0, 3))
    assert non_dominated(nothing).shape == ranks(nothing).shape == crowding_distance(nothing).shape == (0,)


def test_a_point_without_a_score_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        non_dominated([(0.0, float("nan"))])
    with pytest.raises(ValueError, match="NaN"):
        ranks([(0.0, float("nan")), (1.0, 1.0)])
    with pytest.raises(ValueError, match="shape"):
        non_dominated([1.0, 2.0])
