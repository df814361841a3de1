"""Bytes of the file that Vela makes, before there is one: what the device stores, where the budget applies.

Encoded weights (`encoded`), scale and bias of each output channel, a command stream that grows with the number of
kernels, zeros that an image is padded by, and what the flatbuffer takes around it. All but the first were fitted to 20
compiled networks, where they leave 1 % of the file at most (docs/npu.md).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from autocomp.hardware.choices import layer_sizes
from autocomp.hardware.ethos_u.encoded import EncodedWeights
from autocomp.hardware.ethos_u.pooling import pad_of
from autocomp.kernel import Kernel, WeightCoding
from autocomp.network import LayerSpec, NetworkSpec
from autocomp.policy import LayerPolicy, Policy

Ints = NDArray[np.int64]

#: Scale, shift and bias of an output channel, as the weight decoder reads them: ten bytes, in blocks of 16.
SCALE_BYTES = 10.8
#: Commands of one kernel: registers that are set for its blocks.
COMMAND_BYTES = 117
#: The flatbuffer around it: one custom operator, its tensors and metadata.
CONTAINER_BYTES = 700


class CompiledSizes:
    """`hardware.cost.Sizes` of a network on an NPU, from the table's encoded bytes."""

    def __init__(self, network: NetworkSpec, encoded: EncodedWeights) -> None:
        self._network, self._encoded = network, encoded
        self._nodes = {node.layer: node for node in network.kernels if node.layer is not None}
        kernels = [node.kernel("int8") for node in network.kernels if not node.free]
        self._fixed = CONTAINER_BYTES + COMMAND_BYTES * len(kernels) + sum(_zeros_around(kernel) for kernel in kernels)

    def fixed_bytes(self) -> int:
        """Of every compiled file of the network, whatever its policy; poolings count with all of their channels."""
        return self._fixed

    def layer_bytes(self, layer: LayerSpec, decision: LayerPolicy, out_channels: Ints, weights: Ints) -> Ints:
        """Encoded weights, scales and biases of a layer, for arrays of channel and weight counts."""
        node, coding = self._nodes[layer.name], WeightCoding.of(decision)
        window = node.kernel_h * node.kernel_w
        inputs = out_channels if layer.depthwise else weights // np.maximum(out_channels * window, 1) * node.groups
        kernels: list[Kernel] = [
            node.sized("int8", int(count_in), int(count_out), coding)
            for count_in, count_out in zip(inputs.ravel(), out_channels.ravel(), strict=True)
        ]
        encoded = self._encoded.bytes(kernels).reshape(out_channels.shape)
        return np.rint(encoded + SCALE_BYTES * out_channels).astype(np.int64)

    def of_policy(self, policy: Policy) -> int:
        """Bytes of the whole file under `policy`."""
        total = self.fixed_bytes()
        for layer in self._network.layers:
            counts = (np.array([channels.count(policy)]) for channels in (layer.in_channels, layer.out_channels))
            total += int(self.layer_bytes(layer, policy.layer(layer.name), *layer_sizes(layer, *counts))[0])
        return total

    def tensor_bytes(self, kernel: int) -> int:
        """Quantization parameters stand in the commands."""
        return 0

    def dequantize_bytes(self, kernel: int) -> int:
        return 0

    def dequantize_function_bytes(self) -> int:
        return 0

    def function_bytes(self, layer: LayerSpec, decision: LayerPolicy) -> Mapping[str, int]:
        return {}


def _zeros_around(kernel: Kernel) -> int:
    """Zeros that a max pooling's PAD copies from the file; those of an average the hardware makes."""
    if kernel.op != "max_pool":
        return 0
    border = pad_of(kernel)
    rows = sum(border.rows) * (kernel.width + sum(border.columns))
    return kernel.in_channels * (rows + sum(border.columns) * kernel.height)
