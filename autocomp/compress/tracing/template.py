"""The float ONNX model of a traced network, whose tensors get the names that they have in the fx graph."""

import operator

import onnx
from torch import fx


def name_transposed_weights(template: onnx.ModelProto, graph: fx.GraphModule) -> None:
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


def name_split_results(template: onnx.ModelProto, graph: fx.Graph) -> None:
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


def name_input(template: onnx.ModelProto, graph: fx.Graph) -> None:
    """Give the input the name that it has in the fx graph, which keeps clear of Python's own: input is input_1."""
    placeholders = [node.name for node in graph.nodes if node.op == "placeholder"]
    names = {value.name: name for value, name in zip(template.graph.input, placeholders, strict=False)}
    for value in template.graph.input:
        value.name = names.get(value.name, value.name)
    for node in template.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = names.get(name, name)
