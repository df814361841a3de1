"""A torch network as one flat, functional, batch-norm-free graph: what every later step works on."""

import inspect
import traceback
import warnings
from pathlib import Path

import torch
from torch import fx, nn

from autocomp.compress.constants import fold_constants
from autocomp.compress.copying import copied
from autocomp.compress.full_precision import OTHER_FLOATS
from autocomp.compress.functional import make_functional
from autocomp.compress.normalize import (
    drop_no_ops,
    fold_batch_norms,
    merge_alike,
    name_apart,
    separate_biases,
    spell_operators,
)
from autocomp.compress.parameters import (
    CONVOLUTIONS,
    LAYERS,
    argument,
    aten,
    drop_unread,
    get_parameter,
    pair,
    set_parameter,
    stored_tensor,
    weight_path,
)
from autocomp.compress.plain_form import PlainForm, first_line
from autocomp.compress.products import spell_products
from autocomp.compress.spelling import spell_plainly
from autocomp.errors import UserError

__all__ = [
    "CONVOLUTIONS",
    "LAYERS",
    "argument",
    "aten",
    "capture",
    "export_program",
    "first_line",
    "get_parameter",
    "pair",
    "set_parameter",
    "weight_path",
]


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
            f"torch.export cannot trace the network{_place(error)} ({type(error).__name__}: {first_line(error)}); "
            "avoid control flow that depends on data, a fixed batch size, and numpy, .data or gradients in forward"
        ) from error
    _refuse_unwritten(graph)
    _drop_writes(graph)
    _settle_types(graph)
    _normalize(graph)
    return graph


def export_program(module: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    """`module` exported with a dynamic first axis. example: (n, …)."""
    # Two examples: torch.export specializes an axis of size 1.
    batch = example if len(example) > 1 else torch.cat([example, example])
    free = {0: torch.export.Dim("batch", min=1)}
    first = next(iter(inspect.signature(module.forward).parameters.values()), None)
    several = first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL  # forward(*inputs)
    shapes = ((free,),) if several else (free,)
    return torch.export.export(module, (batch,), dynamic_shapes=shapes, strict=False)


def _export(network: PlainForm, example: torch.Tensor) -> fx.GraphModule:
    # Of a copy: what forward keeps of its activations would be the tracer's. Without gradients, which cost a third of
    # the time and of which nothing here reads any.
    program = export_program(copied(network.module).requires_grad_(False), example)
    if not make_functional(program.graph):
        # An empty table keeps the composite operators (conv2d, linear, …) and only makes the graph functional.
        program = program.run_decompositions({})
    graph = program.module()
    assert isinstance(graph, fx.GraphModule)
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            graph.graph.erase_node(node)
    # The exported module refuses train() and eval(); what is left of it here has no mode-dependent operator.
    plain = fx.GraphModule(graph, graph.graph)
    plain.eval()
    return plain


def _place(error: BaseException) -> str:
    """Where in the user's code an error arose."""
    others = str(Path(str(torch.__file__)).parent), str(Path(__file__).parents[1])
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)]
    if not any(frame.name == "forward" for frame in frames):
        return ""
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}"


def _refuse_unwritten(graph: fx.GraphModule) -> None:
    """UserError for what no file can hold, though torch can export it."""
    for node in graph.graph.nodes:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        module = f" in {stack[-1][0]}" if stack and stack[-1][0] else ""
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise UserError(
                f"the network calls {node.target.name()}{module}, which takes functions and cannot be written: write "
                "that part with plain operators"
            )
        if node.target is aten.lstm.input and _is_projected(node):
            raise UserError(
                f"the network has an LSTM with proj_size{module}, which ONNX does not know: take proj_size=0 and a "
                "linear layer behind it"
            )


def _is_projected(lstm: fx.Node) -> bool:
    """Whether an LSTM projects its state: it then has one matrix more for each layer and direction."""
    _, _, parameters, has_biases, layers, _, _, both, *_ = lstm.args
    return len(parameters) != (4 if has_biases else 2) * layers * (2 if both else 1)  # type: ignore[arg-type, operator]


def _drop_writes(graph: fx.GraphModule) -> None:
    """Leave out what the network writes into its input or its own buffers at the end of a call: no result reads it."""
    for node in reversed(list(graph.graph.nodes)):
        if node.target is aten.copy_.default and not node.users:
            graph.graph.erase_node(node)


def _settle_types(graph: fx.GraphModule) -> None:
    """Make float32 what the exporter kept in another float type: constants that came as arrays of float64."""
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value = stored_tensor(graph, str(node.target))
            if value is not None and value.dtype in OTHER_FLOATS:
                value.data = value.data.float()
        elif node.kwargs.get("dtype") in OTHER_FLOATS:
            node.kwargs = {**node.kwargs, "dtype": torch.float32}


def _normalize(graph: fx.GraphModule) -> None:
    """Bring the graph into the one form that layers are read from."""
    spell_plainly(graph)
    drop_no_ops(graph)
    merge_alike(graph)
    spell_products(graph)  # before transposed weights become constants of their own: they may be shared
    fold_constants(graph)
    spell_products(graph)
    spell_operators(graph)
    separate_biases(graph)
    fold_batch_norms(graph)
    graph.graph.eliminate_dead_code()
    drop_unread(graph)
    name_apart(graph)
    graph.recompile()
