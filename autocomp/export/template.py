"""The float ONNX model that every file of a network is made from."""

import itertools

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from autocomp.compress.trace import Traced
from autocomp.compress.tracing.operators import is_flatten
from autocomp.compress.tracing.recurrent import recurrent_readers
from autocomp.compress.tracing.reshapes import onnx_sizes

PRODUCER = "autocomp"


def float_template(traced: Traced) -> ModelProto:
    """The float network as a small ONNX model: no debugging metadata, pooling and flattening spelt for the runtime."""
    model = onnx.load_model_from_string(traced.template)
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    model.doc_string = graph.doc_string = ""
    graph.name = traced.spec.name
    model.producer_name, model.producer_version = PRODUCER, ""
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    for value in (*graph.input, *graph.output):
        axes = value.type.tensor_type.shape.dim
        if len(axes) and not axes[0].HasField("dim_value"):  # a further output may be the same for all examples
            axes[0].dim_param = "batch"
    _spell_pooling(graph, {n.name for n in traced.graph.graph.nodes if n.op == "call_function" and is_flatten(n)})
    _spell_reshapes(graph, traced)
    _drop_unused(graph)
    _name_nodes(graph, layer_consumers(traced, graph))
    return model


def _name_nodes(graph: GraphProto, consumers: dict[str, NodeProto]) -> None:
    """A layer's node is called by the layer, the others n0, n1, … where no layer is called so.

    A recurrent operator has two layers: it is called by the one, its first result by the other.
    """
    free = (name for name in (f"n{i}" for i in itertools.count()) if name not in consumers)
    for node in graph.node:
        node.name = next(free)
    readers = recurrent_readers(graph)
    renamed: dict[str, str] = {}
    for layer, node in consumers.items():
        operator, position = readers.get(node.output[0], (node, 1))
        result = next(i for i, name in enumerate(operator.output) if name)
        if position == 1:
            operator.name = layer
        else:
            renamed[operator.output[result]] = layer
            operator.output[result] = layer
    for node in graph.node if renamed else ():
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)


def layer_consumers(traced: Traced, graph: GraphProto) -> dict[str, NodeProto]:
    """Layer name → the node that reads its weight, as the input that `weight_input` says."""
    layer_of = {path: layer for layer, path in traced.weights.items()}
    return {
        layer_of[n.input[weight_input(n)]]: n
        for n in graph.node
        if len(n.input) > weight_input(n) and n.input[weight_input(n)] in layer_of
    }


def weight_input(node: NodeProto) -> int:
    """Position of the weights among a layer's inputs: a table is what Gather reads first, a recurrent operator's matrix
    is all that an Unsqueeze reads."""
    return 0 if node.op_type in ("Gather", "Unsqueeze") else 1


def _spell_pooling(graph: GraphProto, flattens: set[str]) -> None:
    """ReduceMean over the image becomes GlobalAveragePool, which has an integer kernel; (n, c, …) → (n, c·…) Flatten.

    flattens: names of the results of such reshapes; a Flatten holds no number of channels, which pruning changes.
    """
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer if i.data_type == TensorProto.INT64}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "ReduceMean" and len(node.input) > 1 and node.input[1] in constants:
            axes = sorted(int(a) for a in constants[node.input[1]])
            keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
            if axes in ([2, 3], [-2, -1]):
                result = node.output[0]
                pooled = result if keep else f"{result}_4d"
                nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled]))
                if not keep:
                    nodes.append(helper.make_node("Flatten", [pooled], [result], axis=1))
                continue
        if node.op_type == "Reshape" and node.output[0] in flattens:
            nodes.append(helper.make_node("Flatten", [node.input[0]], [node.output[0]], axis=1))
            continue
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _spell_reshapes(graph: GraphProto, traced: Traced) -> None:
    """Give each reshape that says a number of channels a tensor of sizes of its own, r0, r1, …, for `build` to set."""
    nodes = {node.name: node for node in traced.graph.graph.nodes}
    for index, (name, node) in enumerate(resized(graph, traced).items()):
        node.input[1] = f"r{index}"
        del node.attribute[:]
        graph.initializer.append(numpy_helper.from_array(np.array(onnx_sizes(nodes[name]), np.int64), node.input[1]))


def resized(graph: GraphProto, traced: Traced) -> dict[str, NodeProto]:
    """Result → the Reshape that makes it, of those that say a number of channels that pruning may change."""
    return {n.output[0]: n for n in graph.node if n.op_type == "Reshape" and n.output[0] in traced.reshapes}


def _drop_unused(graph: GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [i for i in graph.initializer if i.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
