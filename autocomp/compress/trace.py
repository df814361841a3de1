"""From a torch network to a NetworkSpec: layers, coupled channel groups, fused kernels, and what is left alone."""

import logging
import tempfile
import warnings
from pathlib import Path

import onnx
import torch
from torch import fx, nn

from autocomp.compress.graph import aten, capture, export_program, first_line
from autocomp.compress.normalize import name_input_apart
from autocomp.compress.tracing.reshapes import spell_sizes
from autocomp.compress.tracing.template import name_input, name_parts, settle_weights, told_apart
from autocomp.compress.tracing.traced import Traced, analyse
from autocomp.errors import UserError

__all__ = ["Traced", "load", "trace"]

PROGRAM_FILE = "program.pt2"
TEMPLATE_FILE = "float.onnx"


def trace(module: nn.Module, example: torch.Tensor, name: str, folder: Path | None = None) -> Traced:
    """Trace `module` on `example` of shape (n, …).

    The graph and the ONNX template are kept in `folder`, from which `load` reads them back in another process.
    The module is not changed. Raises UserError where it cannot be traced.
    """
    captured = capture(module, example)
    with told_apart(captured) as (true, marks):
        onnx_program = _export_onnx(captured, example)
        template = onnx_program.model_proto
    missing = settle_weights(template, true, marks)
    if missing:
        raise UserError(f"the network cannot be written as ONNX: the exporter left out {', '.join(missing)}")
    program = onnx_program.exported_program
    assert program is not None
    with torch.no_grad():
        for path, value in true.items():
            program.state_dict[path].copy_(value)
    with tempfile.TemporaryDirectory() as scratch:
        place = folder if folder is not None else Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        torch.export.save(program, place / PROGRAM_FILE)
        graph = _load_graph(place)
        name_input(template, graph.graph)
        name_parts(template, graph.graph)
        onnx.save(template, place / TEMPLATE_FILE)
        (place / "name").write_text(name)
        return analyse(graph, template.SerializeToString(), name)


def _export_onnx(captured: fx.GraphModule, example: torch.Tensor) -> torch.onnx.ONNXProgram:
    # The exporter's registry warns about torchvision's operators, which nobody asked for.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(export_program(captured, example), dynamo=True, optimize=True, verbose=False)
        except Exception as error:
            raise UserError(
                f"the network cannot be written as ONNX: {type(error).__name__}: {first_line(error)}"
            ) from error
    assert program is not None
    return program


def load(folder: Path) -> Traced:
    """A network that `trace` kept in `folder`."""
    template = (folder / TEMPLATE_FILE).read_bytes()
    return analyse(_load_graph(folder), template, (folder / "name").read_text())


def _load_graph(folder: Path) -> fx.GraphModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.load(folder / PROGRAM_FILE).module()
    for node in list(exported.graph.nodes):
        if node.op == "call_module":  # input guards: the loop feeds batches of every size
            exported.graph.erase_node(node)
        elif node.target is aten.view.default:
            node.target = aten.reshape.default  # training stores images channels last, where a view may not exist
    graph = fx.GraphModule(exported, exported.graph)
    spell_sizes(graph.graph)
    name_input_apart(graph.graph)
    graph.recompile()
    return graph
