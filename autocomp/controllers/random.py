"""Random search: the dullest controller, and the one that every other has to beat."""

from autocomp.controllers.base import Controller
from autocomp.outcome import Candidate, Outcome
from autocomp.policy import INT8
from autocomp.space import Genes


class RandomController(Controller):
    """Plain int8 first, then random candidates, each repaired where it breaks the budget. Learns nothing."""

    name = "random"

    def _propose(self) -> Genes | None:
        return self.repaired(self.moves.draw(self.rng) if self._candidates else self.space.uniform(INT8))

    def _learn(self, candidate: Candidate, outcome: Outcome) -> None:
        pass
