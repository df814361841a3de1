"""Where searches start: candidates at the edge of the budget."""

import numpy as np
import pytest
from controllers.analytic import Fake

from autocomp.budget import Budget
from autocomp.controllers import create
from autocomp.controllers.anchors import _filled, _lower_bits
from autocomp.controllers.costs import violation
from autocomp.outcome import Outcome, Status
from autocomp.policy import INT8
from autocomp.space import SpaceOptions

INTEGER = SpaceOptions(activations=("int8",))
CODED = SpaceOptions(weight_bits=(2, 3, 4, 5, 6, 8), activations=("int8",), keep_ratios=(0.5, 1.0), clusters=(4, 16))


def tight(fake: Fake, share: float) -> Budget:
    """A share of plain int8's bytes."""
    return Budget(int(share * fake.cost(fake.space.uniform(INT8)[None]).size_bytes[0]))


@pytest.mark.parametrize("options", [INTEGER, CODED])
@pytest.mark.parametrize("share", [0.35, 0.5, 0.8])
def test_bits_go_where_they_cost_most(options, share):
    for seed in range(4):
        fake = Fake.make(12, 3, seed=seed, options=options)
        budget = tight(fake, share)
        filled, lowered = _filled(fake.space, fake.cost, budget), _lower_bits(fake.space, fake.cost, budget)
        for genes in (filled, lowered):
            assert violation(fake.cost(genes[None]), budget)[0] == 0
        plain = fake.space.uniform(INT8)
        moved = [gene.kind for gene, a, b in zip(fake.space.genes, filled, plain, strict=True) if a != b]
        assert set(moved) == {"quant"}
        assert noise(fake, filled) <= noise(fake, lowered)


def noise(fake: Fake, genes: np.ndarray) -> float:
    """4^-bits, summed over layers."""
    return float((4.0 ** -fake.decoded(genes[None])[0]).sum())


def test_layers_that_do_not_bear_on_the_bound_keep_their_bits():
    fake = Fake.make(8, 2)

    def cost(genes):
        """Only the last layer's bits take time."""
        last = fake.decoded(genes)[0][:, -1]
        return fake.cost(genes)._replace(latency_ms=last)

    genes = _filled(fake.space, cost, Budget(latency_ms=4))
    bits = fake.decoded(genes[None])[0][0]
    assert bits[-1] == 4
    assert (bits[:-1] == 8).all()


def test_no_bits_are_taken_where_that_is_not_needed_or_not_enough():
    fake = Fake.make(8, 2)
    assert _filled(fake.space, fake.cost, tight(fake, 1.01)) is None
    assert _filled(fake.space, fake.cost, tight(fake, 0.01)) is None


def test_the_edge_of_the_budget_comes_first():
    fake = Fake.make(8, 2)
    budget = tight(fake, 0.5)
    first = create("tpe", fake.space, fake.cost, budget, 0).ask().genes
    assert (np.array(first) == _filled(fake.space, fake.cost, budget)).all()


@pytest.mark.parametrize("name", ["tpe", "evolution", "ddpg"])
def test_an_overstepped_edge_is_looked_for_again_further_in(name):
    fake = Fake.make(8, 2)
    budget = tight(fake, 0.5)
    controller = create(name, fake.space, fake.cost, budget, 0)
    sizes = []
    for _ in range(6):
        candidate = controller.ask()
        sizes.append(float(fake.cost(np.array([candidate.genes])).size_bytes[0]) / budget.size_bytes)
        # The file turns out 2.5 % larger than predicted.
        found = round(1.025 * sizes[-1] * budget.size_bytes)
        if found > budget.size_bytes:
            controller.tell(candidate, Outcome(Status.INFEASIBLE, None, found, 1.0, "the file is too large"))
        else:
            controller.tell(candidate, fake.run(candidate))
    within = [size for size in sizes if size * 1.025 <= 1]
    assert sizes[0] > 0.98
    assert max(within[:3]) > 0.93  # not just any smaller candidate
    assert sizes.index(within[0]) <= 4
