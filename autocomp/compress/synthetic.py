"""Quantized weights of no network: Gaussian per output channel, coded as a search would code a layer's own."""

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from autocomp.compress.masks import sparsity_mask
from autocomp.compress.quantize import WeightQuantizer
from autocomp.policy import LayerPolicy

#: Of the weights that are quantized once for each coding, and drawn from: output channels, inputs, taps.
_POOL = (64, 64, 4, 1)


class GaussianWeights:
    """int8 levels of any shape, coded in any way. The same seed gives the same levels in the same order of calls."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def levels(self, shape: tuple[int, ...], decision: LayerPolicy) -> NDArray[np.int8]:
        """Levels of a layer of `shape`, (out, in / groups, *window), quantized under `decision`.

        Drawn from a pool that is quantized once, since a codebook takes long; 2:4 is laid over dense ones.
        """
        patterned = decision.pattern == "2:4"
        dense = decision.precision if patterned else decision
        drawn = self._rng.choice(_quantized(dense), math.prod(shape)).reshape(shape)
        if not patterned:
            return drawn
        mask = sparsity_mask(torch.from_numpy(drawn.astype(np.float32)), decision.sparsity, decision.pattern)
        return drawn if mask is None else drawn * mask.numpy()


@cache
def _quantized(decision: LayerPolicy) -> NDArray[np.int8]:
    weight = torch.randn(_POOL, generator=torch.Generator().manual_seed(0))
    quantizer = WeightQuantizer(weight, decision)
    if quantizer.grid is None:
        raise ValueError("float weights have no levels")
    levels = quantizer.grid.round(weight / quantizer.log_scale.detach().exp())
    mask = sparsity_mask(weight, decision.sparsity, decision.pattern)
    levels = levels if mask is None else levels * mask
    return levels.to(torch.int8).numpy().ravel()
