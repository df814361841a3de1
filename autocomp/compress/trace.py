"""From a torch network to a NetworkSpec: layers, coupled channel groups, fused kernels, and what is left alone."""

import gc
import json
import logging
import math
import operator
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from torch import fx, nn

from autocomp.compress.agreement import Answers, answers, check_agreement
from autocomp.compress.executed import with_work
from autocomp.compress.graph import (
    CONVOLUTIONS,
    LAYERS,
    argument,
    aten,
    capture,
    export_program,
    get_parameter,
    pair,
    weight_path,
)
from autocomp.compress.integer_kernels import Form, form_of, reason_for_float
from autocomp.compress.plain_form import PlainForm, first_line, plain_form
from autocomp.compress.trace_cache import TraceCache, digest_of
from autocomp.errors import UserError
from autocomp.network import (
    LAYER_OPS,
    NETWORK_INPUT,
    ChannelGroup,
    Channels,
    KernelNode,
    LayerSpec,
    LeftAlone,
    NetworkSpec,
)

PROGRAM_FILE = "program.pt2"
TEMPLATE_FILE = "float.onnx"
NAME_FILE, NOTES_FILE = "name", "notes.json"


@dataclass(frozen=True)
class Traced:
    """A network in the two forms that compression works on, whose tensors have the same names in both.

    graph: the float network as an fx graph of aten operators, batch-norm folded. template: the same as a float
    ONNX model (serialized). starts, tensors: kernel index → names of the fx node (and ONNX value) where the kernel
    begins and of the one that holds its result: they differ where an activation is fused.
    layer_nodes: layer name → name of its fx node. weights: layer name → path of its weight (and its ONNX initializer).
    """

    spec: NetworkSpec
    graph: fx.GraphModule
    template: bytes
    starts: tuple[str, ...]
    tensors: tuple[str, ...]
    layer_nodes: dict[str, str]
    weights: dict[str, str]
    input_name: str


def trace(
    module: nn.Module, example: torch.Tensor, name: str, folder: Path | None = None, cache: TraceCache | None = None
) -> Traced:
    """Trace `module` on `example` of shape (n, …), and check that what is traced computes the same.

    The graph and the ONNX template are kept in `folder`, from which `load` reads them back in another process. cache:
    where they come from, if this network was traced before, and are kept. The module is not changed.
    Raises UserError where it cannot be traced.
    """
    example = example.detach().cpu()
    network = plain_form(module, example)
    known = answers(network, example)
    with tempfile.TemporaryDirectory() as scratch:
        place = folder if folder is not None else Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        (place / NAME_FILE).write_text(name)
        (place / NOTES_FILE).write_text(json.dumps(network.notes))
        digest = digest_of(network, example) if cache is not None else ""
        if cache is not None and cache.fetch(digest, place):
            try:
                return _checked(place, network, known)
            except Exception:  # noqa: BLE001 what a file that is not ours may do is not known
                cache.forget(digest)
        with _without_collector():
            _write(network, example, place)
        traced = _checked(place, network, known)
        if cache is not None:
            cache.keep(digest, place, (PROGRAM_FILE, TEMPLATE_FILE))
    return traced


def _checked(place: Path, network: PlainForm, known: Answers) -> Traced:
    traced = load(place)
    check_agreement(network, known, traced.graph, traced.template)
    return traced


@contextmanager
def _without_collector() -> Iterator[None]:
    """Inside, Python's collector of cycles rests: graphs are millions of objects, to look through them takes a fifth."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _write(network: PlainForm, example: torch.Tensor, place: Path) -> None:
    """Trace `network` into the files of `place`."""
    captured = capture(network, example)
    # The exporter's registry warns about torchvision's operators, which nobody asked for.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            onnx_program = torch.onnx.export(
                export_program(captured, example), dynamo=True, optimize=True, verbose=False
            )
        except Exception as error:
            cause: BaseException = error  # the exporter's own errors say how to debug it, the first one what is wrong
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise UserError(
                f"the network cannot be written as ONNX: {type(cause).__name__}: {first_line(cause)}"
            ) from error
    assert onnx_program is not None and onnx_program.exported_program is not None
    torch.export.save(onnx_program.exported_program, place / PROGRAM_FILE)
    template = onnx_program.model_proto
    _name_transposed_weights(template, captured)
    _name_split_results(template, onnx_program.exported_program.graph)
    onnx.save(template, place / TEMPLATE_FILE)


def _name_transposed_weights(template: onnx.ModelProto, graph: fx.GraphModule) -> None:
    """Give the weight of a linear layer its name back where the exporter stored it transposed under another one.

    A linear layer on more than one position becomes MatMul with a constant-folded transposed weight.
    """
    stored = {initializer.name: initializer for initializer in template.graph.initializer}
    missing = {n: p for n, p in graph.named_parameters() if n.endswith("weight") and p.ndim == 2 and n not in stored}
    for node in template.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in stored:
            continue
        value = onnx.numpy_helper.to_array(stored[node.input[1]])
        for name, parameter in missing.items():
            if value.shape == parameter.shape[::-1] and (value == parameter.detach().numpy().T).all():
                stored[node.input[1]].name = name
                node.input[1] = name
                del missing[name]
                break


def _name_split_results(template: onnx.ModelProto, graph: fx.Graph) -> None:
    """Give the parts of a split the names of the fx nodes that pick them: the exporter numbers them."""
    names: dict[str, str] = {}
    for node in graph.nodes:
        if node.target is operator.getitem:
            for other in template.graph.node:
                if other.op_type == "Split" and other.output[0].startswith(f"{node.args[0].name}_"):
                    names[other.output[node.args[1]]] = node.name
    for node in template.graph.node:
        for values in (node.input, node.output):
            for position, name in enumerate(values):
                values[position] = names.get(name, name)


def load(folder: Path) -> Traced:
    """A network that `trace` kept in `folder`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.load(folder / PROGRAM_FILE).module()
    for node in list(exported.graph.nodes):
        if node.op == "call_module":  # input guards: the loop feeds batches of every size
            exported.graph.erase_node(node)
        elif node.target is aten.view.default:
            node.target = aten.reshape.default  # training stores images channels last, where a view may not exist
    graph = fx.GraphModule(exported, exported.graph)
    graph.recompile()
    template = onnx.load(folder / TEMPLATE_FILE)
    _name_input(template, graph.graph)
    traced = _analyse(graph, template.SerializeToString(), (folder / NAME_FILE).read_text())
    notes = [LeftAlone("the network", "trace", note) for note in json.loads((folder / NOTES_FILE).read_text())]
    spec = replace(traced.spec, left_alone=(*notes, *traced.spec.left_alone))
    return replace(traced, spec=with_work(spec, traced.starts, traced.tensors, traced.template, folder))


def _name_input(template: onnx.ModelProto, graph: fx.Graph) -> None:
    """Give the input the name that it has in the fx graph, which keeps clear of Python's own: input is input_1."""
    placeholders = [node.name for node in graph.nodes if node.op == "placeholder"]
    names = {value.name: name for value, name in zip(template.graph.input, placeholders, strict=False)}
    for value in template.graph.input:
        value.name = names.get(value.name, value.name)
    for node in template.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = names.get(name, name)


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where a tensor's channels are: axis index, and the channel classes along it with their sizes."""

    dim: int
    parts: tuple[tuple[int, int], ...]
    repeat: int = 1

    @property
    def classes(self) -> tuple[int, ...]:
        return tuple(c for c, _ in self.parts)


class _Coupling:
    """Union-find over channel classes: two classes that must be pruned alike become one."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.size: list[int] = []
        self.reason: list[str] = []
        self.producers: list[list[str]] = []

    def new(self, size: int, producer: str | None = None, reason: str = "") -> int:
        self.parent.append(len(self.parent))
        self.size.append(size)
        self.reason.append(reason)
        self.producers.append([producer] if producer else [])
        return len(self.parent) - 1

    def find(self, c: int) -> int:
        while self.parent[c] != c:
            self.parent[c] = self.parent[self.parent[c]]
            c = self.parent[c]
        return c

    def union(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        if a == b:
            return
        a, b = min(a, b), max(a, b)
        self.parent[b] = a
        self.producers[a] += self.producers[b]
        self.reason[a] = self.reason[a] or self.reason[b]

    def freeze(self, axis: _Axis | None, reason: str) -> None:
        for c in axis.classes if axis is not None else ():
            root = self.find(c)
            self.reason[root] = self.reason[root] or reason


_ELEMENTWISE = {
    aten.relu.default, aten.hardtanh.default, aten.relu6.default, aten.clamp.default, aten.clamp_min.default,
    aten.sigmoid.default, aten.tanh.default, aten.silu.default, aten.gelu.default, aten.hardswish.default,
    aten.hardsigmoid.default, aten.leaky_relu.default, aten.elu.default, aten.mish.default, aten.softplus.default,
    aten.neg.default, aten.abs.default, aten.exp.default, aten.sqrt.default, aten.rsqrt.default, aten.pow.Tensor_Scalar,
    aten._to_copy.default, aten.clone.default,
}  # fmt: skip
#: Activations that every runtime kernel applies while it writes its result.
_FUSED = {aten.relu.default, aten.hardtanh.default, aten.relu6.default, aten.clamp.default, aten.clamp_min.default}
_BINARY = {
    aten.add.Tensor,
    aten.mul.Tensor,
    aten.sub.Tensor,
    aten.div.Tensor,
    aten.maximum.default,
    aten.minimum.default,
}
_POOLS = {
    aten.max_pool2d.default: "max_pool", aten.max_pool1d.default: "max_pool", aten.avg_pool2d.default: "avg_pool",
    aten.avg_pool1d.default: "avg_pool",
}  # fmt: skip
_SPATIAL = {
    aten.constant_pad_nd.default, aten.pad.default, aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec,
    aten.upsample_nearest2d.default, aten.upsample_bilinear2d.default,
}  # fmt: skip
_PERMUTES = {aten.permute.default, aten.transpose.int, aten.t.default}
#: Operators that only say the same bytes in another shape, or read some of them.
_MOVES = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unsqueeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.select.int, aten.slice.Tensor, aten.clone.default,
}  # fmt: skip
_RESHAPES = {aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints}


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Shape of a tensor node with its batch axis as 0."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return ()
    return tuple(size if isinstance(size, int) else 0 for size in value.shape)


def _elements(node: fx.Node) -> int:
    """Elements of a tensor node for a batch of 1, wherever its batch axis is, merged with others or not."""
    total = 1
    for size in node.meta["val"].shape:
        if not isinstance(size, int):
            size = int(size.node.expr.subs(dict.fromkeys(size.node.expr.free_symbols, 1)))
        total *= size
    return total


def _is_tensor(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op != "get_attr" and isinstance(node.meta.get("val"), torch.Tensor)


class _Analysis:
    """One walk over the graph: channel axes on the way down, then layers and kernels."""

    def __init__(self, graph: fx.GraphModule, values: set[str]) -> None:
        """values: names of the tensors in the ONNX graph."""
        self.graph = graph
        self.values = values
        self.coupling = _Coupling()
        self.axes: dict[fx.Node, _Axis | None] = {}
        self.layer_names: dict[fx.Node, str] = {}
        self.left_alone: list[LeftAlone] = []
        self.in_axes: dict[fx.Node, _Axis | None] = {}

    def run(self) -> None:
        used: dict[str, fx.Node] = {}
        for node in self.graph.graph.nodes:
            if node.target in LAYERS and (path := weight_path(node)) is not None:
                name = path.removesuffix(".weight")
                if not self._finds_input(node):
                    self.left_alone.append(LeftAlone(name, "quantize", "its input has no name in the ONNX graph"))
                elif path in used:
                    self.left_alone.append(LeftAlone(name, "quantize", "its weight is shared by several calls"))
                    self.layer_names.pop(used[path], None)
                else:
                    used[path] = node
                    self.layer_names[node] = name
        for node in self.graph.graph.nodes:
            if _is_tensor(node) or node.op == "output":
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

    def _axis(self, node: fx.Node) -> _Axis | None:
        if node.op == "placeholder":
            shape = _shape(node)
            dim = 1 if len(shape) > 1 else 0
            return _Axis(dim, ((self.coupling.new(shape[dim], reason="the network's input"), shape[dim]),))
        if node.op == "output":
            for source in node.all_input_nodes:
                self.coupling.freeze(self.axes.get(source), "the network's output")
            return None
        sources = [source for source in node.all_input_nodes if _is_tensor(source)]
        if node.target in LAYERS:
            return self._layer(node)
        if node.target in _ELEMENTWISE or (node.target in _BINARY and len(sources) == 1 and not _stored(node)):
            return self.axes.get(sources[0]) if sources else None
        if node.target in _BINARY and len(sources) == 2 and not _stored(node):
            return self._binary(node, *sources)
        if node.target in _POOLS or node.target in _SPATIAL:
            return self.axes.get(sources[0])
        if node.target is aten.mean.dim:
            return self._mean(node, sources[0])
        if node.target is aten.cat.default:
            return self._concat(node, sources)
        if node.target in _RESHAPES:
            return self._reshape(node, sources[0])
        if node.target in _PERMUTES:
            return self._permute(node, sources[0])
        if node.target in (aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims):
            return self._squeeze(node, sources[0])
        return self._opaque(node, sources, f"passes through {op_name(node)}")

    def _opaque(self, node: fx.Node, sources: list[fx.Node], reason: str) -> _Axis | None:
        """Nothing is known of how `node` moves channels: neither its inputs nor its result can be pruned."""
        for source in sources:
            self.coupling.freeze(self.axes.get(source), reason)
        shape = _shape(node)
        if len(shape) < 2:
            return None
        first = self.axes.get(sources[0]) if sources else None
        dim = first.dim if first is not None and first.dim < len(shape) else 1
        if shape[dim] == 0:
            return None
        return _Axis(dim, ((self.coupling.new(shape[dim], reason=reason), shape[dim]),))

    def _layer(self, node: fx.Node) -> _Axis | None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        axis = self.axes.get(source)
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        out_channels, per_group, *_ = weight.meta["val"].shape if "val" in weight.meta else self._weight(node).shape
        groups = _groups(node)
        dim = len(_shape(node)) - 1 if node.target is aten.linear.default else 1
        name = self.layer_names.get(node)
        if axis is None or axis.dim != dim:
            self.coupling.freeze(axis, f"layer {name} reads its channels along another axis")
            axis = None
        self.in_axes[node] = axis
        if name is None:
            self.coupling.freeze(axis, "read by a layer that is left alone")
            return _Axis(
                dim, ((self.coupling.new(out_channels, reason="made by a layer that is left alone"), out_channels),)
            )
        if groups > 1 and groups == out_channels and per_group == 1 and axis is not None and axis.repeat == 1:
            for c in axis.classes:
                self.coupling.producers[self.coupling.find(c)].append(name)
            return axis  # depthwise: a channel goes in, the same channel comes out
        if groups > 1:
            reason = f"layer {name} is a grouped convolution: pruning would change its groups"
            self.coupling.freeze(axis, reason)
            return _Axis(dim, ((self.coupling.new(out_channels, name, reason), out_channels),))
        return _Axis(dim, ((self.coupling.new(out_channels, name), out_channels),))

    def _weight(self, node: fx.Node) -> torch.Tensor:
        return get_parameter(self.graph, str(node.args[1].target))  # type: ignore[union-attr]

    def _binary(self, node: fx.Node, a: fx.Node, b: fx.Node) -> _Axis | None:
        left, right = self.axes.get(a), self.axes.get(b)
        if left is None or right is None or len(_shape(a)) != len(_shape(b)) or left.dim != right.dim:
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

    def _mean(self, node: fx.Node, source: fx.Node) -> _Axis | None:
        axis = self.axes.get(source)
        rank = len(_shape(source))
        dims = sorted(d % rank for d in node.args[1])  # type: ignore[union-attr]
        keep = bool(argument(node, 2, "keepdim", False))
        if axis is None or axis.dim in dims or 0 in dims:
            return self._opaque(node, [source], "averaged over its channels")
        return replace(axis, dim=axis.dim if keep else axis.dim - sum(d < axis.dim for d in dims))

    def _concat(self, node: fx.Node, sources: list[fx.Node]) -> _Axis | None:
        inputs = list(node.args[0])  # type: ignore[arg-type]
        axes = [self.axes.get(source) for source in inputs if isinstance(source, fx.Node)]
        dim = int(argument(node, 1, "dim", 0)) % len(_shape(node))  # type: ignore[call-overload]
        if any(axis is None or axis.dim != dim or axis.repeat != 1 for axis in axes):
            return self._opaque(node, sources, "concatenated along another axis than its channels")
        parts = tuple(part for axis in axes if axis is not None for part in axis.parts)
        return _Axis(dim, parts)

    def _reshape(self, node: fx.Node, source: fx.Node) -> _Axis | None:
        axis, before, after = self.axes.get(source), _shape(source), _shape(node)
        if axis is None:
            return self._opaque(node, [source], "reshaped")
        if before == after:
            return axis
        if is_flatten(node) and axis.dim == 1:
            return replace(axis, dim=1, repeat=axis.repeat * math.prod(before[2:]))
        return self._opaque(node, [source], "reshaped in a way that mixes its channels")

    def _permute(self, node: fx.Node, source: fx.Node) -> _Axis | None:
        axis, rank = self.axes.get(source), len(_shape(source))
        if axis is None:
            return None
        if node.target is aten.permute.default:
            order = [d % rank for d in node.args[1]]  # type: ignore[union-attr]
        else:
            order = list(range(rank))
            a, b = (d % rank for d in node.args[1:3]) if node.target is aten.transpose.int else (0, 1)  # type: ignore[misc]
            order[a], order[b] = order[b], order[a]
        return replace(axis, dim=order.index(axis.dim))

    def _squeeze(self, node: fx.Node, source: fx.Node) -> _Axis | None:
        axis, before, after = self.axes.get(source), _shape(source), _shape(node)
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


def is_flatten(node: fx.Node) -> bool:
    """Whether a node is a reshape that turns (n, c, …) into (n, c · …)."""
    if node.target not in _RESHAPES:
        return False
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = _shape(source), _shape(node)
    return len(after) == 2 and len(before) > 2 and after[0] == 0 and after[1] == math.prod(before[1:])


def is_merged(node: fx.Node, values: set[str]) -> bool:
    """Whether the exporter merged a node into its neighbour, as it does padding into a convolution."""
    return node.name not in values and (node.target in _MOVES or node.target in _SPATIAL)


def _groups(node: fx.Node) -> int:
    if node.target not in CONVOLUTIONS:
        return 1
    return int(argument(node, 6, "groups", 1))  # type: ignore[call-overload]


def _stored(node: fx.Node) -> bool:
    """Whether an operator reads a stored tensor (a parameter or buffer) beside its inputs."""
    return any(isinstance(source, fx.Node) and source.op == "get_attr" for source in node.all_input_nodes)


def op_name(node: fx.Node) -> str:
    """What a node does, in a word; of a part that it picks, what made the whole."""
    if node.target is operator.getitem:
        return op_name(node.args[0])  # type: ignore[arg-type]
    return str(node.target).removeprefix("aten.").split(".")[0] if node.op == "call_function" else node.name


def _analyse(graph: fx.GraphModule, template: bytes, name: str) -> Traced:
    values = {name for node in onnx.load_model_from_string(template).graph.node for name in node.output}
    analysis = _Analysis(graph, values)
    analysis.run()
    coupling = analysis.coupling
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    if len(placeholders) != 1:
        raise UserError(f"expected a network with one input tensor, got {len(placeholders)}")

    # A group is worth a name only where a layer produces it and something can be decided about it.
    group_of_class: dict[int, str] = {}
    groups: list[ChannelGroup] = []
    for c in range(len(coupling.parent)):
        if coupling.find(c) == c and coupling.producers[c]:
            producers = tuple(dict.fromkeys(coupling.producers[c]))
            group_of_class[c] = producers[0]
            groups.append(ChannelGroup(producers[0], coupling.size[c], producers, coupling.reason[c]))

    def channels(axis: _Axis | None, fallback: int) -> Channels:
        if axis is None:
            return Channels(((None, fallback),))
        roots = [(coupling.find(c), size) for c, size in axis.parts]
        return Channels(
            tuple((group_of_class.get(r) if not coupling.reason[r] else None, size) for r, size in roots), axis.repeat
        )

    layers, left_alone = [], list(analysis.left_alone)
    for node, layer_name in analysis.layer_names.items():
        weight = get_parameter(graph, weight_path(node) or "")
        shape, out = tuple(weight.shape), _shape(node)
        group_count = _groups(node)
        depthwise = group_count > 1 and group_count == shape[0] and shape[1] == 1
        linear = node.target is aten.linear.default
        positions = _elements(node) // shape[0] if linear else math.prod(out[2:])
        layers.append(
            LayerSpec(
                layer_name, "linear" if linear else f"conv{len(shape) - 2}d", shape,
                channels(analysis.in_axes.get(node), shape[1] * group_count), channels(analysis.axes[node], shape[0]),
                positions, group_count, depthwise, argument(node, 2, "bias", None) is not None,
            )
        )  # fmt: skip
    left_alone += [LeftAlone(g.name, "prune", g.reason) for g in groups if g.reason]
    kernels, starts, tensors = _kernels(graph, values, analysis, channels)
    model = onnx.load_model_from_string(template).graph
    makers = {name: node for node in model.node for name in node.output}
    stored = {initializer.name: initializer for initializer in model.initializer}
    by_name = {node.name: node for node in graph.graph.nodes}
    left_alone += [
        LeftAlone(k.name, "quantize", reason_for_float(by_name[start], makers, stored))
        for k, start in zip(kernels, starts, strict=True)
        if k.layer is None and not k.int8 and not k.free and k.op not in LAYER_OPS  # those are listed already
    ]
    spec = NetworkSpec(
        name, _shape(placeholders[0])[1:], tuple(layers), tuple(groups), tuple(kernels), tuple(left_alone)
    )
    nodes = {layer: node.name for node, layer in analysis.layer_names.items()}
    weights = {layer: weight_path(node) or "" for node, layer in analysis.layer_names.items()}
    return Traced(spec, graph, template, tuple(starts), tuple(tensors), nodes, weights, placeholders[0].name)


def _kernels(
    graph: fx.GraphModule, values: set[str], analysis: _Analysis, channels: Callable[[_Axis | None, int], Channels]
) -> tuple[list[KernelNode], list[str], list[str]]:
    """Fused kernels in execution order, and the fx nodes where each begins and ends."""
    kernels: list[KernelNode] = []
    starts: list[str] = []
    tensors: list[str] = []
    made: dict[fx.Node, int] = {}
    (output,) = [node for node in graph.graph.nodes if node.op == "output"]
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            made[node] = NETWORK_INPUT
        if node.op != "call_function" or not _is_tensor(node) or node in made:
            continue
        # An operator with several results (a recurrent layer) counts as a kernel where one of them is picked.
        maker = node.args[0] if node.target is operator.getitem else node
        sources = [s for s in maker.all_input_nodes if _is_tensor(s)]
        if not sources:
            continue  # a constant
        if is_merged(node, values) and sources[0] in made:
            made[node] = made[sources[0]]
            continue
        end = node
        op, int8, free = _kernel_op(node, sources)
        form = form_of(node) or Form(int8, keeps_range=free or op == "max_pool" or node.target in _PERMUTES, free=free)
        int8, free = form.int8, form.free
        # Between two integer kernels a tensor must be findable in the ONNX graph; its name there may be lost.
        int8 = int8 and node.name in values
        if node.target in LAYERS or op == "add":
            users = list(node.users)
            if len(users) == 1 and users[0].target in _FUSED:
                end = users[0]
        main = sources[0]
        while main.target in _SPATIAL and is_merged(main, values):  # its padding is the kernel's own: the image before
            main = main.args[0]
        before, after = _shape(main), _shape(node)
        linear = node.target is aten.linear.default
        in_axis = analysis.in_axes.get(node) if node.target in LAYERS else analysis.axes.get(main)
        place = analysis.axes.get(main)
        height, width = (1, _elements(main) // before[-1]) if linear else _spatial(main, place.dim if place else 1)
        layer = analysis.layer_names.get(node)
        int8 = int8 and (layer is not None or node.target not in LAYERS)  # a layer that is left alone is float
        weight = analysis._weight(node) if layer is not None else None
        window, stride = _window(node, op, weight)
        in_fallback = before[-1 if linear else 1] if len(before) > 1 else 1
        out_fallback = after[-1 if linear else 1] if len(after) > 1 else 1
        in_channels = channels(in_axis, max(in_fallback, 1))
        if op == "concat":
            in_channels = channels(analysis.axes.get(node), max(out_fallback, 1))
        kernels.append(
            KernelNode(
                name=layer or maker.name, op=op,
                inputs=tuple(dict.fromkeys(made[s] for s in sources if s in made)),
                in_channels=in_channels, out_channels=channels(analysis.axes.get(node), max(out_fallback, 1)),
                height=height, width=width, kernel_h=window[0], kernel_w=window[1], stride=stride,
                groups=_groups(node) if node.target in LAYERS else 1,
                layer=layer, int8=int8, free=free and (int8 or node.target in _MOVES),
                keeps_range=form.keeps_range,
                output=end in output.all_input_nodes,
            )
        )  # fmt: skip
        made[node] = made[end] = len(kernels) - 1
        starts.append(node.name)
        tensors.append(end.name)
    return kernels, starts, tensors


def _spatial(node: fx.Node, channels: int) -> tuple[int, int]:
    """Height and width of a tensor with its channels along axis `channels`; what is no image has positions only."""
    shape = _shape(node)
    if len(shape) == 4 and shape[0] == 0 and channels > 0:
        height, width = (size for axis, size in enumerate(shape) if axis not in (0, channels))
        return height, width
    of_each = shape[channels] if channels < len(shape) else 1
    return 1, max(1, _elements(node) // max(1, of_each))


def _window(node: fx.Node, op: str, weight: torch.Tensor | None) -> tuple[tuple[int, int], int]:
    """((kernel height, kernel width), stride) of a kernel node."""
    if node.target in CONVOLUTIONS and weight is not None:
        return pair(list(weight.shape[2:])), max(pair(argument(node, 3, "stride", 1)))
    if op in ("max_pool", "avg_pool"):
        window = pair(node.args[1])
        stride = argument(node, 2, "stride", None)
        return window, max(pair(stride)) if stride not in (None, []) else max(window)
    return (1, 1), 1


def _kernel_op(node: fx.Node, sources: list[fx.Node]) -> tuple[str, bool, bool]:
    """(table operator, whether an integer kernel exists, whether it is free) of a node."""
    if node.target in CONVOLUTIONS:
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        groups, out = _groups(node), _shape(node)[1]
        return ("depthwise" if groups > 1 and groups == out and _shape(sources[0])[1] == out else "conv"), True, False
    if node.target is aten.linear.default:
        return "linear", True, False
    if node.target is aten.add.Tensor and len(sources) == 2 and _shape(sources[0]) == _shape(sources[1]):
        return "add", True, False
    if node.target is aten.mul.Tensor and len(sources) == 2:
        return "mul", True, False
    if node.target is aten.cat.default:
        return "concat", True, False
    if node.target in _POOLS:
        return _POOLS[node.target], True, False
    if node.target is aten.mean.dim and len(_shape(sources[0])) == 4:
        dims = sorted(d % 4 for d in node.args[1])  # type: ignore[union-attr]
        if dims == [2, 3]:
            return "global_avg_pool", True, False
    if node.target in _MOVES:
        return "activation", True, True
    if node.target in _PERMUTES:
        return "activation", True, False
    return "activation", False, False
