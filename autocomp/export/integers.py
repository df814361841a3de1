"""Operators spelt so that the runtime executes them on integers, and executes them right."""

from onnx import GraphProto, NodeProto


def pad_codes(graph: GraphProto) -> None:
    """Pad codes instead of what they stand for, where both sides are on one grid.

    The runtime does not fuse Pad with the quantizations around it, but it has a kernel for uint8: zero is the code
    that the grid has for it.
    """
    readers: dict[str, list[NodeProto]] = {}
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    dropped: list[NodeProto] = []
    for pad in graph.node:
        if pad.op_type != "Pad" or pad.output[0] in outputs:
            continue
        before, after = makers.get(pad.input[0]), readers.get(pad.output[0], [])
        if before is None or before.op_type != "DequantizeLinear" or [n.op_type for n in after] != ["QuantizeLinear"]:
            continue
        axes = list(pad.input[3:4])
        source = pad.input[0]
        pad.input[0] = before.input[0]
        del pad.input[2:]
        pad.input.extend([before.input[2], *axes])
        pad.output[0] = after[0].output[0]
        dropped.append(after[0])
        if all(node is pad for node in readers[source]) and source not in outputs:
            dropped.append(before)
    kept = [node for node in graph.node if not any(node is other for other in dropped)]
    del graph.node[:]
    graph.node.extend(kept)
