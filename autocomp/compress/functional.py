"""A graph without in-place operators where that is seen at once: to run it through the tracer again takes seconds."""

import torch
from torch import fx

aten = torch.ops.aten

#: In-place operator → what it computes.
_IN_PLACE = {
    aten.relu_.default: aten.relu.default, aten.relu6_.default: aten.relu6.default,
    aten.hardtanh_.default: aten.hardtanh.default, aten.silu_.default: aten.silu.default,
    aten.hardswish_.default: aten.hardswish.default, aten.hardsigmoid_.default: aten.hardsigmoid.default,
    aten.sigmoid_.default: aten.sigmoid.default, aten.add_.Tensor: aten.add.Tensor, aten.mul_.Tensor: aten.mul.Tensor,
}  # fmt: skip
#: Operators that make a tensor of their own, and that the tracer would leave as they are.
_PLAIN = {
    aten.conv1d.default, aten.conv2d.default, aten.linear.default, aten.batch_norm.default, aten.max_pool2d.default,
    aten.mean.dim, aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.cat.default, *_IN_PLACE.values(),
}  # fmt: skip
#: Operators whose result may be their input itself.
_PASSING = {aten.dropout.default, aten.flatten.using_ints}


def make_functional(graph: fx.Graph) -> bool:
    """Spell the in-place operators of an exported graph as functional ones; whether that could be done.

    It could where every operator is a common one, and what is written in place was made by the operator before and is
    read by nobody else. The graph is not changed where it could not.
    """
    calls = [node for node in graph.nodes if node.op == "call_function"]
    for node in calls:
        if node.target in _IN_PLACE:
            made = node.args[0]
            if not isinstance(made, fx.Node) or len(made.users) != 1 or not _is_own(made):
                return False
        elif node.target not in _PLAIN and node.target not in _PASSING:
            return False
    for node in calls:
        node.target = _IN_PLACE.get(node.target, node.target)
    return True


def _is_own(node: fx.Node) -> bool:
    """Whether a tensor shares its memory with no other node's."""
    if node.target in _IN_PLACE:
        return isinstance(node.args[0], fx.Node) and _is_own(node.args[0])
    return node.target in _PLAIN
