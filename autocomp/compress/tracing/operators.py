"""Kinds of aten operators, and what a node of the graph tells about itself."""

import math
import operator

import torch
from torch import fx

from autocomp.compress.graph import CONVOLUTIONS, argument, aten

ELEMENTWISE = {
    aten.relu.default, aten.hardtanh.default, aten.relu6.default, aten.clamp.default, aten.clamp_min.default,
    aten.sigmoid.default, aten.tanh.default, aten.silu.default, aten.gelu.default, aten.hardswish.default,
    aten.hardsigmoid.default, aten.leaky_relu.default, aten.elu.default, aten.mish.default, aten.softplus.default,
    aten.neg.default, aten.abs.default, aten.exp.default, aten.sqrt.default, aten.rsqrt.default, aten.pow.Tensor_Scalar,
    aten._to_copy.default, aten.clone.default,
}  # fmt: skip
#: Activations that every runtime kernel applies while it writes its result.
FUSED = {aten.relu.default, aten.hardtanh.default, aten.relu6.default, aten.clamp.default, aten.clamp_min.default}
BINARY = {
    aten.add.Tensor,
    aten.mul.Tensor,
    aten.sub.Tensor,
    aten.div.Tensor,
    aten.maximum.default,
    aten.minimum.default,
}
POOLS = {
    aten.max_pool2d.default: "max_pool", aten.max_pool1d.default: "max_pool", aten.avg_pool2d.default: "avg_pool",
    aten.avg_pool1d.default: "avg_pool",
}  # fmt: skip
SPATIAL = {
    aten.constant_pad_nd.default, aten.pad.default, aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec,
    aten.upsample_nearest2d.default, aten.upsample_bilinear2d.default,
}  # fmt: skip
PERMUTES = {aten.permute.default, aten.transpose.int, aten.t.default}
#: Operators that only say the same bytes in another shape, or read some of them.
MOVES = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unsqueeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.select.int, aten.slice.Tensor, aten.clone.default,
}  # fmt: skip
RESHAPES = {aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints}


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of a tensor node with its batch axis as 0."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return ()
    return tuple(size if isinstance(size, int) else 0 for size in value.shape)


def elements_of(node: fx.Node) -> int:
    """Elements of a tensor node for a batch of 1, wherever its batch axis is, merged with others or not."""
    return math.prod(sizes_of(node, 1))


def sizes_of(node: fx.Node, batch: int) -> list[int]:
    """Shape of a tensor node for a batch of so many examples."""
    return [
        size if isinstance(size, int) else int(size.node.expr.subs(dict.fromkeys(size.node.expr.free_symbols, batch)))
        for size in node.meta["val"].shape
    ]


def is_tensor(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op != "get_attr" and isinstance(node.meta.get("val"), torch.Tensor)


def is_flatten(node: fx.Node) -> bool:
    """Whether a node is a reshape that turns (n, c, …) into (n, c · …)."""
    if node.target not in RESHAPES:
        return False
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = shape_of(source), shape_of(node)
    return len(after) == 2 and len(before) > 2 and after[0] == 0 and after[1] == math.prod(before[1:])


def is_merged(node: fx.Node, values: set[str]) -> bool:
    """Whether the exporter merged a node into its neighbour, as it does padding into a convolution."""
    return node.name not in values and (node.target in MOVES or node.target in SPATIAL)


def groups_of(node: fx.Node) -> int:
    if node.target not in CONVOLUTIONS:
        return 1
    return int(argument(node, 6, "groups", 1))  # type: ignore[call-overload]


def reads_stored(node: fx.Node) -> bool:
    """Whether an operator reads a stored tensor (a parameter or buffer) of several values beside its inputs."""
    return any(source.op == "get_attr" and source.meta["val"].numel() > 1 for source in node.all_input_nodes)


def op_name(node: fx.Node) -> str:
    """What a node does, in a word; of a part that it picks, what made the whole."""
    if node.target is operator.getitem:
        return op_name(node.args[0])  # type: ignore[arg-type]
    return str(node.target).removeprefix("aten.").split(".")[0] if node.op == "call_function" else node.name
