"""NSGA-II over (−accuracy, size, latency), steady-state and asynchronous."""

import numpy as np

from autocomp.controllers.anchors import AnchoredController
from autocomp.outcome import Candidate, Outcome
from autocomp.space import Genes

#: Share of children with two parents.
CROSSOVER = 0.4


class EvolutionController(AnchoredController):
    """Non-dominated sorting and crowding as in Deb et al. 2002 (NSGA-II), one child at a time.

    Differences from the paper: the first population is the anchors; survival is implicit (every completed candidate
    may be a parent, tournaments prefer the front), so a child can be bred at any moment, whatever is still running;
    mutation acts at two scales (see `moves`); and of a litter of children the most promising is tried, by exact costs
    and predicted accuracy (`screen`), as in NSGANetV2 (Lu et al. 2020, §3.2). pymoo's NSGA2 does not carry this: its
    `ask` gives a whole generation and its `tell` wants it back whole, which leaves workers idle behind the slowest
    trial.
    """

    name = "evolution"

    def _breed(self, count: int) -> list[Genes]:
        return [self.repaired(self._child()) for _ in range(count)]

    def _child(self) -> Genes:
        child = self.varied_parent()
        if self.rng.uniform() < CROSSOVER:
            child = self._cross(child, self.parent())
        return self.moves.mutate(child, self.rng)

    def _cross(self, first: Genes, second: Genes) -> Genes:
        """Uniform crossover by target: the genes of one layer or group stay together, since they were good together."""
        targets = {target: self.rng.uniform() < 0.5 for target in dict.fromkeys(g.target for g in self.space.genes)}
        mask = np.array([targets[gene.target] for gene in self.space.genes], dtype=bool)
        return np.where(mask, first, second)

    def _learn(self, candidate: Candidate, outcome: Outcome) -> None:
        pass
