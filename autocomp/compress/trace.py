"""From a torch network to a NetworkSpec: layers, coupled channel groups, fused kernels, and what is left alone."""

import logging
import tempfile
import warnings
from pathlib import Path

import onnx
import torch
from torch import fx, nn

from autocomp.compress.graph import aten, capture, export_program
from autocomp.compress.tracing.template import name_input, name_split_results, name_transposed_weights
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
    # The exporter's registry warns about torchvision's operators, which nobody asked for.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            onnx_program = torch.onnx.export(
                export_program(captured, example), dynamo=True, optimize=True, verbose=False
            )
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(f"the network cannot be written as ONNX: {type(error).__name__}: {reason}") from error
    assert onnx_program is not None and onnx_program.exported_program is not None
    with tempfile.TemporaryDirectory() as scratch:
        place = folder if folder is not None else Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        torch.export.save(onnx_program.exported_program, place / PROGRAM_FILE)
        template = onnx_program.model_proto
        name_transposed_weights(template, captured)
        name_split_results(template, onnx_program.exported_program.graph)
        onnx.save(template, place / TEMPLATE_FILE)
        (place / "name").write_text(name)
        return load(place)


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
    name_input(template, graph.graph)
    return analyse(graph, template.SerializeToString(), (folder / "name").read_text())
