"""A traced network: its description, and the two forms of it that compression works on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx
from torch import fx

from autocomp.compress.integer_kernels import reason_for_float
from autocomp.compress.parameters import EMBEDDINGS, aten, get_parameter
from autocomp.compress.tracing.channels import Analysis
from autocomp.compress.tracing.coupling import Axis, Coupling
from autocomp.compress.tracing.kernels import fused_kernels
from autocomp.compress.tracing.operators import elements_of, groups_of, shape_of
from autocomp.compress.tracing.recurrent import steps_of
from autocomp.errors import UserError
from autocomp.network import LAYER_OPS, ChannelGroup, Channels, KernelNode, LayerSpec, LeftAlone, NetworkSpec

ToChannels = Callable[[Axis | None, int], Channels]


@dataclass(frozen=True)
class Traced:
    """A network in the two forms that compression works on, whose tensors have the same names in both.

    graph: the float network as an fx graph of aten operators, batch-norm folded. template: the same as a float
    ONNX model (serialized). starts, tensors: kernel index → names of the fx node (and ONNX value) where the kernel
    begins and of the one that holds its result: they differ where an activation is fused.
    layer_nodes: layer name → name of its fx node. weights, biases: layer name → path of its weight and of its bias, if
    it has one, and their ONNX initializers. reshapes: name of an fx node (and ONNX value) that says a number of
    channels → the axis of its result that they are on, and those channels.
    """

    spec: NetworkSpec
    graph: fx.GraphModule
    template: bytes
    starts: tuple[str, ...]
    tensors: tuple[str, ...]
    layer_nodes: dict[str, str]
    weights: dict[str, str]
    input_name: str
    biases: dict[str, str]
    reshapes: dict[str, tuple[int, Channels]]


def analyse(graph: fx.GraphModule, template: bytes, name: str) -> Traced:
    model = onnx.load_model_from_string(template).graph
    values = {name for node in model.node for name in node.output}
    analysis = Analysis(graph, values, {stored.name for stored in model.initializer})
    analysis.run()
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    if len(placeholders) != 1:
        raise UserError(f"expected a network with one input tensor, got {len(placeholders)}")

    groups, channels = _groups(analysis.coupling)
    left_alone = [*analysis.left_alone, *(LeftAlone(g.name, "prune", g.reason) for g in groups if g.reason)]
    kernels, starts, tensors = fused_kernels(graph, values, analysis, channels)
    left_alone += _left_float(graph, model, kernels, starts)
    spec = NetworkSpec(
        name, shape_of(placeholders[0])[1:], _layers(graph, analysis, channels), groups, tuple(kernels),
        tuple(dict.fromkeys(left_alone)),
    )  # fmt: skip
    calls = [*analysis.layers.values(), *analysis.weight_only]
    resized = {
        node.name: (axis.dim, counted)
        for node, axis in analysis.reshapes.items()
        if (counted := channels(axis, 0)).groups
    }
    return Traced(
        spec, graph, template, tuple(starts), tuple(tensors), {call.name: call.node.name for call in calls},
        {call.name: call.weight for call in calls}, placeholders[0].name,
        {call.name: call.bias for call in calls if call.bias is not None}, resized,
    )  # fmt: skip


def _groups(coupling: Coupling) -> tuple[tuple[ChannelGroup, ...], ToChannels]:
    """The groups that a layer produces, and what says of an axis which of them lie along it.

    Only such a group is worth a name: something can be decided about it. The second value takes an axis, and how many
    elements there are where it is None.
    """
    group_of_class: dict[int, str] = {}
    groups: list[ChannelGroup] = []
    for c in range(len(coupling.parent)):
        if coupling.find(c) == c and coupling.producers[c]:
            producers = tuple(dict.fromkeys(coupling.producers[c]))
            group_of_class[c] = producers[0]
            groups.append(ChannelGroup(producers[0], coupling.size[c], producers, coupling.reason[c]))

    def channels(axis: Axis | None, fallback: int) -> Channels:
        if axis is None:
            return Channels(((None, fallback),))
        roots = [(coupling.find(c), size) for c, size in axis.parts]
        return Channels(
            tuple((group_of_class.get(r) if not coupling.reason[r] else None, size) for r, size in roots), axis.repeat
        )

    return tuple(groups), channels


def _layers(graph: fx.GraphModule, analysis: Analysis, channels: ToChannels) -> tuple[LayerSpec, ...]:
    """The layers in execution order, those whose weights alone are compressed last."""
    layers = []
    for node, call in analysis.layers.items():
        weight = get_parameter(graph, call.weight)
        shape, out = tuple(weight.shape), shape_of(node)
        group_count = groups_of(node)
        depthwise = group_count > 1 and group_count == shape[0] and shape[1] == 1
        linear = node.target is aten.linear.default
        positions = elements_of(node) // shape[0] if linear else math.prod(out[2:])
        layers.append(
            LayerSpec(
                call.name, "linear" if linear else f"conv{len(shape) - 2}d", shape,
                channels(analysis.in_axes.get(node), shape[1] * group_count), channels(analysis.axes[node], shape[0]),
                positions, group_count, depthwise, call.bias is not None,
            )
        )  # fmt: skip
    for call in analysis.weight_only:
        shape = tuple(get_parameter(graph, call.weight).shape)
        positions = steps_of(call.node) if call.kind == "recurrent" else 0
        rows, columns = (Channels(((None, size),)) for size in shape)
        layers.append(LayerSpec(call.name, call.kind, shape, columns, rows, positions, bias=False))
    return tuple(layers)


def _left_float(
    graph: fx.GraphModule, model: onnx.GraphProto, kernels: Sequence[KernelNode], starts: Sequence[str]
) -> list[LeftAlone]:
    """The kernels without weights that run in float, each with its reason."""
    makers = {name: node for node in model.node for name in node.output}
    stored = {initializer.name: initializer for initializer in model.initializer}
    by_name = {node.name: node for node in graph.graph.nodes}
    return [
        LeftAlone(k.name, "quantize", reason_for_float(by_name[start], makers, stored))
        for k, start in zip(kernels, starts, strict=True)
        if k.layer is None
        and not k.int8
        and not k.free
        and k.op not in LAYER_OPS  # those are listed already
        and by_name[start].target not in EMBEDDINGS
        and by_name[start].meta["val"].is_floating_point()  # ids and masks
    ]
