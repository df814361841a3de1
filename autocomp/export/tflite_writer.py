"""From a compressed network to an int8 .tflite file, as NPUs and LiteRT execute it."""

from pathlib import Path

import numpy as np
from torch import fx

from autocomp.compress.graph import LAYERS, weight_path
from autocomp.compress.network import CompressedNetwork
from autocomp.compress.quantize import TensorRange
from autocomp.compress.trace import Traced
from autocomp.compress.tracing.operators import op_name
from autocomp.errors import UserError
from autocomp.export.tflite_operators import OPERATORS, Call, Graph, Stored, bounds_of, inexpressible
from autocomp.network import NETWORK_INPUT
from autocomp.tflite.builder import Affine, ModelBuilder, Tensor
from autocomp.whole_file import write_whole


class TfliteWriter:
    """Writes compressed networks of one traced network, quantized with `integer_only`."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self._nodes: dict[str, fx.Node] = {node.name: node for node in traced.graph.graph.nodes}

    def build(self, network: CompressedNetwork) -> bytes:
        """The bytes of the file. UserError naming the layer or kernel that int8 TFLite cannot express."""
        self._check_integers(network)
        builder = ModelBuilder()
        graph = Graph(builder, network)
        affines = {index: _int8(range) for index, range in network.ranges.items()}
        source = self._nodes[self.traced.input_name]
        graph.values[source] = self._input(builder, affines[NETWORK_INPUT])
        for index, kernel in enumerate(self.traced.spec.kernels):
            node, end = self._nodes[self.traced.starts[index]], self._nodes[self.traced.tensors[index]]
            lower = OPERATORS.get(node.target)
            if lower is None:
                raise inexpressible(kernel.name, f"the operator {op_name(node)}")
            call = Call(kernel, node, affines[index], bounds_of(end) if end is not node else None)
            graph.values[end] = lower(graph, call)
        return builder.finish([self._output(graph)])

    def write(self, network: CompressedNetwork, path: Path) -> int:
        """Write the file; returns its size in bytes. Nothing is left at `path` if it cannot be written whole."""
        return write_whole(path, self.build(network))

    def _check_integers(self, network: CompressedNetwork) -> None:
        if not network.execution.integer_only:
            raise ValueError("a .tflite is written from a network that was quantized with integer_only=True")
        reasons = {left.name: left.reason for left in self.traced.spec.left_alone if left.what == "quantize"}
        for index, (kernel, precision) in enumerate(
            zip(self.traced.spec.kernels, network.execution.precisions, strict=True)
        ):
            if precision != "int8":
                assert kernel.layer is not None
                raise UserError(
                    f"layer {kernel.layer}: the policy says {network.policy.layer(kernel.layer)}, but an int8 .tflite "
                    "has no float layers: set its activation to int8 and its weight_bits to 2…8"
                )
            node = self._nodes[self.traced.starts[index]]
            if kernel.layer is None and node.target in LAYERS:
                layer = (weight_path(node) or kernel.name).removesuffix(".weight")
                reason = reasons.get(layer, "its weight is not a stored tensor of its own")
                raise inexpressible(layer, f"a layer that cannot be quantized ({reason})")

    def _input(self, builder: ModelBuilder, affine: Affine) -> Stored:
        """The network's input, channels last; a signal of (channels, length) becomes an image of height 1."""
        shape = self.traced.spec.input_shape
        if len(shape) not in (1, 2, 3):
            raise inexpressible(self.traced.input_name, f"an input of shape {shape}")
        tensor = builder.input("input", (1, *shape[1:], shape[0]), affine)
        if len(shape) == 2:
            tensor = builder.reshape("input_image", tensor, (-1, 1, shape[1], shape[0]))
        return Stored(tensor)

    def _output(self, graph: Graph) -> Tensor:
        """The network's result, channels last, with as many axes as torch's."""
        (output,) = [node for node in self._nodes.values() if node.op == "output"]
        (result,) = output.all_input_nodes
        value = graph.read(result)
        if value.order is not None:
            raise inexpressible(result.name, "an image that is flattened at the network's output")
        tensor = graph.plain(result.name, value)
        if len(result.meta["val"].shape) == 3:
            tensor = graph.builder.reshape("output", tensor, (-1, *tensor.shape[2:]))
        return tensor


def _int8(range: TensorRange) -> Affine:
    """A uint8 range as TFLite counts it: from −128 instead of 0."""
    return Affine(float(np.float32(range.scale)), range.zero_point - 128)
