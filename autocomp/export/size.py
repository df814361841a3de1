"""Bytes of a file before it is written: payload by arithmetic, everything else by building each part once.

Where a byte depends on more than one layer (a zero-point that two tensors may share, a name that a reader spells
shorter), the larger figure counts: a candidate that fits the budget by this count has a file that fits.
"""

from collections.abc import Mapping
from functools import cache
from math import prod

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray
from onnx import ModelProto, helper

from autocomp.compress.masks import kept_of_shape
from autocomp.compress.network import LayerWeights, float_results
from autocomp.compress.quantize import TensorRange
from autocomp.compress.trace import Traced
from autocomp.export.functions import (
    DOMAIN,
    bias_function,
    plain_dequantize_function,
    weight_function,
    weight_function_name,
)
from autocomp.export.limits import limit_entry
from autocomp.export.packing import PLANES, Packing, choose_packing, lacks_zero
from autocomp.export.template import layer_consumers, weight_input
from autocomp.export.writer import (
    BIAS,
    FIXED_ARGUMENTS,
    OnnxWriter,
    Parts,
    replace_input,
)
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
        template = ModelProto()
        template.CopyFrom(writer.template)
        consumers = layer_consumers(self.traced, template.graph)
        self._transposed = {layer: node.op_type == "MatMul" for layer, node in consumers.items()}
        self._float_results = float_results(self.traced.spec)
        self._flattened = {n.output[0] for n in template.graph.node if n.op_type == "Flatten"}
        replaced = set(writer.layer_initializers())
        for layer, node in consumers.items():
            bias = self.traced.biases.get(layer)
            if bias is not None:
                replace_input(template.graph, node, bias, writer.short_name(layer) + BIAS)
            node.input[weight_input(node)] = writer.short_name(layer)
        kept = [i for i in template.graph.initializer if i.name not in replaced]
        del template.graph.initializer[:]
        template.graph.initializer.extend(kept)
        # Every quantized file names the domain of its functions; the graph's own length may take two bytes more.
        self._fixed = template.ByteSize() + field_bytes(helper.make_opsetid(DOMAIN, 1)) + 2
        self._layer = cache(self._layer_overhead)

    def fixed_bytes(self) -> int:
        return self._fixed

    def layer_bytes(self, layer: LayerSpec, decision: LayerPolicy, out_channels: Ints, weights: Ints) -> Ints:
        """Bytes of one layer's tensors and nodes. out_channels, weights: equally shaped counts."""
        shapes = [_shape(layer, int(out), int(count)) for out, count in zip(out_channels, weights, strict=True)]
        kept = np.array([kept_of_shape(shape, decision.sparsity, decision.pattern) for shape in shapes])
        bits, clustered = decision.stored_bits, decision.clusters is not None
        width = 32 if bits is None else bits
        codebook = [np.full_like(weights, 2**width)] if clustered else []
        dense = [*_values(width, weights), *codebook]
        sparse = [*_values(width, kept), *codebook, (weights + 7) // 8]
        # The same choice as `choose_packing`, for arrays.
        masked = (kept < weights) & (lacks_zero(width, clustered) | (sum(sparse) < sum(dense)))
        per_channel = [] if bits is None else [2 * out_channels]
        if layer.bias:
            per_channel.append((2 if self._bias_kind(layer.name, decision) == "Bias" else 4) * out_channels)
        totals = [
            sum(tensor + _header_growth(tensor) for tensor in (*tensors, *per_channel))
            + self._layer(layer.name, decision.precision, is_sparse)
            for tensors, is_sparse in ((sparse, True), (dense, False))
        ]
        return np.asarray(np.where(masked, *totals), dtype=np.int64)

    def tensor_bytes(self, kernel: int) -> int:
        parts = Parts()
        if kernel == NETWORK_INPUT:
            name, is_output, shares_zero, pooled = self.traced.input_name, False, False, False
        else:
            name, is_output = self.traced.tensors[kernel], self.traced.spec.kernels[kernel].output
            shares_zero, pooled = self._behind_relu(kernel), self.traced.spec.kernels[kernel].op == "max_pool"
        parts.quantize(kernel, name, TensorRange(0.1, 0 if shares_zero else 255), is_output, pooled)
        parts.dequantize(kernel, name if is_output else "")
        if name in self._flattened:
            parts.quantize_dequantize_flatten(kernel, name, TensorRange(0.1, 255))
        total = sum(field_bytes(node) for nodes in parts.after.values() for node in nodes)
        if is_output:
            total += len("_raw")  # what makes the tensor writes to another name
        scale, zero = parts.initializers
        return total + field_bytes(scale) + (0 if shares_zero else field_bytes(zero)) + 1

    def _behind_relu(self, kernel: int) -> bool:
        """Whether a tensor's zero-point is 0, of which a file has one."""
        node = self.traced.spec.kernels[kernel]
        while node.keeps_range and node.inputs[0] != NETWORK_INPUT:
            kernel = node.inputs[0]
            node = self.traced.spec.kernels[kernel]
        return self.traced.starts[kernel] != self.traced.tensors[kernel]

    def dequantize_bytes(self, kernel: int) -> int:
        parts = Parts()
        parts.quantize(kernel, "x", TensorRange(0.1, 255), is_output=False)
        parts.plain_dequantize(kernel)
        return field_bytes(parts.after["x"][-1])

    def dequantize_function_bytes(self) -> int:
        return field_bytes(plain_dequantize_function())

    def function_bytes(self, layer: LayerSpec, decision: LayerPolicy) -> Mapping[str, int]:
        kept = kept_of_shape(layer.weight_shape, decision.sparsity, decision.pattern)
        clustered = decision.clusters is not None
        packing = choose_packing(decision.stored_bits, prod(layer.weight_shape), kept, clustered)
        if packing.bits == 32 and not packing.sparse:
            return {}
        transposed = self._transposed[layer.name]
        integer = decision.activation == "int8"
        needed = dict([_function_size(packing, integer, transposed, self._writer.unsigned_weights)])
        if integer and not self._writer.unsigned_weights and (packing.clustered or packing.bits == 8):
            needed |= dict([_limit_size()])
        if layer.bias and (kind := self._bias_kind(layer.name, decision)):
            needed |= dict([_bias_size(kind == "ExactBias")])
        return needed

    def _bias_kind(self, layer: str, decision: LayerPolicy) -> str:
        """The function that a layer's bias is stored for, "" where it is plain float32."""
        if decision.activation != "int8" or self._transposed[layer]:
            return ""
        return "ExactBias" if layer in self._float_results else "Bias"

    def _layer_overhead(self, name: str, precision: LayerPolicy, sparse: bool) -> int:
        """Bytes of a layer that are not its weights, scales and bias values: headers, names, nodes."""
        layer = self.traced.spec.layer_by_name[name]
        shape = (8, *[1] * (len(layer.weight_shape) - 1))
        bits, integer = precision.weight_bits, precision.activation == "int8"
        mask = None
        if sparse:
            mask = np.zeros(shape, dtype=bool)
            mask.flat[0] = True
        kind = self._bias_kind(name, precision) if layer.bias else ""
        tiny = LayerWeights(
            np.ones(shape, np.float32), np.zeros(8, np.float32) if layer.bias else None, bits, integer,
            None if bits is None else np.full(shape, 3, np.int8), np.float32(1),
            None if bits is None else np.ones(8, np.float16), mask,
            None if precision.clusters is None else np.full(precision.clusters, 3, np.int8),
            np.zeros(8, np.int32) if kind else None, kind == "ExactBias",
        )  # fmt: skip
        parts = Parts(self._writer.unsigned_weights)
        short = self._writer.short_name(name)
        transposed = self._transposed[name]
        packing = Packing(precision.stored_bits or 32, sparse, precision.clusters is not None)
        parts.weight(short, tiny, transposed, packing)
        if layer.bias:
            parts.bias(short, tiny, "s10")
        total = sum(field_bytes(i) for i in parts.initializers) + sum(field_bytes(n) for n in parts.prologue)
        payload = sum(len(i.raw_data) for i in parts.initializers if not i.name.endswith(FIXED_ARGUMENTS))
        # Dimensions from 128 on take a byte more where a tensor is stored in its own shape, counts in one of a row.
        wide = sum(len_bytes(size) - 1 for size in layer.weight_shape) + len(parts.initializers)
        return total - payload + wide


def _shape(layer: LayerSpec, out: int, weights: int) -> tuple[int, ...]:
    """Shape of a layer's weight with so many output channels and weights."""
    window = layer.weight_shape[2:]
    return (out, weights // (out * prod(window)), *window)


def _values(width: int, values: Ints) -> list[Ints]:
    """Bytes of each tensor that holds `values` packed values."""
    if width >= 8:
        return [values * (width // 8)]
    return [(values + 7) // 8 * plane for plane in PLANES[width]]


def _header_growth(payload: Ints) -> Ints:
    """Bytes by which a tensor's two length fields outgrow those of a tensor of a few bytes; name and shape take 24."""
    steps = np.searchsorted(np.array([2**7, 2**14, 2**21, 2**28]), payload + 24, side="right")
    return np.asarray(2 * steps, dtype=np.int64)


@cache
def _function_size(packing: Packing, integer: bool, transposed: bool, unsigned: bool) -> tuple[str, int]:
    kind = (packing, integer, transposed, unsigned)
    return weight_function_name(*kind), field_bytes(weight_function(*kind))


@cache
def _limit_size() -> tuple[str, int]:
    """What the file's own limit takes, once; see `export.limits`."""
    return "limit", field_bytes(limit_entry())


@cache
def _bias_size(exact: bool) -> tuple[str, int]:
    function = bias_function(exact)
    return function.name, field_bytes(function)
