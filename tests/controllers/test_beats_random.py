"""Controllers that learn must find a better front than random search. Seeds are fixed. Measured: evolution 14 %,
tpe 17 % and ddpg 15 % above random; 5 % are asked for, since another version of a library may draw other numbers."""

from functools import cache

import numpy as np
import pytest
from controllers.analytic import Fake
from pymoo.indicators.hv import HV

from autocomp.budget import Budget
from autocomp.controllers import create

SEEDS, TRIALS = range(3), 32


@cache
def hypervolume(name: str) -> float:
    """Mean over seeds of the volume dominated within accuracy ≥ 0, size and latency within the budget."""
    volumes = []
    for seed in SEEDS:
        fake = Fake.make(16, 4, seed=seed)
        size, latency, _ = fake.cost(fake.space.largest[None])
        budget = Budget(int(size[0] * 0.12), float(latency[0] * 0.4))
        controller = create(name, fake.space, fake.cost, budget, seed)
        costs = [[*outcome.costs] for outcome in fake.search(controller, TRIALS)]
        scale = np.array([1.0, budget.size_bytes, budget.latency_ms], dtype=float)
        volumes.append(float(HV(ref_point=np.array([0.0, 1.0, 1.0]))(np.array(costs) / scale)))
    return float(np.mean(volumes))


@pytest.mark.parametrize("name", ["evolution", "tpe", "ddpg"])
def test_beats_random_search(name: str) -> None:
    assert hypervolume(name) > 1.05 * hypervolume("random")


def test_evolution_beats_one_setting_for_all_layers() -> None:
    assert hypervolume("evolution") > hypervolume("uniform")
