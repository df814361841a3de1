"""Poolings spelt in the ONNX model so that ONNX and its runtime take them as torch does."""

import torch
from onnx import GraphProto, NodeProto, helper
from torch import fx


def spell_pools(template: GraphProto, graph: fx.Graph) -> None:
    """Respell each pooling of `template`; `graph` is the fx graph that it was exported from."""
    sizes = pool_sizes(graph)
    for node in template.node:
        if node.op_type in ("AveragePool", "MaxPool") and node.output[0] in sizes:
            spell_pool(node, *sizes[node.output[0]])


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
