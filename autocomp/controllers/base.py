"""The interface of every controller: ask for a candidate, tell what came of it."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np

from autocomp.budget import Budget
from autocomp.controllers.costs import CostFunction as CostFunction
from autocomp.controllers.costs import Costs as Costs
from autocomp.controllers.costs import violation
from autocomp.controllers.moves import Moves
from autocomp.controllers.repair import nearest_fit, repair
from autocomp.errors import RunError
from autocomp.outcome import Candidate, Outcome, Status
from autocomp.space import Genes, SearchSpace

#: Attempts at each way to get away from a candidate that was proposed before.
RETRIES = 24
#: Spaces up to this many candidates are searched exhaustively for what is left.
ENUMERABLE = 4096


class Controller(ABC):
    """Proposes candidates and learns from their outcomes.

    A search calls `ask` whenever a worker is free, and `tell` whenever a trial ends; many candidates may be asked
    for before the first is told, and they are told in any order, or never (the run was killed). In between it may
    call `state`, and later `restore` on a fresh controller of the same space, cost, budget and seed.

    A subclass implements

    * `_propose`, called once by each `ask`: a gene vector, best within the budget, or None if it has no more;
    * `_learn`, called once by each `tell`, after the outcome was recorded.

    The base numbers candidates, refuses what makes no sense, and proposes nothing twice. All randomness of a
    subclass comes from `self.rng`, so that one seed and one order of calls give one sequence of candidates.
    """

    name: ClassVar[str]

    def __init__(self, space: SearchSpace, cost: CostFunction, budget: Budget, seed: int) -> None:
        self.space = space
        self.cost = cost
        self.budget = budget
        self.seed = seed
        #: What a candidate has to reach, where a bound on lost accuracy was given and `aim` was called; see there.
        self.least_accuracy: float | None = None
        self.rng = np.random.default_rng(seed)
        self.moves = Moves(space)
        #: What completed, in the order in which it was told: genes (G,), (−accuracy, size_bytes, latency_ms).
        self.scored: list[tuple[Genes, tuple[float, ...]]] = []
        self._candidates: list[Candidate] = []
        self._proposed: set[tuple[int, ...]] = set()
        self._told: set[int] = set()
        self._events: list[dict[str, Any]] = []
        self._finished = False
        #: The haven and what it cost when it was found.
        self._haven: tuple[Genes, Costs] | None = None

    @abstractmethod
    def _propose(self) -> Genes | None:
        """The next gene vector (G,), or None. The base replaces it if it was proposed before."""

    @abstractmethod
    def _learn(self, candidate: Candidate, outcome: Outcome) -> None:
        """Take in an outcome of any status. COMPLETE outcomes are in `self.scored` already."""

    def aim(self, float_accuracy: float) -> None:
        """Say, ahead of the first `ask`, how accurate the float network is: from it follows `least_accuracy`.

        Without it, all of the trade-off is of interest, down to what is small and answers at random.
        """
        if self.budget.accuracy_drop is not None:
            self.least_accuracy = float_accuracy - self.budget.accuracy_drop

    def shortage(self, accuracy: float) -> float:
        """By how much an accuracy falls short of the bound on it; 0 if it is within, or if there is none."""
        return 0.0 if self.least_accuracy is None else max(0.0, self.least_accuracy - accuracy)

    def ask(self) -> Candidate | None:
        """The next candidate, or None if nothing more can be proposed; once None, always None."""
        if self._finished:
            return None
        proposal = self._propose()
        genes = self._unlike_before(self.space.check(proposal)) if proposal is not None else None
        if genes is None:
            self._finished = True
            self._events.append({"ask": None})
            return None
        key = tuple(genes.tolist())
        candidate = Candidate(len(self._candidates), key, self.space.decode(genes))
        self._candidates.append(candidate)
        self._proposed.add(key)
        self._events.append({"ask": list(key)})
        return candidate

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """Report what came of a candidate.

        Raises ValueError if this controller did not propose it, if it was told before, or if it completed with a
        value that is no finite number.
        """
        if not 0 <= candidate.id < len(self._candidates):
            raise ValueError(
                f"candidate {candidate.id} is unknown: this controller proposed {len(self._candidates)}, from id 0"
            )
        if candidate.genes != self._candidates[candidate.id].genes:
            raise ValueError(f"candidate {candidate.id} has other genes than the candidate that was proposed as such")
        if candidate.id in self._told:
            raise ValueError(f"candidate {candidate.id} was told twice")
        if outcome.status is Status.COMPLETE:
            if not all(math.isfinite(value) for value in outcome.costs):
                raise ValueError(f"candidate {candidate.id} completed with a value that is not finite: {outcome}")
            self.scored.append((np.array(candidate.genes, dtype=np.int64), tuple(outcome.costs)))
        self._told.add(candidate.id)
        self._events.append({"tell": candidate.id, "outcome": {**asdict(outcome), "status": str(outcome.status)}})
        self._learn(candidate, outcome)

    @property
    def pending(self) -> tuple[Candidate, ...]:
        """Candidates that were asked for and not told, oldest first: what a resumed run has to run again."""
        return tuple(candidate for candidate in self._candidates if candidate.id not in self._told)

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, as plain JSON values: which controller it is, and each event so far."""
        return {"version": 1, "controller": self.name, "seed": self.seed, "events": [*self._events]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Bring this fresh controller to where `state` was taken, by asking and telling the same again.

        For costs that stay as they are: what outcomes taught about the device is not in `state`. A search, whose costs
        may change, is resumed from its journal instead, which teaches the device again (`Schedule`).

        Raises ValueError if this controller was used already; RunError if the state is of another controller, seed
        or format, or if a candidate comes out differently: settings, machine or a library's version changed.
        """
        if self._events:
            raise ValueError("only a fresh controller can be restored")
        mine = {"version": 1, "controller": self.name, "seed": self.seed}
        theirs = {key: state.get(key) for key in mine}
        if mine != theirs:
            raise RunError(f"cannot resume: the saved state is of {theirs}, this controller is {mine}")
        for number, event in enumerate(state.get("events", ())):
            if "ask" in event:
                candidate = self.ask()
                if event["ask"] != (list(candidate.genes) if candidate is not None else None):
                    raise RunError(
                        f"cannot resume: {self.name} proposes another candidate than it did at event {number}; "
                        "the space, the budget, the cost table or a library's version changed since the run was saved"
                    )
            else:
                fields = {**event["outcome"], "status": Status(event["outcome"]["status"])}
                self.tell(self._candidates[event["tell"]], Outcome(**fields))

    @property
    def haven(self) -> Genes:
        """The candidate that breaks the budget least, (G,): where repairs end when all else fails.

        It is costly to find, and kept for as long as it costs what it did.
        """
        if self._haven is not None:
            genes, known = self._haven
            if all(np.array_equal(now, then) for now, then in zip(self.cost(genes[None]), known, strict=True)):
                return genes
        genes = nearest_fit(self.space, self.cost, self.budget, self.moves)
        self._haven = genes, self.cost(genes[None])
        return genes

    def repaired(self, genes: Genes) -> Genes:
        """`genes` (G,) within the budget, or the haven if the budget cannot be met."""
        if self.fits(genes):  # the haven is costly to find and seldom needed
            return genes
        return repair(genes, self.space, self.cost, self.budget, self.rng, moves=self.moves, haven=self.haven)

    def fits(self, genes: Genes) -> bool:
        return bool(violation(self.cost(genes[None]), self.budget)[0] <= 0)

    def _unlike_before(self, genes: Genes) -> Genes | None:
        """`genes` or something near them that was not proposed before; None if nothing of the kind is found."""
        if tuple(genes.tolist()) not in self._proposed:
            return genes
        if self.space.size <= ENUMERABLE:
            return self._any_left()
        for attempt in range(2 * RETRIES):
            near = attempt < RETRIES
            other = self.moves.mutate(genes, self.rng) if near else self.moves.draw(self.rng)
            other = self.repaired(other)
            if tuple(other.tolist()) not in self._proposed:
                return other
        return None

    def _any_left(self) -> Genes | None:
        choices = itertools.product(*(range(count) for count in self.space.cardinalities))
        every = np.array(list(choices), dtype=np.int64).reshape(self.space.size, len(self.space))
        new = [tuple(row) not in self._proposed for row in every.tolist()]
        left = every[new]
        left = left[violation(self.cost(left), self.budget) <= 0] if len(left) else left
        return left[int(self.rng.integers(len(left)))] if len(left) else None
