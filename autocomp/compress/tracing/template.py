"""The float ONNX model of a traced network, whose tensors have the names that they have in the fx graph."""

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import fx

from autocomp.compress.parameters import get_parameter
from autocomp.compress.tracing.layers import layer_calls, weight_only_calls

Values = dict[str, torch.Tensor]


@contextmanager
def told_apart(graph: fx.GraphModule) -> Iterator[tuple[Values, Values]]:
    """While it lasts, no two weights or biases of layers have a value in common; (true values, marks) by path.

    The exporter merges tensors of the same bytes, and with them layers that read the same input, drops biases of
    zeros, and stores weights transposed under other names: what is marked can be neither merged, dropped nor lost.
    """
    calls = [call for found in (layer_calls, weight_only_calls) for call in found(graph.graph)[0]]
    paths = [path for call in calls for path in (call.weight, call.bias) if path is not None]
    true = {path: get_parameter(graph, path).detach().clone() for path in paths}
    marks = {
        path: index + 1 + torch.arange(1, value.numel() + 1).reshape(value.shape) / (2 * value.numel() + 2)
        for index, (path, value) in enumerate(true.items())
    }
    try:
        _set(graph, marks)
        yield true, marks
    finally:
        _set(graph, true)


def _set(graph: fx.GraphModule, values: Values) -> None:
    with torch.no_grad():
        for path, value in values.items():
            get_parameter(graph, path).copy_(value)


def settle_weights(template: onnx.ModelProto, true: Values, marks: Values) -> list[str]:
    """Give the weights and biases of layers their names and true values back, transposed where they are stored so.

    Returns the paths of those that the model does not hold.
    """
    by_mark = {int(mark.flatten()[0]): path for path, mark in marks.items()}
    names: dict[str, str] = {}
    for stored in template.graph.initializer:
        if stored.data_type != onnx.TensorProto.FLOAT or not stored.dims:
            continue
        value = numpy_helper.to_array(stored)
        path = by_mark.get(int(value.flat[0])) if value.size and np.isfinite(value.flat[0]) else None
        if path is None:
            continue
        if value.ndim == marks[path].ndim + 1 and value.shape[0] == 1:
            value = value[0]  # a recurrent operator's axis of directions
        turned = _turned(value, marks[path].numpy().astype(np.float32))
        if turned is None:
            continue
        names[stored.name] = path
        array = true[path].numpy().transpose(turned)
        stored.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), path))
    for node in template.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = names.get(name, name)
    return sorted(set(true) - set(names.values()))


def _turned(value: NDArray[np.float32], mark: NDArray[np.float32]) -> tuple[int, ...] | None:
    """Order of axes that makes a mark of what is stored; None if it is another tensor."""
    for order in (tuple(range(mark.ndim)), tuple(reversed(range(mark.ndim)))):
        turned = mark.transpose(order)
        if turned.shape == value.shape and np.array_equal(turned, value):
            return order
    return None


def name_parts(template: onnx.ModelProto, graph: fx.Graph) -> None:
    """Give the parts of operators with several results the names of the fx nodes that pick them.

    The exporter calls part 1 of `split` split_split_1, of `topk` topk_1.
    """
    made = {name for node in template.graph.node for name in node.output}
    outputs = {value.name for value in template.graph.output}
    names: dict[str, str] = {}
    for node in graph.nodes:
        if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
            continue
        maker, part = node.args[0].name, node.args[1]
        for spelt in (f"{maker}_split_{part}", f"{maker}_{part}"):
            if spelt in made and spelt not in outputs and node.name not in made:
                names[spelt] = node.name
                break
    for node in template.graph.node:
        for values in (node.input, node.output):
            for position, name in enumerate(values):
                values[position] = names.get(name, name)


def name_outputs(template: onnx.ModelProto, graph: fx.Graph, outputs: Sequence[str]) -> None:
    """Give the outputs the names of the fx nodes that make them; of those that share a node, the user's own."""
    (returned,) = [node for node in graph.nodes if node.op == "output"]
    results = returned.args[0]
    nodes = list(results) if isinstance(results, tuple | list) else [results]
    names: dict[str, str] = {}
    for value, node, name in zip(template.graph.output, nodes, outputs, strict=False):
        made = isinstance(node, fx.Node) and node.op == "call_function" and node.name not in names.values()
        names[value.name] = node.name if made else name
    values = {name for node in template.graph.node for name in node.output}
    values |= {stored.name for stored in template.graph.initializer}
    # What the exporter itself called so makes room.
    names |= {name: f"{name}_inner" for name in values & set(names.values()) - set(names)}
    for value in (*template.graph.output, *template.graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in template.graph.node:
        for side in (node.input, node.output):
            for position, name in enumerate(side):
                side[position] = names.get(name, name)


def name_input(template: onnx.ModelProto, graph: fx.Graph) -> None:
    """Give the input the name that it has in the fx graph, which keeps clear of Python's own: input is input_1."""
    placeholders = [node.name for node in graph.nodes if node.op == "placeholder"]
    names = {value.name: name for value, name in zip(template.graph.input, placeholders, strict=False)}
    for value in template.graph.input:
        value.name = names.get(value.name, value.name)
    for node in template.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = names.get(name, name)
