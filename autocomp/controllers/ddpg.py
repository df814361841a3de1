"""A deep deterministic policy gradient agent that walks the network layer by layer, after AMC and HAQ.

Papers: DDPG (Lillicrap et al. 2016), AMC (He et al. 2018), HAQ (Wang et al. 2019).

One episode compresses the network once. At each layer the agent sees a state (the layer's shape, what the walk has
spent so far, what the parent does there) and answers with an action in [0, 1]³: share of channels kept, bits,
share of weights kept; 0 is the most compressed choice of each. AMC's bound follows at once: an action is lowered
until the budget of the episode could still be met if all later layers were compressed the most (AMC, algorithm 1).
The reward is the accuracy alone: the walk and the repair have made the candidate feasible (AMC, §3.3, "R_err").

Deviations from the papers, each made for tens of trials instead of hundreds:

* An action is a change of at most `REACH` against a *parent* from the front, instead of absolute; an untrained agent
  so proposes neighbours of good candidates. The papers spend 100 episodes on random warm-up.
* Every episode draws its own budget near the parent's cost, which the state includes. One fixed budget would give the
  point of highest accuracy rather than a front.
* The critic regresses on the reward of the episode itself. There is no reward before the end and γ = 1 (as in AMC),
  so that every step's return is that reward; a bootstrapped target and target networks would only delay it.
* The buffer holds the actions of the candidate that was tried, after bounding and repair, and the anchors too.
* Channels, bits and sparsity are decided in one action per layer; AMC decides channels alone and HAQ bits alone.
* `EPISODES` walks are made side by side, and the most promising is tried (see `screen`).

What to expect: on analytic networks, 40 trials long, the agent with its learning switched off came out the same. Its
advantage over random search there is that of the anchors, the walk from the front and the screening; what the agent
learns can only begin to count over hundreds of trials, as in the papers.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from autocomp.budget import Budget
from autocomp.controllers.anchors import AnchoredController
from autocomp.controllers.costs import CostFunction, Floats, violation
from autocomp.errors import MissingPackage
from autocomp.outcome import Candidate, Outcome, Status
from autocomp.space import Genes, SearchSpace

try:
    import torch
    from torch import nn
except ImportError as error:  # pragma: no cover - depends on the installation
    raise MissingPackage("torch", "the controller 'ddpg'") from error

KINDS = ("channels", "quant", "sparsity")
EPISODES = 12
HIDDEN = 64
REACH = 0.3
NOISE, NOISE_DECAY = 0.3, 0.98
UPDATES, BATCH, BUFFER = 16, 64, 20_000
CRITIC_RATE, ACTOR_RATE = 1e-3, 1e-4  # Lillicrap et al. 2016, §7, with AMC's faster critic
#: Share of an action that is tried on the way down to the most compressed choice.
LOWERINGS = np.array([1.0, 2 / 3, 1 / 3, 0.0])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of one thread come out the same on any number of cores; the networks are too small to gain from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _network(inputs: int, outputs: int) -> nn.Sequential:
    last = nn.Linear(HIDDEN, outputs)
    nn.init.uniform_(last.weight, -3e-3, 3e-3)  # Lillicrap et al. 2016, §7: first actions near zero
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), last)


class DdpgController(AnchoredController):
    """Actor and critic over layer-by-layer walks; see the module for the method and its deviations."""

    name = "ddpg"
    pool_size = EPISODES

    def __init__(self, space: SearchSpace, cost: CostFunction, budget: Budget, seed: int) -> None:
        super().__init__(space, cost, budget, seed)
        self._steps = self._layer_steps()
        self._features = self._layer_features()
        with torch.random.fork_rng(devices=[]):  # leaves the caller's random state as it was
            torch.manual_seed(seed)
            states = self._features.shape[1] + 2 + 2 + len(KINDS)
            self._actor = _network(states, len(KINDS))
            self._critic = _network(states + len(KINDS), 1)
        self._actor_step = torch.optim.Adam(self._actor.parameters(), ACTOR_RATE)
        self._critic_step = torch.optim.Adam(self._critic.parameters(), CRITIC_RATE)
        self._states = np.zeros((0, states))
        self._parents = np.zeros((0, len(KINDS)))
        self._actions = np.zeros((0, len(KINDS)))
        self._rewards = np.zeros(0)
        #: candidate genes → (parent genes, episode budget), of walks not told yet
        self._walks: dict[tuple[int, ...], tuple[Genes, Budget]] = {}

    # What the agent walks along ------------------------------------------------------------------------------------

    def _layer_steps(self) -> list[list[Genes]]:
        """Per layer, the genes that it decides, by kind: rows (r,) of the gene vector. A group is decided by the first
        layer that produces it, since all others have to follow."""
        layers = [layer.name for layer in self.space.network.layers]
        steps: list[list[list[int]]] = [[[] for _ in KINDS] for _ in layers]
        for row, gene in enumerate(self.space.genes):
            owners = [gene.target]
            if gene.kind == "channels":
                owners = list(self.space.network.group_by_name[gene.target].producers)
            at = min((layers.index(owner) for owner in owners if owner in layers), default=0)
            steps[at][KINDS.index(gene.kind)].append(row)
        return [[np.array(rows, dtype=np.int64) for rows in step] for step in steps if any(step)]

    def _layer_features(self) -> Floats:
        """What does not change during a walk, per step: (steps, 5 + kinds), roughly in [0, 1]."""
        layers = self.space.network.layers
        rows = []
        for number, step in enumerate(self._steps):
            first = self.space.genes[next(int(r[0]) for r in step[::-1] if len(r))].target
            layer = self.space.network.layer_by_name.get(first)
            size = [0.0, 0.0, 0.0, 0.0]
            if layer is not None:
                size = [np.log1p(layer.weights()) / 16, np.log1p(layer.macs()) / 24, float(layer.depthwise),
                        np.log1p(layer.out_channels.count()) / 8]  # fmt: skip
            rows.append([number / max(1, len(layers)), *size, *(float(len(r) > 0) for r in step)])
        return np.array(rows, dtype=float).reshape(len(rows), 5 + len(KINDS))

    def _places(self, genes: Genes, step: list[Genes]) -> Floats:
        """Where each kind of this step lies on its track, (E, kinds) for genes (E, G); 0 where there is no gene."""
        columns = [self.moves.place[rows, genes[:, rows]].mean(axis=1) if len(rows) else np.zeros(len(genes))
                   for rows in step]  # fmt: skip
        return np.stack(columns, axis=1)

    def _state(self, number: int, spent: Floats, allowed: Floats, parents: Genes) -> tuple[Floats, Floats]:
        """States (E, S) before step `number`, and the parents' places there (E, kinds).

        spent: (E, 2) size and latency if all later layers were the most compressed; allowed: (E, 2) of the episode;
        both as logarithms relative to the uncompressed network.
        """
        places = self._places(parents, self._steps[number])
        fixed = np.repeat(self._features[number][None], len(parents), axis=0)
        return np.concatenate([fixed, spent / 5, allowed / 5, places], axis=1), places

    def _log_costs(self, genes: Genes) -> Floats:
        """log(size), log(latency) relative to the uncompressed network, (n, 2)."""
        batch = np.concatenate([self.space.largest[None], genes])
        logs = np.log(np.maximum(np.stack([np.asarray(c, dtype=float) for c in self.cost(batch)[:2]], axis=1), 1e-9))
        return np.asarray(logs[1:] - logs[:1], dtype=float)

    # Walking -------------------------------------------------------------------------------------------------------

    def _breed(self, count: int) -> list[Genes]:
        """`count` episodes side by side."""
        if not self._steps:
            return [self.space.smallest]
        parents = np.stack([self.varied_parent() for _ in range(count)])
        budgets = [self._episode_budget(parent) for parent in parents]
        allowed = np.stack([self._relative(budget) for budget in budgets])
        full_reach = np.exp(self.rng.uniform(np.log(0.03), np.log(0.5), count))  # share of layers that get noise
        sigma = NOISE * NOISE_DECAY ** len(self.scored)
        genes = np.repeat(self.haven[None], count, axis=0)
        for number, step in enumerate(self._steps):
            state, places = self._state(number, self._log_costs(genes), allowed, parents)
            with _one_thread(), torch.no_grad():
                change = torch.tanh(self._actor(torch.from_numpy(state).float())).numpy().astype(float)
            noisy = self.rng.uniform(size=change.shape) < full_reach[:, None]
            action = np.clip(places + REACH * change + noisy * self.rng.normal(0, sigma, change.shape), 0, 1)
            genes = self._bounded(genes, parents, action - places, step, budgets)
        walked = [self.repaired(row) for row in genes]
        running = {candidate.genes for candidate in self.pending}
        self._walks = {key: walk for key, walk in self._walks.items() if key in running}
        for row, parent, budget in zip(walked, parents, budgets, strict=True):
            self._walks[tuple(row.tolist())] = (parent, budget)
        return walked

    def _bounded(self, genes: Genes, parents: Genes, change: Floats, step: list[Genes], budgets: list[Budget]) -> Genes:
        """`genes` (E, G) with this step decided: the parents' choices plus `change` (E, kinds), lowered until the rest
        could still meet each episode's budget (AMC, algorithm 1)."""
        options = np.repeat(genes[:, None], len(LOWERINGS), axis=1)
        for kind, rows in enumerate(step):
            for row in rows:
                place = np.clip(self.moves.place[row, parents[:, row]] + change[:, kind], 0, 1)[:, None] * LOWERINGS
                floats = self.moves.is_float[row, parents[:, row]]
                options[:, :, row] = self.moves.nearest_of(int(row), place, floats[:, None])
        costs = self.cost(options.reshape(-1, genes.shape[1]))
        for episode, budget in enumerate(budgets):
            part = slice(episode * len(LOWERINGS), (episode + 1) * len(LOWERINGS))
            fits = violation(type(costs)(*(cost[part] for cost in costs)), budget) <= 0
            genes[episode] = options[episode, int(np.argmax(fits)) if fits.any() else -1]
        return genes

    def _episode_budget(self, parent: Genes) -> Budget:
        """A budget around the parent's size and latency, never looser than the real one; the real one of memory."""
        size, latency = (float(np.asarray(column)[0]) for column in self.cost(parent[None])[:2])
        factors = np.exp(self.rng.uniform(-0.5, 0.5, size=2))
        size, latency = size * factors[0], latency * factors[1]
        if self.budget.size_bytes is not None:
            size = min(size, self.budget.size_bytes)
        if self.budget.latency_ms is not None:
            latency = min(latency, self.budget.latency_ms)
        return Budget(max(1, int(size)), max(latency, 1e-9), memory_bytes=self.budget.memory_bytes)

    def _relative(self, budget: Budget) -> Floats:
        size, latency = (float(np.asarray(column)[0]) for column in self.cost(self.space.largest[None])[:2])
        assert budget.size_bytes is not None and budget.latency_ms is not None
        return np.log([budget.size_bytes / max(size, 1e-9), budget.latency_ms / max(latency, 1e-9)])

    # Learning ------------------------------------------------------------------------------------------------------

    def _learn(self, candidate: Candidate, outcome: Outcome) -> None:
        genes = np.array(candidate.genes, dtype=np.int64)
        parent, budget = self._walks.pop(candidate.genes, (genes, None))
        # Only a score teaches the agent: a failure says nothing of the accuracy, and the repair sees to the budget.
        if outcome.status is not Status.COMPLETE or not self._steps:
            return
        assert outcome.accuracy is not None
        walk = np.repeat(self.haven[None], len(self._steps) + 1, axis=0)
        for number, step in enumerate(self._steps):
            for rows in step:
                walk[number + 1 :, rows] = genes[rows]
        spent = self._log_costs(walk)
        allowed = self._relative(budget)[None] if budget is not None else spent[-1:]
        pairs = [self._state(n, spent[n : n + 1], allowed, parent[None]) for n in range(len(self._steps))]
        taken = [self._places(genes[None], step) for step in self._steps]
        self._states = np.concatenate([self._states, *(state for state, _ in pairs)])[-BUFFER:]
        self._parents = np.concatenate([self._parents, *(places for _, places in pairs)])[-BUFFER:]
        self._actions = np.concatenate([self._actions, *taken])[-BUFFER:]
        self._rewards = np.append(self._rewards, [outcome.accuracy] * len(self._steps))[-BUFFER:]
        with _one_thread():
            for _ in range(UPDATES):
                self._update()

    def _update(self) -> None:
        """One step of critic and actor on a random batch (Lillicrap et al. 2016, algorithm 1, not bootstrapped)."""
        rows = self.rng.integers(len(self._rewards), size=BATCH)
        # The mean reward is AMC's baseline b (eq. 2); the spread keeps the critic's scale the same for any task.
        returns = (self._rewards[rows] - self._rewards.mean()) / max(float(self._rewards.std()), 1e-3)
        state, parent, action, target = (
            torch.from_numpy(np.asarray(values)).float()
            for values in (self._states[rows], self._parents[rows], self._actions[rows], returns[:, None])
        )
        critic_loss = nn.functional.mse_loss(self._critic(torch.cat([state, action], dim=1)), target)
        self._critic_step.zero_grad()
        torch.autograd.backward(critic_loss)
        self._critic_step.step()
        proposed = torch.clamp(parent + REACH * torch.tanh(self._actor(state)), 0, 1)
        actor_loss = -self._critic(torch.cat([state, proposed], dim=1)).mean()
        self._actor_step.zero_grad()
        torch.autograd.backward(actor_loss)
        self._actor_step.step()
