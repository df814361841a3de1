"""A network, a device and a training run that take microseconds: analytic costs and an analytic accuracy."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autocomp.controllers import Controller, Costs
from autocomp.network import ChannelGroup, Channels, LayerSpec, NetworkSpec
from autocomp.outcome import Candidate, Outcome, Status
from autocomp.policy import LayerPolicy, Sparsity
from autocomp.space import Genes, SearchSpace, SpaceOptions


def chain(layers: int, groups: int) -> NetworkSpec:
    """A chain of 3×3 convolutions, wider towards the end, its output channels coupled in `groups` runs of layers."""
    run = -(-layers // groups)
    widths = [16 * (1 + group) if layers < 20 else 16 + 8 * group for group in range(groups)]
    specs: list[LayerSpec] = []
    previous = Channels(((None, 3),))
    for index in range(layers):
        group = index // run
        own = Channels(((f"g{group}", widths[group]),))
        shape = (widths[group], previous.count(), 3, 3)
        specs.append(LayerSpec(f"conv{index}", "conv", shape, previous, own, positions=4096 >> min(group, 6)))
        previous = own
    members = [
        ChannelGroup(f"g{g}", widths[g], tuple(f"conv{i}" for i in range(g * run, min((g + 1) * run, layers))))
        for g in range(groups)
    ]
    return NetworkSpec("chain", (3, 64, 64), tuple(specs), tuple(members), ())


OPTIONS = SpaceOptions(weight_bits=(2, 3, 4, 6, 8, None))


@dataclass
class Fake:
    """A search space with `cost` (vectorized) and `accuracy` of gene vectors.

    Accuracy falls with the quantization noise 4^-bits, with the share of channels and of weights removed, each
    weighted by a sensitivity per layer that varies over two orders of magnitude, as measured networks do.
    """

    space: SearchSpace
    sensitivity: np.ndarray
    calls: int = 0

    @classmethod
    def make(cls, layers: int = 8, groups: int = 2, seed: int = 0, options: SpaceOptions = OPTIONS) -> "Fake":
        space = SearchSpace.build(chain(layers, groups), options)
        sensitivity = np.exp(np.random.default_rng(seed).normal(0.0, 1.2, layers))
        return cls(space, sensitivity / sensitivity.sum())

    def __post_init__(self) -> None:
        network = self.space.network
        width = int(self.space.cardinalities.max(initial=1))
        self._values = np.zeros((len(self.space), width))  # bits, channels or sparsity of each choice
        self._float = np.zeros((len(self.space), width), dtype=bool)
        for row, gene in enumerate(self.space.genes):
            for index, choice in enumerate(gene.choices):
                if isinstance(choice, LayerPolicy):
                    self._values[row, index] = choice.stored_bits or 32
                    self._float[row, index] = choice.activation == "float"
                else:
                    self._values[row, index] = choice.ratio if isinstance(choice, Sparsity) else choice
        where = {gene.name: row for row, gene in enumerate(self.space.genes)}
        self._quant = [where.get(f"quant:{layer.name}") for layer in network.layers]
        self._sparse = [where.get(f"sparsity:{layer.name}") for layer in network.layers]
        self._group = [where.get(f"channels:{layer.out_channels.groups[0]}") for layer in network.layers]

    def decoded(self, genes: Genes) -> tuple[np.ndarray, ...]:
        """bits, sparsity, kept channels, float activation: (n, layers) each."""
        columns = np.arange(len(self.space))
        values, floats = self._values[columns, genes], self._float[columns, genes]
        n, layers = len(genes), self.space.network.layers

        def pick(rows: list[int | None], source: np.ndarray, default: Callable[[int], float]) -> np.ndarray:
            return np.stack(
                [source[:, row] if row is not None else np.full(n, default(i)) for i, row in enumerate(rows)], axis=1
            )

        return (
            pick(self._quant, values, lambda i: 32.0),
            pick(self._sparse, values, lambda i: 0.0),
            pick(self._group, values, lambda i: layers[i].out_channels.count()),
            pick(self._quant, floats, lambda i: True),
        )

    def cost(self, genes: Genes) -> Costs:
        self.calls += 1
        bits, sparsity, kept, is_float = self.decoded(genes)
        inputs = np.concatenate([np.full((len(genes), 1), 3.0), kept[:, :-1]], axis=1)
        weights = inputs * kept * 9
        sparse = np.where(sparsity > 0, weights * (1 - sparsity) * bits + weights, np.inf)  # values and a bit mask
        size = (np.minimum(weights * bits, sparse) / 8 + 8 * kept).sum(axis=1) + 500
        positions = np.array([layer.positions for layer in self.space.network.layers])
        conversions = np.abs(np.diff(is_float.astype(float), axis=1)).sum(axis=1)
        latency = (weights * positions * np.where(is_float, 1.0, 0.35)).sum(axis=1) / 1e7 + 0.02 * conversions
        held = (inputs + kept) * positions * np.where(is_float, 4, 1)
        return Costs(size, latency, held.max(axis=1))

    def accuracy(self, genes: Genes) -> np.ndarray:
        bits, sparsity, kept, is_float = self.decoded(genes)
        full = np.array([layer.out_channels.count() for layer in self.space.network.layers])
        noise = 6.0 * 4.0 ** (1 - bits) + 0.02 * (1 - is_float) * (bits < 32)
        damage = noise + 0.9 * (1 - kept / full) ** 2 + 0.5 * sparsity**3
        return 0.95 * np.exp(-2.0 * (damage * self.sensitivity).sum(axis=1))

    def run(self, candidate: Candidate) -> Outcome:
        genes = np.array([candidate.genes], dtype=np.int64)
        size, latency, _ = self.cost(genes)
        return Outcome(Status.COMPLETE, float(self.accuracy(genes)[0]), int(size[0]), float(latency[0]))

    def search(self, controller: Controller, trials: int) -> list[Outcome]:
        """What came of so many candidates, each told before the next is asked for."""
        outcomes = []
        for _ in range(trials):
            candidate = controller.ask()
            assert candidate is not None
            outcomes.append(self.run(candidate))
            controller.tell(candidate, outcomes[-1])
        return outcomes
