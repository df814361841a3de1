"""A torch network as one flat, functional, batch-norm-free graph: what every later step works on."""

import copy
import warnings

import torch
from torch import fx, nn

from autocomp.compress.constants import fold_constants
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
    weight_path,
)
from autocomp.compress.products import spell_products
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


def capture(module: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    """`module` in evaluation mode as an fx graph of functional aten operators, with a free batch axis.

    example: (n, …) input with n ≥ 1. Batch-norm is folded into the layer before it. The module itself is not changed.

    torch.export carries further than symbolic fx tracing here: it sees through functional calls, asserts and
    shape arithmetic, and leaves no in-place operator.
    Raises UserError where the network cannot be traced or does not return one tensor.
    """
    module = copy.deepcopy(module).eval().cpu()
    with torch.no_grad():
        try:
            output = module(example)
        except Exception as error:
            raise UserError(
                f"the network fails on its example input of shape {tuple(example.shape)}: "
                f"{type(error).__name__}: {first_line(error)}; check the task's example input"
            ) from error
    if not isinstance(output, torch.Tensor):
        raise UserError(
            f"expected the network to return one tensor, got {_describe(output)}; "
            "wrap it in a module whose forward returns the logits alone"
        )
    if output.ndim < 1 or output.shape[0] != example.shape[0]:
        raise UserError(
            f"expected the network's output to have the batch of {example.shape[0]} as its first axis, "
            f"got shape {tuple(output.shape)}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _export(module, example)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"torch.export cannot trace the network ({type(error).__name__}: {first_line(error)}); "
            "avoid control flow that depends on data, and a fixed batch size"
        ) from error
    _normalize(graph)
    for parameter in graph.parameters():
        parameter.requires_grad_(True)
    return graph


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no message"


def _describe(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def export_program(module: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    """`module` exported with a dynamic first axis. example: (n, …)."""
    # Two examples: torch.export specializes an axis of size 1.
    batch = example if len(example) > 1 else torch.cat([example, example])
    return torch.export.export(module, (batch,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False)


def _export(module: nn.Module, example: torch.Tensor) -> fx.GraphModule:
    # An empty table keeps the composite operators (conv2d, linear, …) and only makes the graph functional.
    module.requires_grad_(False)  # statistics that are parameters have no derivative
    graph = export_program(module, example).run_decompositions({}).module()
    assert isinstance(graph, fx.GraphModule)
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            graph.graph.erase_node(node)
    # The exported module refuses train() and eval(); what is left of it here has no mode-dependent operator.
    plain = fx.GraphModule(graph, graph.graph)
    plain.eval()
    return plain


def _normalize(graph: fx.GraphModule) -> None:
    """Bring the graph into the one form that layers are read from."""
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
