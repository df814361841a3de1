"""Recurrent layers: where their weights are in a graph, and in the model that is written of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import fx

from autocomp.compress.parameters import aten


@dataclass(frozen=True)
class Cell:
    """A kind of recurrent layer. operator: of ONNX. gates: which of torch's gates comes first, second, … there."""

    operator: str
    gates: tuple[int, ...] = (0,)
    activation: str = ""

    def in_order(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows of a weight, or anything else that has a row for each, (gates · units, …), as the operator has them."""
        return np.concatenate([np.split(rows, len(self.gates))[gate] for gate in self.gates])


CELLS: dict[Any, Cell] = {
    aten.rnn_tanh.input: Cell("RNN", activation="Tanh"),
    aten.rnn_relu.input: Cell("RNN", activation="Relu"),
    aten.gru.input: Cell("GRU", (1, 0, 2)),  # reset, update, new → update, reset, hidden
    aten.lstm.input: Cell("LSTM", (0, 3, 1, 2)),  # input, forget, cell, output → input, output, forget, cell
}
OPERATORS = {cell.operator: cell for cell in CELLS.values()}
_AXES = "recurrent.axes"


def weights_of(node: fx.Node) -> list[fx.Node]:
    """The weights that a recurrent node reads, two for each layer and direction; [] where some have projections."""
    parameters, has_biases, layers, bidirectional = node.args[2], node.args[3], node.args[4], node.args[7]
    assert isinstance(parameters, list | tuple) and isinstance(layers, int)
    each = 4 if has_biases else 2
    if len(parameters) != each * layers * (2 if bidirectional else 1):
        return []
    return [weight for i, weight in enumerate(parameters) if i % each < 2]  # type: ignore[misc]


def steps_of(node: fx.Node) -> int:
    """Steps that a recurrent node goes over; 1 where their number is open."""
    source, batch_first = node.args[0], node.args[8]
    assert isinstance(source, fx.Node)
    shape = source.meta["val"].shape
    size = shape[1 if batch_first else 0] if len(shape) == 3 else 1
    return size if isinstance(size, int) else 1


# ---- their weights in the model ------------------------------------------------------------------------------------
def settle_recurrent(template: onnx.ModelProto, paths: set[str]) -> None:
    """Store the weights at `paths` as matrices, in the operator's order of gates, an Unsqueeze ahead of it.

    The exporter may have put the axis of directions into the stored tensor.
    """
    graph = template.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        cell = OPERATORS.get(node.op_type)
        for position in (1, 2) if cell is not None else ():
            assert cell is not None
            name = node.input[position]
            maker = makers.get(name)
            if maker is not None and maker.op_type == "Unsqueeze":
                name = maker.input[0]
            if name not in paths:  # shared, or computed: put in order by operators
                if len(cell.gates) > 1:
                    made, node.input[position] = _in_order(cell, node.input[position], f"{node.output[0]}.{position}")
                    nodes += made
                continue
            value = numpy_helper.to_array(stored[name])
            matrix = np.ascontiguousarray(cell.in_order(value.reshape(value.shape[-2:])))
            stored[name].CopyFrom(numpy_helper.from_array(matrix, name))
            if name == node.input[position]:
                if _AXES not in stored:
                    stored[_AXES] = graph.initializer.add()
                    stored[_AXES].CopyFrom(numpy_helper.from_array(np.array([0], np.int64), _AXES))
                node.input[position] = f"{name}.as_one"
                nodes.append(helper.make_node("Unsqueeze", [name, _AXES], [node.input[position]]))
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _in_order(cell: Cell, name: str, stem: str) -> tuple[list[onnx.NodeProto], str]:
    """Nodes that bring a weight (1, rows, columns) into the operator's order of gates, and what they make."""
    parts = [f"{stem}.{gate}" for gate in range(len(cell.gates))]
    split = helper.make_node("Split", [name], parts, axis=1, num_outputs=len(parts))
    joined = helper.make_node("Concat", [parts[gate] for gate in cell.gates], [f"{stem}.ordered"], axis=1)
    return [split, joined], f"{stem}.ordered"


def recurrent_readers(graph: onnx.GraphProto) -> dict[str, tuple[onnx.NodeProto, int]]:
    """Name of what an Unsqueeze makes → the recurrent operator that reads it as weights, and as which input."""
    return {
        node.input[position]: (node, position)
        for node in graph.node
        if node.op_type in OPERATORS
        for position in (1, 2)
    }  # fmt: skip
