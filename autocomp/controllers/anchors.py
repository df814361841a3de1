"""Where the searching controllers start: uniform candidates that span the trade-off from the first dozen trials.

With tens of trials and 150 genes, a search that starts from noise never meets the corners of the space; one setting
for all layers does, at no cost, and is the very thing that a mixed candidate has to beat.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import ClassVar

import numpy as np

from autocomp.budget import Budget
from autocomp.controllers.base import Controller
from autocomp.controllers.costs import CostFunction, Floats, violation
from autocomp.controllers.repair import repair
from autocomp.controllers.screen import most_promising, within_reach
from autocomp.front import crowding_distance, ranks
from autocomp.outcome import Candidate, Outcome, Status
from autocomp.policy import FLOAT, INT8, LayerPolicy, clustered
from autocomp.space import Genes, SearchSpace

MAX_ANCHORS = 12
#: Anchors that are far over the budget all end at its edge after repair: keep only the nearest few of them.
MAX_REPAIRED = 3
#: Share of the weights that is meant by "the layers that hold most of the weights".
LARGE_SHARE = 0.6
#: Where a candidate at the edge of the budget turned out to be over it: how far in the next is sought, and how often.
RETREAT, MAX_RETREATS = 0.01, 3

#: How a new candidate starts: drawn at random, or with many genes of a front point moved together. Front points differ
#: mostly in levels, not in single genes; random draws keep the search global.
FRESH, SHIFT = 0.25, 0.45

#: (quantization, keep ratio, sparsity), ordered so that any first few spread over the range. A pair of quantizations
#: is for the layers that hold most of the weights and for all others: large layers bear fewer bits. Where the space has
#: no codebooks, theirs come out as the grids of as many bits, which stand ahead of them.
SETTINGS: tuple[tuple[LayerPolicy | tuple[LayerPolicy, LayerPolicy], float, float], ...] = (
    (INT8, 1.0, 0.0),
    (LayerPolicy(4, "int8"), 1.0, 0.0),
    (clustered(16), 1.0, 0.0),
    (INT8, 0.5, 0.0),
    ((LayerPolicy(2, "int8"), LayerPolicy(4, "int8")), 1.0, 0.0),
    ((clustered(4), clustered(16)), 1.0, 0.0),
    (INT8, 0.25, 0.0),
    (LayerPolicy(6, "int8"), 1.0, 0.0),
    (LayerPolicy(4, "int8"), 0.5, 0.0),
    ((LayerPolicy(3, "int8"), LayerPolicy(6, "int8")), 1.0, 0.0),
    (INT8, 0.75, 0.0),
    (LayerPolicy(3, "int8"), 1.0, 0.0),
    (FLOAT, 1.0, 0.0),
    (LayerPolicy(4, "int8"), 1.0, 0.5),
    (INT8, 0.375, 0.0),
    (LayerPolicy(4, "int8"), 0.75, 0.0),
    (INT8, 1.0, 0.5),
    (LayerPolicy(3, "int8"), 0.5, 0.0),
    (LayerPolicy(4, "int8"), 0.375, 0.0),
    (LayerPolicy(2, "int8"), 1.0, 0.0),
    ((LayerPolicy(5, "int8"), INT8), 1.0, 0.0),
    (LayerPolicy(4, "int8"), 0.5, 0.5),
    (LayerPolicy(4, "int8"), 0.25, 0.75),
)


def anchors(
    space: SearchSpace, cost: CostFunction, budget: Budget, rng: np.random.Generator, at_edge: Sequence[Genes] = ()
) -> list[Genes]:
    """Different candidates (G,): `at_edge`, then at most `MAX_ANCHORS`: what fits as it is, then the nearest repaired.

    If the budget cannot be met, the one candidate that comes nearest.
    """
    rows = dict.fromkeys(tuple(_setting(space, *setting).tolist()) for setting in SETTINGS)
    settings = np.array(list(rows), dtype=np.int64).reshape(len(rows), len(space))
    over = violation(cost(settings), budget)
    broken = sorted(np.flatnonzero(over > 0).tolist(), key=lambda i: float(over[i]))[:MAX_REPAIRED]
    chosen = list(settings[over <= 0][: MAX_ANCHORS - len(broken)])
    chosen = [*at_edge, *chosen]
    chosen += [repair(settings[i], space, cost, budget, rng) for i in broken]
    return [np.array(row, dtype=np.int64) for row in dict.fromkeys(tuple(genes.tolist()) for genes in chosen)]


def edge(space: SearchSpace, cost: CostFunction, budget: Budget) -> Iterator[Genes]:
    """Candidates just within the budget, (G,) each, where plain int8 is not: there lies what the user asked for."""
    for find in (_filled, _lower_bits):
        genes = find(space, cost, budget)
        if genes is not None:
            yield genes


def _filled(space: SearchSpace, cost: CostFunction, budget: Budget) -> Genes | None:
    """Plain int8 with bits taken where they save most of what is over the budget for the noise that they add; (G,).

    The noise of a layer's weights is 4^-bits of their energy, in each layer alike; greedy steps by that ratio are the
    reverse water-filling of rate-distortion theory (Cover & Thomas 2006, §10.3.3), with what the device charges for a
    bit in the place of the bit. None if plain int8 fits as it is, or if bits alone do not make it fit.
    """
    genes = space.uniform(INT8)
    noise = [[_noise(choice) for choice in gene.choices] for gene in space.genes]
    columns = [column for column, gene in enumerate(space.genes) if gene.kind == "quant"]
    over = float(violation(cost(genes[None]), budget)[0])
    if over <= 0:
        return None
    while over > 0:
        now = [noise[column][genes[column]] for column in columns]
        steps = [
            (column, lower, noise[column][lower] - present)
            for column, present in zip(columns, now, strict=True)
            for lower in range(int(genes[column]))
            if present < noise[column][lower] < np.inf
        ]
        if not steps:
            return None
        tried = np.repeat(genes[None], len(steps), axis=0)
        tried[range(len(steps)), [column for column, _, _ in steps]] = [lower for _, lower, _ in steps]
        left = violation(cost(tried), budget)
        best = int(np.argmax((over - left) / [added for _, _, added in steps]))
        if left[best] >= over:
            return None
        genes, over = tried[best], float(left[best])
    return genes


def _noise(choice: object) -> float:
    """Of weights that are rounded so, as a share of their energy; infinite for what does not run as int8.

    The levels of a codebook lie where the weights are, which takes a quarter off (docs/npu.md).
    """
    if not isinstance(choice, LayerPolicy) or choice.activation != "int8" or choice.stored_bits is None:
        return float("inf")
    return float(4.0**-choice.stored_bits) * (0.75 if choice.clusters else 1.0)


def _lower_bits(space: SearchSpace, cost: CostFunction, budget: Budget) -> Genes | None:
    """Plain int8 with bits taken, level by level, from the layers that hold most weights, until it fits; (G,).

    None if plain int8 fits as it is, or if bits alone do not make it fit. Where a network cannot be trained for long,
    bits cost less accuracy than channels or zeros, which `repair` might take first.
    """
    genes = space.uniform(INT8)
    column = {gene.target: i for i, gene in enumerate(space.genes) if gene.kind == "quant"}
    weights = {layer.name: layer.weights() for layer in space.network.layers}

    def bits(layer: str) -> tuple[int, int]:
        choice = space.genes[column[layer]].choices[genes[column[layer]]]
        return (choice.stored_bits or 0) if isinstance(choice, LayerPolicy) else 0, weights[layer]

    for step in range(sum(len(space.genes[row].choices) for row in column.values())):
        if violation(cost(genes[None]), budget)[0] <= 0:
            return genes if step else None
        heaviest = max(column, key=bits, default="")
        if not heaviest or genes[column[heaviest]] == 0:
            return None
        genes[column[heaviest]] -= 1
    return None


def _setting(
    space: SearchSpace, quant: LayerPolicy | tuple[LayerPolicy, LayerPolicy], keep: float, sparsity: float
) -> Genes:
    """The candidate of a setting, (G,)."""
    if isinstance(quant, LayerPolicy):
        return space.uniform(quant, keep, sparsity)
    heavy, light = (space.uniform(q, keep, sparsity) for q in quant)
    large = _largest_layers(space)
    return np.where([gene.target in large for gene in space.genes], heavy, light)


def _largest_layers(space: SearchSpace) -> set[str]:
    """The fewest layers that hold `LARGE_SHARE` of the network's weights."""
    total, held, large = space.network.weights(), 0, set()
    for layer in sorted(space.network.layers, key=lambda layer: -layer.weights()):
        if held >= LARGE_SHARE * total:
            break
        large.add(layer.name)
        held += layer.weights()
    return large


class AnchoredController(Controller):
    """Proposes the anchors first, then the most promising of a litter bred from the front that is known so far.

    A subclass says how candidates are bred (`_breed`). Size and latency of each are known for nothing, so a trial is
    spent only on the one that should advance the front the most (`screen`).
    """

    pool_size: ClassVar[int] = 32
    _anchors: list[Genes] | None = None
    #: Candidates of `edge` that are not told yet, and how often they were made anew.
    _edge: frozenset[tuple[int, ...]] = frozenset()
    _retreats = 0
    _ranked: Sequence[tuple[int, float]] = ()
    _prices: Floats | None = None

    @abstractmethod
    def _breed(self, count: int) -> list[Genes]:
        """Called by each `ask` after the anchors: at least one, at most `count` gene vectors (G,) within the budget."""

    def _propose(self) -> Genes | None:
        if self._anchors is None:
            at_edge = list(edge(self.space, self.cost, self.budget))
            self._anchors = anchors(self.space, self.cost, self.budget, self.rng, at_edge)[::-1]
            self._edge = frozenset(tuple(genes.tolist()) for genes in at_edge)
        if self._anchors and self.least_accuracy is not None:
            hopeful = within_reach(self.space, np.stack(self._anchors), self.scored, self.least_accuracy)
            self._anchors = [genes for genes, keep in zip(self._anchors, hopeful, strict=True) if keep]
        if self._anchors:
            # What was compiled since they were made may have made the device dearer.
            return self.repaired(self._anchors.pop())
        litter = self._breed(self.pool_size if self.scored else 1)
        new = [genes for genes in litter if tuple(genes.tolist()) not in self._proposed]
        if len(new) < 2:
            return (new or litter)[0]
        pool = np.stack(new)
        waiting = np.array([candidate.genes for candidate in self.pending], dtype=np.int64)
        waiting = waiting.reshape(-1, len(self.space))
        return new[most_promising(self.space, self.cost, pool, waiting, self.scored, self.least_accuracy)]

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """See `Controller.tell`. Where the edge of the budget was overstepped, it is looked for again, further in."""
        super().tell(candidate, outcome)
        self._prices = None  # what this taught about the device is in the costs by now
        if candidate.genes not in self._edge:
            return
        self._edge -= {candidate.genes}
        if outcome.status is Status.INFEASIBLE and self._retreats < MAX_RETREATS:
            self._retreats += 1
            nearer = list(islice(edge(self.space, self.cost, self.budget.scaled(1 - RETREAT * self._retreats)), 1))
            self._anchors = [*(self._anchors or []), *nearer]
            self._edge |= {tuple(genes.tolist()) for genes in nearer}

    def varied_parent(self) -> Genes:
        """A new start (G,) for `_breed`: a parent, a parent with many genes shifted together, or a random draw."""
        kind = self.rng.uniform()
        if kind < FRESH:
            return self.moves.draw(self.rng)
        return self.moves.shift(self.parent(), self.rng, self.prices) if kind < FRESH + SHIFT else self.parent()

    def parent(self) -> Genes:
        """A candidate to change, (G,): binary tournament by rank, then by crowding (Deb et al. 2002, §III-C).

        Before anything completed, any candidate that was proposed.
        """
        if not self.scored:
            known = [np.array(candidate.genes, dtype=np.int64) for candidate in self._candidates]
            return known[int(self.rng.integers(len(known)))] if known else self.repaired(self.moves.draw(self.rng))
        fitness = self._fitness()
        first, second = self.rng.integers(len(fitness), size=2).tolist()
        winner, _ = self.scored[first if fitness[first] <= fitness[second] else second]
        return np.array(winner, dtype=np.int64)  # a copy: what is bred from it may be changed in place

    def _fitness(self) -> Sequence[tuple[int, float]]:
        """(rank, −crowding distance within the rank) of each scored candidate: smaller is fitter.

        What falls short of the bound on accuracy ranks below all else, by its shortage (Deb et al. 2002, §VI).
        """
        if len(self._ranked) != len(self.scored):  # a litter has dozens of parents, between two outcomes
            costs = np.array([values for _, values in self.scored])
            rank = ranks(costs)
            crowding = np.zeros(len(costs))
            for level in range(int(rank.max()) + 1):
                crowding[rank == level] = crowding_distance(costs[rank == level])
            short = np.array([self.shortage(-cost[0]) for cost in costs])
            below = np.argsort(np.argsort(short, kind="stable"), kind="stable") + len(costs)
            rank = np.where(short > 0, below, rank)
            self._ranked = list(zip(rank.tolist(), (-crowding).tolist(), strict=True))
        return self._ranked

    @property
    def prices(self) -> Floats:
        """(G,) see `Moves.prices`. A litter has dozens of parents, so they are kept until the next outcome."""
        if self._prices is None:
            self._prices = self.moves.prices(self.cost)
        return self._prices
