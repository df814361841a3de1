"""A bound on lost accuracy steers a search: trials go where it can be met, instead of all along the trade-off."""

from functools import cache

import numpy as np
import pytest
from controllers.analytic import Fake

from autocomp.budget import Budget
from autocomp.controllers import create

SEARCHING = ["evolution", "tpe", "ddpg"]
SEEDS, TRIALS, DROP = range(4), 32, 0.06


@cache
def found(name: str, aimed: bool) -> tuple[float, float]:
    """Means over seeds: the share of trials within the bound, and the bytes of the smallest such, relative to the
    uncompressed network."""
    shares, sizes = [], []
    for seed in SEEDS:
        fake = Fake.make(16, 4, seed=seed)
        size, latency, _ = fake.cost(fake.space.largest[None])
        controller = create(name, fake.space, fake.cost, Budget(None, float(latency[0]), DROP), seed)
        best = float(fake.accuracy(fake.space.largest[None])[0])
        if aimed:
            controller.aim(best)
        outcomes = fake.search(controller, TRIALS)
        within = [outcome.size_bytes for outcome in outcomes if outcome.accuracy >= best - DROP]
        shares.append(len(within) / TRIALS)
        sizes.append(min(within, default=float(size[0])) / size[0])
    return float(np.mean(shares)), float(np.mean(sizes))


@pytest.mark.parametrize("name", SEARCHING)
def test_more_trials_meet_the_bound_and_the_smallest_that_does_is_no_larger(name: str) -> None:
    (share, size), (free_share, free_size) = found(name, True), found(name, False)
    assert share > 1.3 * free_share
    assert size <= free_size
