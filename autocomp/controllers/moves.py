"""Small changes of a gene vector that keep it legal: the vocabulary shared by repair and by every controller."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from autocomp.controllers.costs import CostFunction, Floats
from autocomp.policy import LayerPolicy
from autocomp.space import Choice, Genes, SearchSpace


class Moves:
    """Steps along the choices of each gene.

    The choices of a "quant" gene interleave two scales: w4 with int8 activations sits next to w4 with float
    activations, which is as large and runs at another speed. Those are two *tracks*; a step stays on its track, a
    switch crosses to the nearest number of bits on the other one. All other genes have a single track.

    Attributes, G genes of at most C choices (unused entries point at the last choice):
        down, up, switch: (G, C) index after one step to the more compressed side, the less compressed side, across.
        place: (G, C) where on its track a choice lies, from 0 (most compressed) to 1.
        is_float: (G, C) whether a choice is on the float track of a gene that has an int8 track as well.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.columns = np.arange(len(space))
        width = int(space.cardinalities.max(initial=1))
        self.down = np.minimum(np.arange(width), space.cardinalities[:, None] - 1)
        self.up = self.down.copy()
        self.switch = self.down.copy()
        self.place = np.zeros(self.down.shape)
        self.is_float = np.zeros(self.down.shape, dtype=bool)
        self._tracks: list[list[list[int]]] = []
        for row, gene in enumerate(space.genes):
            tracks: dict[str, list[int]] = {}
            for index, choice in enumerate(gene.choices):
                tracks.setdefault(choice.activation if isinstance(choice, LayerPolicy) else "", []).append(index)
            self._tracks.append([tracks[key] for key in sorted(tracks, reverse=True)])  # int8 before float
            for key, indices in tracks.items():
                self.place[row, indices] = np.linspace(0, 1, len(indices)) if len(indices) > 1 else 1.0
                self.is_float[row, indices] = key == "float" and len(tracks) > 1
                for lower, upper in pairwise(indices):
                    self.down[row, upper] = lower
                    self.up[row, lower] = upper
                across = [i for other, others in tracks.items() if other != key for i in others]
                if across:
                    for index in indices:
                        bits = _bits(gene.choices[index])
                        far = [(abs(_bits(gene.choices[other]) - bits), other) for other in across]
                        self.switch[row, index] = min(far)[1]

    def draw(self, rng: np.random.Generator) -> Genes:
        """A random candidate, (G,).

        With 150 genes, independent uniform draws all land at the mean size (the spread shrinks as 1/sqrt(G)). So
        each kind of gene first draws a level in [0, 1], and each gene then a choice around the level of its kind.
        """
        levels = {kind: rng.uniform() for kind in ("channels", "quant", "sparsity")}
        # Half of the draws are all-integer: what mixes activations pays for conversions between them.
        float_share = rng.uniform() if rng.uniform() < 0.5 else 0.0
        genes = np.zeros(len(self.space), dtype=np.int64)
        for row, gene in enumerate(self.space.genes):
            tracks = self._tracks[row]
            track = tracks[-1] if rng.uniform() < float_share else tracks[0]
            place = min(max(levels[gene.kind] + rng.normal(0.0, 0.15), 0.0), 1.0 - 1e-9)
            genes[row] = track[int(place * len(track))]
        return genes

    def nearest_of(self, row: int, place: Floats, floats: NDArray[np.bool_]) -> Genes:
        """Choices of gene `row` nearest to `place`, on the float track where `floats` says so: shapes broadcast."""
        count = int(self.space.cardinalities[row])
        distance = np.abs(self.place[row, :count] - place[..., None])
        wrong = self.is_float[row, :count] != floats[..., None]
        choices: Genes = np.argmin(np.where(wrong, np.inf, distance), axis=-1).astype(np.int64)
        return choices

    def mutate(self, genes: Genes, rng: np.random.Generator, largest: int | None = None) -> Genes:
        """`genes` (G,) with at least one gene changed, where any gene has another choice.

        The number of genes to change is heavy-tailed, P(k) ∝ k^-1.5 for 1 ≤ k ≤ `largest` (default: half of them):
        mostly a handful, now and then a coherent leap (Doerr et al. 2017, Fast Genetic Algorithms, §4). A changed
        gene takes one step on its track (85 %), crosses to the other track (10 %), or is drawn anew (5 %).
        """
        count = len(self.space)
        if not count:
            return genes.copy()
        bound = max(1, min(count, largest if largest is not None else count // 2))
        weights = np.arange(1, bound + 1) ** -1.5
        changes = int(rng.choice(np.arange(1, bound + 1), p=weights / weights.sum()))
        rows = rng.choice(count, size=changes, replace=False)
        child = genes.copy()
        for row in rows:
            index, kind = int(child[row]), rng.uniform()
            steps = [i for i in (int(self.down[row, index]), int(self.up[row, index])) if i != index]
            if kind < 0.10 and self.switch[row, index] != index:
                child[row] = self.switch[row, index]
            elif kind < 0.95 and steps:
                child[row] = steps[int(rng.integers(len(steps)))]
            else:
                other = int(rng.integers(int(self.space.cardinalities[row]) - 1))
                child[row] = other + (other >= index)
        return child

    def shift(self, genes: Genes, rng: np.random.Generator, price: Floats) -> Genes:
        """`genes` (G,) with many genes of one kind moved together.

        price: (G,) what a gene contributes to the cost of the network; see `prices`. Half of the time all genes of a
        kind, or those of a contiguous run of layers, take a step in one direction (a new level). Else the cheap ones
        step up and the dear ones down (a tilt): where two layers suffer alike from a bit lost, it should be taken
        from the larger, by Lagrange's rule of equal slopes.
        """
        kinds = sorted({gene.kind for gene in self.space.genes})
        if not kinds:
            return genes.copy()
        kind = kinds[int(rng.integers(len(kinds)))]
        rows = np.array([row for row, gene in enumerate(self.space.genes) if gene.kind == kind])
        child = genes.copy()
        if rng.uniform() < 0.5:
            if rng.uniform() < 0.5:
                first, last = sorted(rng.integers(len(rows), size=2).tolist())
                rows = rows[first : last + 1]
            table = self.down if rng.uniform() < 0.5 else self.up
            for _ in range(min(int(rng.geometric(0.4)), table.shape[1])):
                child[rows] = table[rows, child[rows]]
        else:
            low, high = np.sort(rng.uniform(size=2))
            place = np.argsort(np.argsort(price[rows], kind="stable"), kind="stable") / max(1, len(rows) - 1)
            cheap, dear = rows[place <= low], rows[place >= high]
            child[cheap] = self.up[cheap, child[cheap]]
            child[dear] = self.down[dear, child[dear]]
        return child

    def prices(self, cost: CostFunction) -> Floats:
        """What each gene saves, (G,): the share of size plus that of latency that it spans, others at the largest."""
        if not len(self.space):
            return np.zeros(0)
        batch = np.repeat(self.space.largest[None], len(self.space) + 1, axis=0)
        batch[self.columns, self.columns] = 0
        size, latency = (np.asarray(column, dtype=float) for column in cost(batch)[:2])
        shares: Floats = sum((c[-1] - c[:-1]) / max(c[-1], 1e-12) for c in (size, latency))
        return shares


def _bits(choice: Choice) -> float:
    """Bits of a precision; only the choices of a "quant" gene have another track to cross to."""
    assert isinstance(choice, LayerPolicy)
    return 32.0 if choice.stored_bits is None else float(choice.stored_bits)
