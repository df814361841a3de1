"""One setting for all layers: what a careful engineer would try by hand. No learning, no randomness."""

import itertools

import numpy as np

from autocomp.controllers.anchors import SETTINGS
from autocomp.controllers.base import Controller
from autocomp.outcome import Candidate, Outcome
from autocomp.policy import CLUSTERS, FLOAT, HALF, LayerPolicy, Sparsity, Zeros, clustered
from autocomp.space import Genes

KEEP_RATIOS = (1.0, 0.75, 0.5, 0.375, 0.875, 0.625, 0.25)
SPARSITIES: tuple[Zeros, ...] = (0.0, 0.5, 0.75, 0.9, Sparsity(HALF, "2:4"))
QUANTS = (*(LayerPolicy(bits, "int8") for bits in (8, 4, 6, 3, 5, 2, 7)), FLOAT,
          *(LayerPolicy(bits, "float") for bits in (8, 4, 6, 3, 5, 2, 7)),
          *map(clustered, CLUSTERS[::-1]))  # fmt: skip


class UniformController(Controller):
    """The grid of quantization × keep ratio × sparsity, without what breaks the budget or comes out the same.

    The anchors come first, because any first few of them spread over the range; the rest of the grid follows with
    the settings that differ from the plain network in few ways ahead of those that differ in many.
    """

    name = "uniform"
    _grid: list[Genes] | None = None

    def _propose(self) -> Genes | None:
        if self._grid is None:
            self._grid = self._make_grid()[::-1]
        while self._grid:
            genes = self._grid.pop()
            if self.fits(genes):  # by what is known of the device now
                return genes
        return None

    def _make_grid(self) -> list[Genes]:
        grid = itertools.product(enumerate(QUANTS), enumerate(KEEP_RATIOS), enumerate(SPARSITIES))
        ordered = sorted(grid, key=lambda setting: (sum(place for place, _ in setting), [p for p, _ in setting]))
        first = [(quant, keep, sparsity) for quant, keep, sparsity in SETTINGS if isinstance(quant, LayerPolicy)]
        settings = [*first, *((quant, keep, sparsity) for (_, quant), (_, keep), (_, sparsity) in ordered)]
        rows = dict.fromkeys(tuple(self.space.uniform(*setting).tolist()) for setting in settings)
        return list(np.array(list(rows), dtype=np.int64).reshape(len(rows), len(self.space)))

    def _learn(self, candidate: Candidate, outcome: Outcome) -> None:
        pass
