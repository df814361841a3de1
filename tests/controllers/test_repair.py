"""Repair and what can be reached at all."""

import numpy as np
import pytest
from controllers.analytic import Fake
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.budget import Budget
from autocomp.controllers import Costs
from autocomp.controllers.anchors import MAX_ANCHORS, anchors
from autocomp.controllers.costs import violation
from autocomp.controllers.moves import Moves
from autocomp.controllers.repair import nearest_fit, repair, smallest_reachable
from autocomp.controllers.screen import AccuracyModel
from autocomp.policy import INT8, LayerPolicy
from autocomp.space import Genes, SpaceOptions

FAKE = Fake.make()
FULL = FAKE.cost(FAKE.space.largest[None])
LEAST_SIZE, *_ = smallest_reachable(FAKE.space, FAKE.cost)


def admits(budget: Budget, genes: Genes) -> bool:
    return budget.admits(*(float(cost[0]) for cost in FAKE.cost(genes[None])))


@given(st.integers(0, 10_000), st.tuples(st.floats(0.01, 1.2), st.floats(0.02, 1.2), st.floats(0.02, 1.2)))
@settings(max_examples=60, deadline=None)
def test_repair_meets_every_budget_that_can_be_met(seed: int, shares: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(seed)
    genes = Moves(FAKE.space).draw(rng)
    size, latency, memory = (share * float(full[0]) for share, full in zip(shares, FULL, strict=True))
    budget = Budget(max(1, int(size)), latency, memory_bytes=max(1, int(memory)))
    repaired = FAKE.space.check(repair(genes, FAKE.space, FAKE.cost, budget, rng))
    # The smallest candidate is also the fastest here but for the conversions, of which it has none.
    if admits(budget, FAKE.space.smallest):
        assert admits(budget, repaired)
    if admits(budget, genes):
        assert np.array_equal(repaired, genes)


def test_what_nothing_meets_ends_at_the_nearest() -> None:
    budget = Budget(size_bytes=10)
    repaired = repair(FAKE.space.largest, FAKE.space, FAKE.cost, budget, np.random.default_rng(0))
    nearest = nearest_fit(FAKE.space, FAKE.cost, budget)
    over = [float(violation(FAKE.cost(g[None]), budget)[0]) for g in (repaired, nearest, LEAST_SIZE)]
    assert over[0] == over[1] == over[2] > 0


def test_repair_is_gentle() -> None:
    """It stops at the budget: a candidate a little over it stays close to it."""
    rng = np.random.default_rng(1)
    start = FAKE.space.uniform(INT8)
    budget = Budget(int(FAKE.cost(start[None]).size_bytes[0] * 0.9))
    repaired = repair(start, FAKE.space, FAKE.cost, budget, rng)
    assert budget.size_bytes is not None
    assert FAKE.cost(repaired[None]).size_bytes[0] > 0.8 * budget.size_bytes
    assert (repaired != start).sum() <= 4


def test_latency_that_rises_with_compression_is_met_all_the_same() -> None:
    """On a device where integer kernels are the slower ones, stepping down from float makes it worse."""

    def slow_int8(genes: Genes) -> Costs:
        size, _, memory = FAKE.cost(genes)
        is_int8 = ~FAKE.decoded(genes)[3].astype(bool)
        return Costs(size, 1.0 + is_int8.sum(axis=1).astype(float), memory)

    budget = Budget(latency_ms=1.0)
    for start in (FAKE.space.smallest, FAKE.space.uniform(INT8)):
        repaired = repair(start, FAKE.space, slow_int8, budget, np.random.default_rng(0))
        assert slow_int8(repaired[None]).latency_ms[0] == 1.0
    assert slow_int8(smallest_reachable(FAKE.space, slow_int8)[1][None]).latency_ms[0] == 1.0


def test_a_cost_that_only_falls_when_all_switch_together() -> None:
    """Conversions can make each single switch a loss; the walk then follows the way to a candidate that fits."""

    def coupled(genes: Genes) -> Costs:
        size, _, memory = FAKE.cost(genes)
        is_float = FAKE.decoded(genes)[3].astype(bool)
        conversions = np.abs(np.diff(is_float.astype(int), axis=1)).sum(axis=1)
        return Costs(size, 10.0 + is_float.sum(axis=1) + 5.0 * conversions, memory)

    repaired = repair(FAKE.space.largest, FAKE.space, coupled, Budget(latency_ms=10.0), np.random.default_rng(0))
    assert coupled(repaired[None]).latency_ms[0] == 10.0


def test_smallest_reachable_agrees_with_enumeration() -> None:
    options = SpaceOptions(weight_bits=(2, 8), keep_ratios=(0.5, 1.0), sparsities=(0.0, 0.5))
    fake = Fake.make(3, 1, options=options)
    every = np.indices(tuple(fake.space.cardinalities)).reshape(len(fake.space), -1).T
    costs = fake.cost(every)
    size, latency, memory = smallest_reachable(fake.space, fake.cost)
    assert fake.cost(size[None]).size_bytes[0] == costs.size_bytes.min()
    assert fake.cost(latency[None]).latency_ms[0] == costs.latency_ms.min()
    assert fake.cost(memory[None]).memory_bytes[0] == costs.memory_bytes.min()


def test_repair_of_150_genes_takes_few_cost_calls() -> None:
    """It fails if a step costs a call per gene."""
    fake = Fake.make(60, 30)
    assert len(fake.space) == 150
    full = fake.cost(fake.space.largest[None])
    budget = Budget(int(full.size_bytes[0] * 0.05), float(full.latency_ms[0]) * 0.2)
    haven = nearest_fit(fake.space, fake.cost, budget)
    moves, rng = Moves(fake.space), np.random.default_rng(0)
    fake.calls = 0
    for _ in range(10):
        repair(moves.draw(rng), fake.space, fake.cost, budget, rng, moves=moves, haven=haven)
    assert fake.calls <= 10 * 40


def test_anchors_fit_differ_and_span_the_range() -> None:
    budget = Budget(int(FULL.size_bytes[0] * 0.3))
    found = anchors(FAKE.space, FAKE.cost, budget, np.random.default_rng(0))
    sizes = FAKE.cost(np.stack(found)).size_bytes
    assert len({tuple(genes.tolist()) for genes in found}) == len(found) <= MAX_ANCHORS
    assert all(admits(budget, genes) for genes in found)
    assert sizes.max() / sizes.min() > 6


def test_moves_stay_on_their_track() -> None:
    moves = Moves(FAKE.space)
    row = next(i for i, gene in enumerate(FAKE.space.genes) if gene.kind == "quant")
    choices = FAKE.space.genes[row].choices
    w4a8, w4 = choices.index(LayerPolicy(4, "int8")), choices.index(LayerPolicy(4, "float"))
    assert choices[moves.down[row, w4a8]] == LayerPolicy(3, "int8")
    assert choices[moves.up[row, w4a8]] == LayerPolicy(6, "int8")
    assert choices[moves.down[row, w4]] == LayerPolicy(3, "float")
    assert moves.switch[row, w4a8] == w4
    assert moves.switch[row, w4] == w4a8


@pytest.mark.parametrize("seed", range(5))
def test_random_draws_cover_the_range_of_sizes(seed: int) -> None:
    """Draws that are independent per gene have sizes within a few percent of each other when there are 150 genes."""
    fake = Fake.make(60, 30)
    moves, rng = Moves(fake.space), np.random.default_rng(seed)
    sizes = fake.cost(np.stack([moves.draw(rng) for _ in range(50)])).size_bytes
    assert np.quantile(sizes, 0.9) / np.quantile(sizes, 0.1) > 5


def test_accuracy_model_orders_what_it_has_not_seen() -> None:
    moves, rng = Moves(FAKE.space), np.random.default_rng(0)
    genes = np.stack([moves.draw(rng) for _ in range(80)])
    accuracy = FAKE.accuracy(genes)
    model = AccuracyModel(FAKE.space, genes[:40], accuracy[:40])
    mean, deviation = model.predict(genes[40:])
    assert np.corrcoef(mean, accuracy[40:])[0, 1] > 0.8
    assert (deviation > 0).all()
    at_known, _ = model.predict(genes[:40])
    assert np.abs(at_known - accuracy[:40]).mean() < 0.5 * np.abs(accuracy[:40] - accuracy[:40].mean()).mean()
