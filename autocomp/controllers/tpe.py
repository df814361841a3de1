"""Tree-structured Parzen estimators by Optuna, over (−accuracy, size, latency)."""

import warnings

import numpy as np

from autocomp.budget import Budget
from autocomp.controllers.anchors import AnchoredController
from autocomp.controllers.costs import CostFunction
from autocomp.errors import MissingPackage
from autocomp.outcome import Candidate, Outcome, Status
from autocomp.space import Genes, SearchSpace

try:
    import optuna
    from optuna.distributions import IntDistribution
    from optuna.trial import TrialState, create_trial
except ImportError as error:  # pragma: no cover - depends on the installation
    raise MissingPackage("optuna", "the controller 'tpe'") from error


#: Genes that one `ask` lets Optuna draw.
DRAWN = 8


class TpeController(AnchoredController):
    """Multi-objective TPE (Ozaki et al. 2022) that redraws part of candidates from the front.

    Each gene is an integer parameter over its ordered choices. Optuna fits per gene the densities l(x) of good and
    g(x) of other trials, and proposes where l/g is largest (Bergstra et al. 2011, eq. 2–5).

    Differences from plain Optuna: it draws a random part of the genes, and children take these values into parents
    from the front. Redrawing all of 150 genes independently would put each where *some* good trial had it, and mix
    the small end of the front with the accurate one; and Optuna takes about a
    millisecond a gene. The study is told the candidate that was tried, after repair, rather than what it drew.
    Infeasible outcomes carry their excess as a constraint, as do those that lost too much accuracy; pruned ones count
    as pruned, and failures as failures, which TPE ignores.
    """

    name = "tpe"

    def __init__(self, space: SearchSpace, cost: CostFunction, budget: Budget, seed: int) -> None:
        super().__init__(space, cost, budget, seed)
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # it announces every new study
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._study = optuna.create_study(
                    directions=["minimize"] * 3,
                    sampler=optuna.samplers.TPESampler(seed=seed % 2**32, multivariate=False, n_startup_trials=8),
                )
        finally:
            optuna.logging.set_verbosity(verbosity)
        # Positions are part of the name: two genes may share a target, never a position.
        self._names = [f"{position}:{gene.name}" for position, gene in enumerate(space.genes)]
        self._distributions = [IntDistribution(0, int(count) - 1) for count in space.cardinalities]
        self._numbers: dict[int, int] = {}
        self._trials = 0

    def _breed(self, count: int) -> list[Genes]:
        for candidate in self.pending:  # running trials count against l(x), so that parallel asks differ
            self._register(candidate)
        drawn, values = self._draw()
        litter = []
        for _ in range(count):
            child = self.varied_parent()
            if len(drawn):
                # The share is log-uniform: some children take one or two of the values, others nearly all.
                taken = self.rng.uniform(size=len(drawn)) < np.exp(self.rng.uniform(np.log(1 / len(drawn)), 0))
                child[drawn[taken]] = values[taken]
            litter.append(self.repaired(child))
        return litter

    def _draw(self) -> tuple[Genes, Genes]:
        """Genes (r,) picked at random, and the values (r,) that TPE proposes for them."""
        rows = self.rng.choice(len(self.space), size=min(len(self.space), DRAWN), replace=False).astype(np.int64)
        trial = self._study.ask()
        self._trials += 1
        values = [trial.suggest_int(self._names[row], 0, int(self.space.cardinalities[row]) - 1) for row in rows]
        self._study.tell(trial, state=TrialState.FAIL)  # only a draw: what is tried is registered when it is known
        return rows, np.array(values, dtype=np.int64)

    def _register(self, candidate: Candidate) -> None:
        if candidate.id not in self._numbers:
            self._numbers[candidate.id] = self._add(candidate, TrialState.RUNNING)

    def _add(self, candidate: Candidate, state: TrialState, constraints: dict[str, float] | None = None) -> int:
        self._study.add_trial(
            create_trial(
                state=state,
                params=dict(zip(self._names, candidate.genes, strict=True)),
                distributions=dict(zip(self._names, self._distributions, strict=True)),
                constraints=constraints,
            )
        )
        self._trials += 1
        return self._trials - 1

    def _learn(self, candidate: Candidate, outcome: Outcome) -> None:
        self._register(candidate)
        number = self._numbers[candidate.id]
        short = self.shortage(outcome.accuracy or 0.0) if outcome.status is Status.COMPLETE else 0.0
        if outcome.status is Status.COMPLETE and not short:
            self._study.tell(number, values=list(outcome.costs))
        else:
            self._study.tell(number, state=TrialState.FAIL)
        if short:
            self._add(candidate, TrialState.PRUNED, {"budget": short})
        elif outcome.status is Status.INFEASIBLE:
            size_bytes, latency_ms = outcome.size_bytes or 0, outcome.latency_ms or 0.0
            # It was found to break the budget, even where the prediction at hand says that it does not.
            memory_bytes = float(self.cost(np.array([candidate.genes])).memory_bytes[0])
            excess = max(self.budget.excess(size_bytes, latency_ms, memory_bytes), 1e-3)
            self._add(candidate, TrialState.PRUNED, {"budget": excess})
