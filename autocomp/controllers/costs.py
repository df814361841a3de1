"""The one thing a controller knows about the device: what a batch of candidates would cost."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autocomp.budget import Budget
from autocomp.space import Genes

Floats = NDArray[np.float64]


class Costs(NamedTuple):
    """Predicted costs of n candidates: size_bytes (n,), latency_ms (n,)."""

    size_bytes: Floats
    latency_ms: Floats


#: Genes (n, len(space)) → Costs of the n candidates. Must be a pure function: controllers replay what they asked.
CostFunction = Callable[[Genes], Costs]


def violation(costs: Costs, budget: Budget) -> Floats:
    """How far each candidate is over its bounds, summed over size and latency and relative to each bound, (n,).

    0 exactly where `budget.admits`. The sum, unlike `budget.excess` (the worse of the two), also falls when a step
    mends the lesser breach, so a greedy walk does not stall while two bounds are broken.
    """
    over = np.zeros(len(costs.size_bytes))
    if budget.size_bytes is not None:
        over += np.maximum(0.0, np.asarray(costs.size_bytes, dtype=float) / budget.size_bytes - 1)
    if budget.latency_ms is not None:
        over += np.maximum(0.0, np.asarray(costs.latency_ms, dtype=float) / budget.latency_ms - 1)
    return over
