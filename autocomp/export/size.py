"""Bytes of a file before it is written: payload by arithmetic, everything else by building each part once."""

from collections.abc import Mapping
from functools import cache
from math import prod

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from autocomp.compress.network import LayerWeights
from autocomp.compress.quantize import TensorRange, kept_weights
from autocomp.compress.trace import Traced
from autocomp.export.functions import bias_function, weight_function, weight_function_name
from autocomp.export.packing import Packing, choose_packing
from autocomp.export.writer import FIXED_ARGUMENTS, OnnxWriter, Parts, layer_consumers
from autocomp.network import NETWORK_INPUT, LayerSpec
from autocomp.policy import LayerPolicy

Ints = NDArray[np.int64]


def field_bytes(message: Message) -> int:
    """Bytes of a message inside its parent: tag, length and content."""
    size = message.ByteSize()
    return size + 1 + len_bytes(size)


def len_bytes(length: int) -> int:
    """Bytes of a protobuf varint."""
    return max(1, (length.bit_length() + 6) // 7)


class FileSizes:
    """Implements `hardware.cost.Sizes` for the files that an `OnnxWriter` writes."""

    def __init__(self, writer: OnnxWriter) -> None:
        self.traced: Traced = writer.traced
        self._writer = writer
        template = writer.template
        consumers = layer_consumers(self.traced, template.graph)
        self._transposed = {layer: node.op_type == "MatMul" for layer, node in consumers.items()}
        replaced = set(writer.layer_initializers())
        stored = sum(field_bytes(i) for i in template.graph.initializer if i.name in replaced)
        self._fixed = template.ByteSize() - stored
        self._layer = cache(self._layer_overhead)

    def fixed_bytes(self) -> int:
        return self._fixed

    def layer_bytes(self, layer: LayerSpec, decision: LayerPolicy, out_channels: Ints, weights: Ints) -> Ints:
        """Bytes of one layer's tensors and nodes. out_channels, weights: equally shaped counts."""
        kept = np.array([kept_weights(int(w), decision.sparsity) for w in weights])
        bits = decision.weight_bits
        width = 32 if bits is None else bits
        dense = _payload(width, weights)
        sparse = _payload(width, kept) + (weights + 7) // 8
        # The same choice as `choose_packing`, for arrays.
        masked = (kept < weights) & ((width == 2) | (sparse < dense))
        total = np.where(masked, sparse, dense)
        overhead = np.where(masked, self._layer(layer.name, bits, decision.activation, True),
                            self._layer(layer.name, bits, decision.activation, False))  # fmt: skip
        per_channel = (0 if bits is None else 2) + ((4 if bits is None else 2) if layer.bias else 0)
        return np.asarray(total + overhead + per_channel * out_channels, dtype=np.int64)

    def tensor_bytes(self, kernel: int) -> int:
        parts = Parts()
        name = self.traced.input_name if kernel == NETWORK_INPUT else self.traced.tensors[kernel]
        parts.quantize_dequantize(kernel, name, TensorRange(0.1, 7), is_output=False)
        nodes = sum(field_bytes(node) for nodes in parts.after.values() for node in nodes)
        # Zero-points are shared between tensors: only the scale is a tensor's own.
        return nodes + field_bytes(parts.initializers[0])

    def function_bytes(self, layer: LayerSpec, decision: LayerPolicy) -> Mapping[str, int]:
        count = prod(layer.weight_shape)
        packing = choose_packing(decision.weight_bits, count, kept_weights(count, decision.sparsity))
        if packing.bits == 32 and not packing.sparse:
            return {}
        transposed = self._transposed[layer.name]
        needed = dict([_function_size(packing, decision.activation == "int8", transposed)])
        if layer.bias and decision.weight_bits is not None:
            integer = decision.activation == "int8" and not transposed
            needed |= dict([_bias_size(integer)])
        return needed

    def _layer_overhead(self, name: str, bits: int | None, activation: str, sparse: bool) -> int:
        """Bytes of a layer that are not its weights, scales and bias values: headers, names, nodes."""
        layer = self.traced.spec.layer_by_name[name]
        shape = (8, *[1] * (len(layer.weight_shape) - 1))
        mask = None
        if sparse:
            mask = np.zeros(shape, dtype=bool)
            mask.flat[0] = True
        integers = None if bits is None else np.full(shape, 3, np.int8)
        tiny = LayerWeights(
            np.ones(shape, np.float32), np.zeros(8, np.float32) if layer.bias else None, bits, activation == "int8",
            integers, np.float32(1), None if bits is None else np.ones(8, np.float16), mask,
        )  # fmt: skip
        parts = Parts()
        short = self._writer.short_name(name)
        transposed = self._transposed[name]
        packing = Packing(32 if bits is None else bits, sparse)
        parts.weight(short, tiny, transposed, packing)
        if layer.bias:
            parts.bias(short, tiny, "s10", float_bias=transposed)
        total = sum(field_bytes(i) for i in parts.initializers) + sum(field_bytes(n) for n in parts.prologue)
        payload = sum(len(i.raw_data) for i in parts.initializers if not i.name.endswith(FIXED_ARGUMENTS))
        # Lengths above 127 take one or two bytes more in the header of a large tensor.
        return total - payload + 3 * len(parts.initializers)


def _payload(width: int, values: Ints | NDArray[np.int64]) -> Ints:
    if width >= 8:
        return np.asarray(values * (width // 8), dtype=np.int64)
    return np.asarray((values + 7) // 8 * width, dtype=np.int64)


@cache
def _function_size(packing: Packing, integer: bool, transposed: bool) -> tuple[str, int]:
    name = weight_function_name(packing, integer, transposed)
    return name, field_bytes(weight_function(packing, integer, transposed))


@cache
def _bias_size(integer: bool) -> tuple[str, int]:
    function = bias_function(integer)
    return function.name, field_bytes(function)
