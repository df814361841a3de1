"""Which weights of a layer stay when others become zero: by magnitude, one by one or in a pattern."""

from math import prod

import torch
from torch.nn import functional

from autocomp.policy import Pattern

#: Weights of a block: consecutive output channels at one input channel and tap. An Ethos-U streams its weights by
#: groups of output channels, so that such zeros lie in a row: of seven shapes of blocks its encoder wrote these in the
#: fewest bytes at 75 and 90 % of zeros (docs/npu.md, Choices).
BLOCK = 16
#: 2:4: of every four input channels of a filter, at one tap, two weights stay (Mishra et al. 2021, §3).
GROUP, KEPT_OF_GROUP = 4, 2


def kept_weights(count: int, sparsity: float) -> int:
    """How many of `count` weights stay at `sparsity`; at least one."""
    return max(1, count - round(count * sparsity))


def kept_of_shape(shape: tuple[int, ...], sparsity: float, pattern: Pattern = "unstructured") -> int:
    """How many weights of a layer of shape (out, in / groups, *window) stay: as many as its mask keeps."""
    if pattern == "unstructured":
        return kept_weights(prod(shape), sparsity)
    if pattern == "2:4":
        return prod(shape) // GROUP * KEPT_OF_GROUP
    positions = prod(shape[1:])
    whole, rest = divmod(shape[0], BLOCK)
    kept = BLOCK * kept_weights(whole * positions, sparsity) if whole else 0
    return kept + (rest * kept_weights(positions, sparsity) if rest else 0)


def sparsity_mask(weight: torch.Tensor, sparsity: float, pattern: Pattern = "unstructured") -> torch.Tensor | None:
    """Booleans, True for the weights that stay; None if all do. Exactly `kept_of_shape` of them stay.

    weight: (out, in / groups, *window), with in / groups a multiple of four for 2:4. Blocks compete by their L2 norm;
    those that the last output channels cut short compete among themselves, which keeps the count exact.
    """
    if kept_of_shape(tuple(weight.shape), sparsity, pattern) == weight.numel():
        return None
    magnitude = weight.detach().abs()
    if pattern == "2:4":
        return _largest_of_groups(magnitude)
    if pattern == "unstructured":
        return _largest(magnitude, sparsity)
    whole = len(weight) // BLOCK * BLOCK
    parts = [part for part in (magnitude[:whole], magnitude[whole:]) if len(part)]
    return torch.cat([_largest_blocks(part, min(BLOCK, len(part)), sparsity) for part in parts])


def _largest(magnitude: torch.Tensor, sparsity: float) -> torch.Tensor:
    mask = torch.zeros(magnitude.numel(), dtype=torch.bool)
    mask[magnitude.flatten().topk(kept_weights(magnitude.numel(), sparsity)).indices] = True
    return mask.reshape(magnitude.shape)


def _largest_blocks(magnitude: torch.Tensor, height: int, sparsity: float) -> torch.Tensor:
    """magnitude: (out, …), out a multiple of the `height` of a block."""
    blocks = magnitude.unflatten(0, (-1, height)).norm(dim=1)
    return _largest(blocks, sparsity).repeat_interleave(height, dim=0)


def _largest_of_groups(magnitude: torch.Tensor) -> torch.Tensor:
    """The two largest of each group of four, (out, in, …) with in a multiple of four (Zhou et al. 2021, eq. 3)."""
    groups = magnitude.unflatten(1, (-1, GROUP))
    kept = groups.topk(KEPT_OF_GROUP, dim=2).indices
    return functional.one_hot(kept, GROUP).sum(dim=2).movedim(-1, 2).bool().flatten(1, 2)
