"""From a torch network to a NetworkSpec: layers, coupled channel groups, fused kernels, and what is left alone."""

import gc
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx
import torch
from torch import fx, nn

from autocomp.compress.agreement import Answers, answers, check_agreement
from autocomp.compress.executed import WORK_FILE, with_work
from autocomp.compress.graph import aten, capture, export_program
from autocomp.compress.normalize import name_input_apart, name_results
from autocomp.compress.plain_form import PlainForm, first_line, plain_form
from autocomp.compress.trace_cache import TraceCache, digest_of
from autocomp.compress.tracing.operators import op_name
from autocomp.compress.tracing.pads import part_pads
from autocomp.compress.tracing.pools import spell_pools
from autocomp.compress.tracing.recurrent import settle_recurrent
from autocomp.compress.tracing.reshapes import spell_sizes
from autocomp.compress.tracing.template import name_input, name_outputs, name_parts, settle_weights, told_apart
from autocomp.compress.tracing.traced import Traced, analyse
from autocomp.errors import UserError
from autocomp.network import LeftAlone

__all__ = ["Traced", "load", "trace"]

PROGRAM_FILE = "program.pt2"
TEMPLATE_FILE = "float.onnx"
#: What the exporter says of the node at which it failed: its name, its operator, and the first tensor that it reads.
_TRANSLATING = re.compile(r"translating node %(\w+) .*?target=torch\.ops\.(\w+\.\w+)(?:.*?args = \(%(\w+))?")
NAME_FILE, NOTES_FILE, OUTPUTS_FILE = "name", "notes.json", "outputs.json"


def trace(
    module: nn.Module, example: torch.Tensor, name: str, folder: Path | None = None, cache: TraceCache | None = None,
    output: str | int | None = None,
) -> Traced:  # fmt: skip
    """Trace `module` on `example` of shape (n, …), and check that what is traced computes the same.

    The graph and the ONNX template are kept in `folder`, from which `load` reads them back in another process. cache:
    where they come from, if this network was traced before, and are kept. output: name or number of the one that is
    scored, of a network that returns several tensors (`outputs`). The module is not changed.
    Raises UserError where it cannot be traced.
    """
    example = example.detach().cpu()
    network = plain_form(module, example, output)
    known = answers(network, example)
    with tempfile.TemporaryDirectory() as scratch:
        place = folder if folder is not None else Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        (place / NAME_FILE).write_text(name)
        (place / NOTES_FILE).write_text(json.dumps(network.notes))
        (place / OUTPUTS_FILE).write_text(json.dumps(network.outputs))
        (place / WORK_FILE).unlink(missing_ok=True)  # of another network that was traced there
        digest = digest_of(network, example) if cache is not None else ""
        if cache is not None and cache.fetch(digest, place):
            try:
                return _checked(place, network, known)
            except Exception:  # noqa: BLE001 what a file that is not ours may do is not known
                cache.forget(digest)
                (place / WORK_FILE).unlink(missing_ok=True)
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
    """Inside, Python's collector of cycles rests: to look through millions of nodes takes it a fifth."""
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
    (output,) = [node for node in captured.graph.nodes if node.op == "output"]
    if all(source.op == "placeholder" for source in output.all_input_nodes):
        raise UserError("the network returns its input as it is: there is nothing to compress")
    with told_apart(captured) as (true, marks):
        onnx_program = _export_onnx(captured, example)
        template = onnx_program.model_proto
    missing = settle_weights(template, true, marks)
    settle_recurrent(template, set(true))
    if missing:
        raise UserError(f"the network cannot be written as ONNX: the exporter left out {', '.join(missing)}")
    program = onnx_program.exported_program
    assert program is not None
    with torch.no_grad():
        for path, value in true.items():
            program.state_dict[path].copy_(value)
    torch.export.save(program, place / PROGRAM_FILE)
    graph = _load_graph(place)
    name_input(template, graph.graph)
    name_parts(template, graph.graph)
    name_outputs(template, graph.graph, network.outputs)
    spell_pools(template.graph, graph.graph)
    part_pads(template.graph, graph.graph)
    onnx.save(template, place / TEMPLATE_FILE)


def _export_onnx(captured: fx.GraphModule, example: torch.Tensor) -> torch.onnx.ONNXProgram:
    from autocomp.compress.tracing.translate import translations  # what it imports is large, and needed here alone

    # The exporter's registry warns about torchvision's operators, which nobody asked for.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                export_program(captured, example), dynamo=True, optimize=True, verbose=False,
                custom_translation_table=translations(),
            )  # fmt: skip
        except Exception as error:
            raise UserError(_untranslated(error, captured.graph)) from error
    assert program is not None
    return program


def _untranslated(error: Exception, graph: fx.Graph) -> str:
    """The line for what the exporter cannot write, with the operator and the module that calls it."""
    cause: BaseException = error  # the exporter's own errors say how to debug it, the first one what is wrong
    where = None
    while True:
        where = _TRANSLATING.search(str(cause)) or where
        if cause.__cause__ is None:
            break
        cause = cause.__cause__
    said = f"{type(cause).__name__}: {first_line(cause)}"
    if where is None:
        return f"the network cannot be written as ONNX: {said}"
    name, target, reads = where.groups()
    nodes = {node.name: node for node in graph.nodes}
    # What the exporter took apart is known by what it reads.
    node = nodes.get(name) or next(iter(nodes[reads].users), None) if name in nodes or reads in nodes else None
    operator = op_name(node) if node is not None else target.removeprefix("aten.")
    stack = list(node.meta.get("nn_module_stack", {}).values()) if node is not None else []
    module = f" in {stack[-1][0]}" if stack and stack[-1][0] else ""
    return (
        f"the network cannot be written as ONNX: the exporter does not take {operator}{module} ({said}); "
        "write that part with other operators"
    )


def load(folder: Path) -> Traced:
    """A network that `trace` kept in `folder`."""
    template = (folder / TEMPLATE_FILE).read_bytes()
    graph = _load_graph(folder)
    traced = analyse(graph, template, (folder / NAME_FILE).read_text())
    written = {*traced.weights.values(), *traced.biases.values()}
    for path, parameter in graph.named_parameters():
        parameter.requires_grad_(path in written)  # what files do not hold anew must not change in training
    notes = [LeftAlone("the network", "trace", note) for note in json.loads((folder / NOTES_FILE).read_text())]
    spec = replace(traced.spec, left_alone=(*notes, *traced.spec.left_alone))
    return replace(traced, spec=with_work(spec, traced.starts, traced.tensors, traced.template, folder))


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
    name_results(graph.graph, json.loads((folder / OUTPUTS_FILE).read_text()))
    graph.recompile()
    return graph
