"""Padding that the exporter merged into a convolution, although another operator reads it too."""

from onnx import GraphProto, helper
from torch import fx

from autocomp.compress.parameters import CONVOLUTIONS, argument, per_axis


def part_pads(template: GraphProto, graph: fx.Graph) -> None:
    """Let each convolution of `template` read what it reads in `graph`, wherever that has a name in the model.

    The exporter merges a padding into a convolution behind it. Where something else reads the padded tensor, that is
    there as well, and is what the convolution's quantization belongs to.
    """
    made = {name: node for node in template.node for name in node.output}
    for node in graph.nodes:
        convolution = made.get(node.name) if node.target in CONVOLUTIONS else None
        source = node.args[0] if node.args else None
        if convolution is None or convolution.op_type != "Conv" or not isinstance(source, fx.Node):
            continue
        padded = made.get(source.name)
        if padded is None or padded.op_type != "Pad" or convolution.input[0] == source.name:
            continue
        sizes = per_axis(argument(node, 4, "padding", 0), len(node.meta["val"].shape) - 2)
        kept = [attribute for attribute in convolution.attribute if attribute.name not in ("pads", "auto_pad")]
        del convolution.attribute[:]
        convolution.attribute.extend([*kept, helper.make_attribute("pads", [*sizes, *sizes])])
        convolution.input[0] = source.name
