"""Operators spelt so that the runtime executes them on integers, and executes them right."""

import torch
from onnx import GraphProto, NodeProto, helper
from torch import fx


def pool_sizes(graph: fx.Graph) -> dict[str, tuple[list[int], list[int]]]:
    """Name of each pooling's result → (spatial sizes of what it reads, of its result)."""
    pools = (n for n in graph.nodes if n.op == "call_function" and "_pool" in str(n.target))
    return {
        node.name: (list(node.args[0].meta["val"].shape[2:]), list(node.meta["val"].shape[2:]))
        for node in pools
        if isinstance(node.meta.get("val"), torch.Tensor)
    }


def spell_pool(pool: NodeProto, before: list[int], after: list[int]) -> None:
    """Say by padding at the end what ceil_mode says, and that an average without padding does not count it.

    before, after: spatial sizes. Neither changes a result. But with count_include_pad, the runtime's integer kernel
    divides a window that is cut at the edge by its whole size (11 to 13 % off in small networks); and ONNX's rule for
    sizes counts windows that would begin behind the image, which torch and the runtime's kernels leave out.
    """
    values = {a.name: helper.get_attribute_value(a) for a in pool.attribute}
    window, axes = list(values["kernel_shape"]), len(before)
    pads = list(values.get("pads", [])) or [0] * 2 * axes
    strides, gaps = (list(values.get(name, [])) or [1] * axes for name in ("strides", "dilations"))
    if not any(pads):
        values.pop("count_include_pad", None)
    if values.get("ceil_mode"):
        beyond = [
            (after[i] - 1) * strides[i] + gaps[i] * (window[i] - 1) + 1 - before[i] - pads[i] - pads[axes + i]
            for i in range(axes)
        ]
        if max(beyond) <= 0 or not values.get("count_include_pad"):
            values["pads"] = pads[:axes] + [pads[axes + i] + max(beyond[i], 0) for i in range(axes)]
            del values["ceil_mode"]
    del pool.attribute[:]
    pool.attribute.extend(helper.make_attribute(name, value) for name, value in sorted(values.items()))


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
