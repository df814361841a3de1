"""Reshapes that pruning follows: where the channels are behind them, and how they say the sizes of their result."""

import math

from torch import fx

from autocomp.compress.tracing.coupling import Axis
from autocomp.compress.tracing.operators import RESHAPES, sizes_of

#: Stands for the batch where sizes are compared: a prime that no other axis is a multiple of.
_BATCH = 1_000_003


def spell_sizes(graph: fx.Graph) -> None:
    """Write every size of a reshape's result that is fixed as a number: -1 is left for the batch alone."""
    for node in graph.nodes:
        if node.target in RESHAPES and len(node.args) == 2 and isinstance(node.args[1], list | tuple):
            sizes = [s if isinstance(s, int) else given for s, given in zip(_shape(node), node.args[1], strict=True)]
            node.args = (node.args[0], sizes)


def _shape(node: fx.Node) -> list[object]:
    return list(node.meta["val"].shape)


def followed(axis: Axis, source: fx.Node, node: fx.Node) -> Axis | None:
    """The channel axis behind a reshape of `source` to `node`; None if its channels are mixed with anything else.

    Elements keep their order: what lies before the channels stays before them, and what lies behind them may be
    merged into their axis, or taken out of it, as whole multiples of a channel.
    """
    before, after = sizes_of(source, _BATCH), sizes_of(node, _BATCH)
    channels = sum(size for _, size in axis.parts)
    for dim, size in enumerate(after):
        if size >= channels and size % channels == 0 and math.prod(after[:dim]) == math.prod(before[: axis.dim]):
            return Axis(dim, axis.parts, size // channels)
    return None


def can_be_resized(node: fx.Node, dim: int) -> bool:
    """Whether a reshape can be told another size of axis `dim`: at most one other size may be left open."""
    shape = _shape(node)
    return isinstance(shape[dim], int) and sum(not isinstance(size, int) for size in shape) <= 1


def onnx_sizes(node: fx.Node) -> list[int]:
    """Sizes of a reshape's result as ONNX has them: -1 for the one that is open."""
    return [size if isinstance(size, int) else -1 for size in _shape(node)]
