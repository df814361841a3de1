"""Costs that outcomes correct while a search runs, as `Devices.learn` does: controllers go by what they are now."""

import numpy as np
import pytest
from controllers.analytic import Fake

from autocomp.budget import Budget
from autocomp.controllers import NAMES, Controller, CostFunction, Costs, create
from autocomp.controllers.anchors import AnchoredController
from autocomp.controllers.repair import nearest_fit

FAKE = Fake.make()
FULL = FAKE.cost(FAKE.space.largest[None])


class Corrected:
    """Costs whose bytes and milliseconds are multiplied by what is known of the device so far."""

    def __init__(self, cost: CostFunction = FAKE.cost) -> None:
        self.cost = cost
        self.size = self.latency = 1.0
        self.calls = 0

    def __call__(self, genes: np.ndarray) -> Costs:
        self.calls += len(genes)
        plain = self.cost(genes)
        return Costs(self.size * plain.size_bytes, self.latency * plain.latency_ms, plain.memory_bytes)


def make(name: str, size: float, latency: float) -> tuple[Controller, Corrected]:
    """A controller with bounds at shares of what the least compressed candidate takes."""
    cost = Corrected()
    budget = Budget(int(FULL.size_bytes[0] * size), float(FULL.latency_ms[0]) * latency)
    return create(name, FAKE.space, cost, budget, 0), cost


def fits(controller: Controller, genes: tuple[int, ...]) -> bool:
    return controller.budget.admits(*(float(value[0]) for value in controller.cost(np.array([genes]))))


@pytest.mark.parametrize("name", NAMES)
def test_candidates_fit_by_what_is_known_when_they_are_asked_for(name):
    controller, cost = make(name, 0.3, 0.6)
    FAKE.search(controller, 6)
    cost.size, cost.latency = 1.8, 1.5
    asked = []
    for _ in range(10):
        candidate = controller.ask()
        if candidate is None:
            break
        asked.append(candidate)
        assert fits(controller, candidate.genes)
        controller.tell(candidate, FAKE.run(candidate))
    assert len(asked) == 10


def test_the_haven_follows_the_costs_and_is_kept_while_they_stay():
    def traded(genes: np.ndarray) -> Costs:
        """Every step down saves bytes and takes time; nothing fits, so the least breach lies at one end or another."""
        level = (genes / np.maximum(1, FAKE.space.cardinalities - 1)).mean(axis=1)
        return Costs(1 + level, 2 - level, np.ones(len(genes)))

    cost = Corrected(traded)
    controller = create("random", FAKE.space, cost, Budget(1, 0.5), 0)
    before = controller.haven
    calls = cost.calls
    assert np.array_equal(controller.haven, before)
    assert cost.calls == calls + 1
    havens = {tuple(before.tolist())}
    for cost.size, cost.latency in ((1.0, 50.0), (50.0, 1.0)):
        expected = nearest_fit(FAKE.space, cost, controller.budget, controller.moves)
        assert np.array_equal(controller.haven, expected)
        havens.add(tuple(expected.tolist()))
    assert len(havens) > 1


def test_prices_follow_the_costs():
    controller, cost = make("evolution", 0.3, 0.6)
    assert isinstance(controller, AnchoredController)
    before = controller.prices
    candidate = controller.ask()
    assert candidate is not None
    cost.latency = 50.0
    controller.tell(candidate, FAKE.run(candidate))
    assert np.array_equal(controller.prices, controller.moves.prices(cost))
    assert controller.prices is controller.prices
    assert before.shape == controller.prices.shape
