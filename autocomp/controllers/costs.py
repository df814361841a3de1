"""The one thing a controller knows about the device: what a batch of candidates would cost."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autocomp.budget import Budget
from autocomp.space import Genes

Floats = NDArray[np.float64]


class Costs(NamedTuple):
    """Predicted costs of n candidates: size_bytes (n,), latency_ms (n,), memory_bytes (n,): what a budget bounds."""

    size_bytes: Floats
    latency_ms: Floats
    memory_bytes: Floats


#: Genes (n, len(space)) → Costs of the n candidates. Within one `ask` the same genes cost the same. From one `ask` to
#: the next costs may change, by what an outcome taught about the device (`Devices.learn`), ahead of the `tell` that
#: brings it: they depend on the outcomes told so far and on nothing else, so that a search that is walked again sees
#: them again. A change shows in what any candidate costs. What a controller keeps of costs holds until the next `tell`.
CostFunction = Callable[[Genes], Costs]


def violation(costs: Costs, budget: Budget) -> Floats:
    """How far each candidate is over its bounds, summed over them and relative to each, (n,).

    0 exactly where `budget.admits`. The sum, unlike `budget.excess` (the worst of them), also falls when a step mends
    a lesser breach, so a greedy walk does not stall while several bounds are broken.
    """
    shares = budget.shares(*(np.asarray(cost, dtype=float) for cost in costs))
    return sum((np.maximum(0.0, share - 1) for share in shares.values()), np.zeros(len(costs.size_bytes)))
