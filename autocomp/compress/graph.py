"""A torch network as one flat, functional, batch-norm-free graph: what every later step works on."""

import operator
import warnings
from collections.abc import Sequence

import torch
from torch import fx, nn

from autocomp.compress.copying import copied
from autocomp.compress.full_precision import OTHER_FLOATS
from autocomp.compress.plain_form import PlainForm, first_line
from autocomp.errors import UserError

aten = torch.ops.aten

#: Nodes that change nothing at inference.
_NO_OPS = (aten.dropout.default, aten.alias.default, aten.detach.default)
_BATCH_NORMS = (aten._native_batch_norm_legit_no_training.default, aten.batch_norm.default)


def capture(network: PlainForm, example: torch.Tensor) -> fx.GraphModule:
    """`network` as an fx graph of functional aten operators, with a free batch axis.

    example: (n, …) input with n ≥ 1. Batch-norm is folded into the layer before it. The network is not changed.

    torch.export carries further than symbolic fx tracing here: it sees through functional calls, asserts and
    shape arithmetic, and leaves no in-place operator.
    Raises UserError where the network cannot be traced.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _export(network, example)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"torch.export cannot trace the network ({type(error).__name__}: {first_line(error)}); "
            "avoid control flow that depends on data, and a fixed batch size"
        ) from error
    _drop_writes(graph)
    _settle_types(graph)
    _drop_no_ops(graph)
    _fold_batch_norms(graph)
    _normalize(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    for parameter in graph.parameters():
        parameter.requires_grad_(True)
    return graph


def export_program(module: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    """`module` exported with a dynamic first axis. example: (n, …)."""
    # Two examples: torch.export specializes an axis of size 1.
    batch = example if len(example) > 1 else torch.cat([example, example])
    return torch.export.export(module, (batch,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False)


def _export(network: PlainForm, example: torch.Tensor) -> fx.GraphModule:
    # Of a copy: what forward keeps of its activations would be the tracer's.
    program = export_program(copied(network.module), example)
    # An empty table keeps the composite operators (conv2d, linear, …) and only makes the graph functional.
    graph = program.run_decompositions({}).module()
    assert isinstance(graph, fx.GraphModule)
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            graph.graph.erase_node(node)
    # The exported module refuses train() and eval(); what is left of it here has no mode-dependent operator.
    plain = fx.GraphModule(graph, graph.graph)
    plain.eval()
    return plain


def _drop_writes(graph: fx.GraphModule) -> None:
    """Leave out what the network writes into its input or its own buffers at the end of a call: no result reads it."""
    for node in reversed(list(graph.graph.nodes)):
        if node.target is aten.copy_.default and not node.users:
            graph.graph.erase_node(node)


def _settle_types(graph: fx.GraphModule) -> None:
    """Make float32 what the exporter kept in another float type: constants that came as arrays of float64."""
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = get_parameter(graph, str(node.target))
            if value.dtype in OTHER_FLOATS:
                value.data = value.data.float()
        elif node.kwargs.get("dtype") in OTHER_FLOATS:
            node.kwargs = {**node.kwargs, "dtype": torch.float32}


def _drop_no_ops(graph: fx.GraphModule) -> None:
    for node in list(graph.graph.nodes):
        full_slice = node.target is aten.slice.Tensor and _same_shape(node, node.args[0])
        if node.target in _NO_OPS or full_slice:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _same_shape(a: fx.Node, b: fx.Node) -> bool:
    before, after = a.meta.get("val"), b.meta.get("val")
    return before is not None and after is not None and tuple(before.shape) == tuple(after.shape)


def get_parameter(graph: fx.GraphModule, path: str) -> torch.Tensor:
    value = graph
    for part in path.split("."):
        value = getattr(value, part)
    assert isinstance(value, torch.Tensor)
    return value


def set_parameter(graph: nn.Module, path: str, value: torch.Tensor) -> None:
    *parents, leaf = path.split(".")
    owner = graph
    for part in parents:
        owner = getattr(owner, part)
    if leaf in owner._buffers:
        del owner._buffers[leaf]
    setattr(owner, leaf, nn.Parameter(value.detach().clone()))


def weight_path(node: fx.Node) -> str | None:
    """Path of the weight that a convolution or linear node reads, if it reads a stored one directly."""
    weight = node.args[1]
    return str(weight.target) if isinstance(weight, fx.Node) and weight.op == "get_attr" else None


CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default)
LAYERS = (*CONVOLUTIONS, aten.linear.default)


def argument(node: fx.Node, index: int, name: str, default: object) -> object:
    """Positional or keyword argument of an aten call."""
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def pair(value: object, default: int = 1) -> tuple[int, int]:
    """(height, width) of a window argument; a 1-D window has height 1."""
    if value is None or value == []:
        return default, default
    if isinstance(value, int):
        return value, value
    values = [int(v) for v in value]  # type: ignore[attr-defined]
    return (1, values[0]) if len(values) == 1 else (values[0], values[1])


def _fold_batch_norms(graph: fx.GraphModule) -> None:
    """Fold inference-mode batch-norm into the layer whose only reader it is (Jacob et al. 2018, eq. 14)."""
    for node in list(graph.graph.nodes):
        if node.target not in _BATCH_NORMS:
            continue
        source = node.args[0]
        path = weight_path(source) if source.target in LAYERS else None
        shared = path is None or len(source.args[1].users) > 1
        if shared or len(source.users) != 1:
            continue
        gamma, beta, mean, variance = (
            get_parameter(graph, str(a.target)).detach() if isinstance(a, fx.Node) else None for a in node.args[1:5]
        )
        assert mean is not None and variance is not None
        epsilon = float(node.args[7] if node.target is aten.batch_norm.default else node.args[6])
        scale = torch.rsqrt(variance + epsilon) * (gamma if gamma is not None else 1.0)
        weight = get_parameter(graph, path).detach()
        bias_node = argument(source, 2, "bias", None)
        bias = get_parameter(graph, str(bias_node.target)).detach() if isinstance(bias_node, fx.Node) else 0.0
        folded_bias = (bias - mean) * scale + (beta if beta is not None else 0.0)
        set_parameter(graph, path, weight * scale.reshape(-1, *[1] * (weight.ndim - 1)))
        bias_path = path.removesuffix("weight").removesuffix(".") + ".bias"
        set_parameter(graph, bias_path, folded_bias)
        with graph.graph.inserting_before(source):
            new_bias = graph.graph.get_attr(bias_path)
        source.args = (source.args[0], source.args[1], new_bias, *source.args[3:])
        result = node
        if node.target is not aten.batch_norm.default:  # returns (output, mean, rstd)
            (result,) = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
        result.replace_all_uses_with(source)
        for user in list(node.users):
            graph.graph.erase_node(user)
        graph.graph.erase_node(node)


def _normalize(graph: fx.GraphModule) -> None:
    """Give the few operators that have several spellings one: the ONNX exporter then keeps their names."""
    for node in list(graph.graph.nodes):
        if node.target is aten.adaptive_avg_pool2d.default and list(node.args[1]) == [1, 1]:
            _replace(graph, node, aten.mean.dim, (node.args[0], [2, 3], True))
        elif node.target is aten.adaptive_avg_pool1d.default and list(node.args[1]) == [1]:
            _replace(graph, node, aten.mean.dim, (node.args[0], [2], True))


def _replace(graph: fx.GraphModule, node: fx.Node, target: object, args: Sequence[object]) -> None:
    with graph.graph.inserting_before(node):
        new = graph.graph.call_function(target, tuple(args))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)
