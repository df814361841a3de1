"""Where the channels of every tensor are, and which layers there are: one walk over the graph."""

from dataclasses import replace

import torch
from torch import fx

from autocomp.compress.normalize import permutation
from autocomp.compress.parameters import EMBEDDINGS, LAYERS, argument, aten, get_parameter
from autocomp.compress.tracing.coupling import Axis, Coupling
from autocomp.compress.tracing.layers import Call, layer_calls, weight_only_calls
from autocomp.compress.tracing.operators import (
    BINARY,
    ELEMENTWISE,
    PERMUTES,
    POOLS,
    RESHAPES,
    SPATIAL,
    groups_of,
    is_flatten,
    is_merged,
    is_tensor,
    op_name,
    reads_stored,
    shape_of,
)
from autocomp.compress.tracing.reshapes import can_be_resized, followed
from autocomp.network import LeftAlone


class Analysis:
    """One walk over the graph: channel axes on the way down, then layers and kernels."""

    def __init__(self, graph: fx.GraphModule, values: set[str], stored: set[str]) -> None:
        """values, stored: names of the tensors that the ONNX graph computes, and of those that it stores."""
        self.graph = graph
        self.values, self.stored = values, stored
        self.coupling = Coupling()
        self.axes: dict[fx.Node, Axis | None] = {}
        self.layers: dict[fx.Node, Call] = {}
        #: Layers of which only the weights are compressed; a node may make several.
        self.weight_only: list[Call] = []
        self.left_alone: list[LeftAlone] = []
        self.in_axes: dict[fx.Node, Axis | None] = {}
        #: Reshapes that pruning follows → axis of their result that holds the channels.
        self.reshapes: dict[fx.Node, Axis] = {}

    def run(self) -> None:
        calls, self.left_alone = layer_calls(self.graph.graph)
        for call in calls:
            missing = "" if self._finds_input(call.node) else "input"
            if any(path is not None and path not in self.stored for path in (call.weight, call.bias)):
                missing = "weight"
            if not missing:
                self.layers[call.node] = call
            else:
                self.left_alone.append(LeftAlone(call.name, "quantize", f"its {missing} has no name in the ONNX graph"))
        calls, left = weight_only_calls(self.graph.graph)
        self.left_alone += left
        for call in calls:
            if call.weight in self.stored:
                self.weight_only.append(call)
            else:
                self.left_alone.append(LeftAlone(call.name, "quantize", "its weight has no name in the ONNX graph"))
        for node in self.graph.graph.nodes:
            if is_tensor(node) or node.op == "output":
                self.axes[node] = self._axis(node)
            elif isinstance(node.meta.get("val"), tuple | list):  # several results: recurrent layers, split
                for source in node.all_input_nodes:
                    self.coupling.freeze(self.axes.get(source), f"passes through {op_name(node)}")

    def _finds_input(self, node: fx.Node) -> bool:
        """Whether the tensor that a layer reads can be found in the ONNX graph, to be quantized there."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        while is_merged(source, self.values):
            source = source.args[0]  # type: ignore[assignment]
        return source.op == "placeholder" or source.name in self.values

    def _axis(self, node: fx.Node) -> Axis | None:
        if node.op == "placeholder":
            shape = shape_of(node)
            if not node.meta["val"].is_floating_point():
                return None  # ids have no channels
            dim = 1 if len(shape) > 1 else 0
            return Axis(dim, ((self.coupling.new(shape[dim], reason="the network's input"), shape[dim]),))
        if node.op == "output":
            for source in node.all_input_nodes:
                self.coupling.freeze(self.axes.get(source), "the network's output")
            return None
        sources = [source for source in node.all_input_nodes if is_tensor(source)]
        if node.target in LAYERS:
            return self._layer(node)
        if node.target in EMBEDDINGS:
            return self._embedding(node)
        if not sources:
            return self._opaque(node, sources, "does not depend on the input")
        if node.target in ELEMENTWISE or (node.target in BINARY and len(sources) == 1 and not reads_stored(node)):
            return self.axes.get(sources[0]) if sources else None
        if node.target in BINARY and len(sources) == 2 and not reads_stored(node):
            return self._binary(node, *sources)
        if node.target in POOLS or node.target in SPATIAL:
            axis = self.axes.get(sources[0])
            if axis is not None and shape_of(node)[axis.dim] != shape_of(sources[0])[axis.dim]:
                return self._opaque(node, sources, f"changed in number by {op_name(node)}")
            return axis
        if node.target is aten.mean.dim:
            return self._mean(node, sources[0])
        if node.target is aten.cat.default:
            return self._concat(node, sources)
        if node.target in RESHAPES:
            return self._reshape(node, sources[0])
        if node.target in PERMUTES:
            return self._permute(node, sources[0])
        if node.target in (aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims):
            return self._squeeze(node, sources[0])
        return self._opaque(node, sources, f"passes through {op_name(node)}")

    def _opaque(self, node: fx.Node, sources: list[fx.Node], reason: str) -> Axis | None:
        """Nothing is known of how `node` moves channels: neither its inputs nor its result can be pruned."""
        for source in sources:
            self.coupling.freeze(self.axes.get(source), reason)
        shape = shape_of(node)
        if len(shape) < 2:
            return None
        first = self.axes.get(sources[0]) if sources else None
        dim = first.dim if first is not None and first.dim < len(shape) else 1
        if shape[dim] == 0:
            return None
        return Axis(dim, ((self.coupling.new(shape[dim], reason=reason), shape[dim]),))

    def _layer(self, node: fx.Node) -> Axis | None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        axis = self.axes.get(source)
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        out_channels, per_group, *_ = weight.meta["val"].shape if "val" in weight.meta else self._weight(node).shape
        groups = groups_of(node)
        dim = len(shape_of(node)) - 1 if node.target is aten.linear.default else 1
        name = self.layers[node].name if node in self.layers else None
        if axis is None or axis.dim != dim:
            self.coupling.freeze(axis, f"layer {name or node.name} reads its channels along another axis")
            axis = None
        self.in_axes[node] = axis
        if name is None:
            self.coupling.freeze(axis, "read by a layer that is left alone")
            return Axis(
                dim, ((self.coupling.new(out_channels, reason="made by a layer that is left alone"), out_channels),)
            )
        if groups > 1 and groups == out_channels and per_group == 1 and axis is not None and axis.repeat == 1:
            for c in axis.classes:
                self.coupling.producers[self.coupling.find(c)].append(name)
            return axis  # depthwise: a channel goes in, the same channel comes out
        if groups > 1:
            reason = f"layer {name} is a grouped convolution: pruning would change its groups"
            self.coupling.freeze(axis, reason)
            return Axis(dim, ((self.coupling.new(out_channels, name, reason), out_channels),))
        return Axis(dim, ((self.coupling.new(out_channels, name), out_channels),))

    def _embedding(self, node: fx.Node) -> Axis:
        """Its features lie along the last axis. They are the columns of its table, of which none is dropped."""
        name = next((call.name for call in self.weight_only if call.node is node), None)
        features = shape_of(node)[-1]
        reason = "made by an embedding, whose features are not pruned"
        return Axis(len(shape_of(node)) - 1, ((self.coupling.new(features, name, reason), features),))

    def _weight(self, node: fx.Node) -> torch.Tensor:
        return get_parameter(self.graph, str(node.args[1].target))  # type: ignore[union-attr]

    def _binary(self, node: fx.Node, a: fx.Node, b: fx.Node) -> Axis | None:
        left, right = self.axes.get(a), self.axes.get(b)
        if left is None or right is None or len(shape_of(a)) != len(shape_of(b)) or left.dim != right.dim:
            return self._opaque(node, [a, b], f"passes through {op_name(node)} with another layout")
        sizes = tuple(s for _, s in left.parts), tuple(s for _, s in right.parts)
        if sizes[0] == sizes[1] and left.repeat == right.repeat:
            for (x, _), (y, _) in zip(left.parts, right.parts, strict=True):
                self.coupling.union(x, y)
            return left
        for wide, narrow in ((left, right), (right, left)):
            if sum(s for _, s in narrow.parts) == 1:  # one channel broadcast over all
                self.coupling.freeze(narrow, "broadcast over the channels of another tensor")
                return wide
        return self._opaque(node, [a, b], f"meets other channels in {op_name(node)}")

    def _mean(self, node: fx.Node, source: fx.Node) -> Axis | None:
        axis = self.axes.get(source)
        rank = len(shape_of(source))
        dims = sorted(d % rank for d in node.args[1])  # type: ignore[union-attr]
        keep = bool(argument(node, 2, "keepdim", False))
        if axis is None or axis.dim in dims or 0 in dims:
            return self._opaque(node, [source], "averaged over its channels")
        return replace(axis, dim=axis.dim if keep else axis.dim - sum(d < axis.dim for d in dims))

    def _concat(self, node: fx.Node, sources: list[fx.Node]) -> Axis | None:
        inputs = list(node.args[0])  # type: ignore[arg-type]
        axes = [self.axes.get(source) for source in inputs if isinstance(source, fx.Node)]
        dim = int(argument(node, 1, "dim", 0)) % len(shape_of(node))  # type: ignore[call-overload]
        if any(axis is None or axis.dim != dim or axis.repeat != 1 for axis in axes):
            return self._opaque(node, sources, "concatenated along another axis than its channels")
        parts = tuple(part for axis in axes if axis is not None for part in axis.parts)
        return Axis(dim, parts)

    def _reshape(self, node: fx.Node, source: fx.Node) -> Axis | None:
        axis = self.axes.get(source)
        if axis is None:
            return self._opaque(node, [source], "reshaped")
        result = followed(axis, source, node)
        if result is None:
            return self._opaque(node, [source], "reshaped in a way that mixes its channels")
        if not is_flatten(node) and not can_be_resized(node, result.dim):
            return self._opaque(node, [source], "reshaped to a size that fixes their number")
        self.reshapes[node] = result
        return result

    def _permute(self, node: fx.Node, source: fx.Node) -> Axis | None:
        axis = self.axes.get(source)
        if axis is None:
            return None
        order = permutation(node)
        assert order is not None
        return replace(axis, dim=order.index(axis.dim))

    def _squeeze(self, node: fx.Node, source: fx.Node) -> Axis | None:
        axis, before, after = self.axes.get(source), shape_of(source), shape_of(node)
        if axis is None:
            return None
        grow = node.target is aten.unsqueeze.default
        rank = len(after) if grow else len(before)
        raw = node.args[1] if isinstance(node.args[1], list | tuple) else [node.args[1]]
        dims = sorted(int(d) % rank for d in raw)  # type: ignore[arg-type]
        if grow:
            return replace(axis, dim=axis.dim + 1 if dims[0] <= axis.dim else axis.dim)
        if axis.dim in dims:
            return self._opaque(node, [source], "squeezed away")
        return replace(axis, dim=axis.dim - sum(d < axis.dim and before[d] == 1 for d in dims))
