"""From a compressed network to an ONNX file that stock ONNX Runtime executes with integer kernels."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from autocomp.compress.network import CompressedNetwork, LayerWeights
from autocomp.compress.quantize import Grid, TensorRange
from autocomp.compress.stored import BIAS_STEP
from autocomp.compress.trace import Traced
from autocomp.compress.tracing.recurrent import CELLS
from autocomp.export.functions import (
    DOMAIN,
    bias_function,
    plain_dequantize_function,
    weight_function,
    weight_function_name,
    weight_inputs,
)
from autocomp.export.integers import pad_codes
from autocomp.export.limits import limit_entry, may_saturate
from autocomp.export.packing import Packing, choose_packing, pack_codes, pack_plane, padded
from autocomp.export.template import float_template, layer_consumers, resized, weight_input
from autocomp.network import NETWORK_INPUT
from autocomp.whole_file import write_whole


class OnnxWriter:
    """Writes compressed networks of one traced network. `build` is cheap: the float template is prepared once.

    unsigned_weights: integer kernels are handed uint8 weights with the zero point 128, for a device whose products of
    uint8 and int8 saturate (`hardware.arithmetic`).
    """

    def __init__(self, traced: Traced, *, unsigned_weights: bool = False) -> None:
        self.traced = traced
        self.unsigned_weights = unsigned_weights
        self.template = float_template(traced)
        consumers = layer_consumers(traced, self.template.graph)
        self._short_names = {layer.name: f"w{i}" for i, layer in enumerate(traced.spec.layers)}
        nodes = {node.name: node for node in traced.graph.graph.nodes}
        cells = {layer: CELLS.get(nodes[name].target) for layer, name in traced.layer_nodes.items()}
        self._cells = {layer: cell for layer, cell in cells.items() if cell is not None}
        self._missing = [layer.name for layer in traced.spec.layers if layer.name not in consumers]
        if self._missing:
            raise AssertionError(f"layers without a node in the ONNX graph: {self._missing}")

    def short_name(self, layer: str) -> str:
        """What a layer's tensors are called in the file: names cost bytes."""
        return self._short_names[layer]

    def layer_initializers(self) -> list[str]:
        """Names of the template's tensors that a layer's own take the place of."""
        graph = self.template.graph
        consumers = layer_consumers(self.traced, graph).values()
        return [*(n.input[weight_input(n)] for n in consumers), *self.traced.biases.values()]

    def build(self, network: CompressedNetwork) -> ModelProto:
        model = ModelProto()
        model.CopyFrom(self.template)
        graph = model.graph
        parts = Parts(self.unsigned_weights)
        consumers = layer_consumers(self.traced, graph)
        source_of = {node.name: node.inputs[0] for node in self.traced.spec.kernels if node.layer is not None}
        replaced = set(self.layer_initializers())
        kept = [i for i in graph.initializer if i.name not in replaced]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        for layer, node in consumers.items():
            weights = self._in_order(layer, network.layers[layer])
            transposed = node.op_type == "MatMul"
            short = self.short_name(layer)
            input_scale = _scale_name(source_of[layer]) if weights.integer else ""
            old_bias = self.traced.biases.get(layer)
            node.input[weight_input(node)] = parts.weight(short, weights, transposed)
            if old_bias is not None and weights.bias is not None:
                new_bias = parts.bias(short, weights, input_scale)
                replace_input(graph, node, old_bias, new_bias)
            for attribute in node.attribute:
                if attribute.name == "group" and self.traced.spec.layer_by_name[layer].depthwise:
                    attribute.i = len(weights.weight)
        self._resize(graph, network)
        self._quantize_tensors(graph, network, parts)
        graph.initializer.extend(parts.initializers)
        self._assemble(graph, parts)
        pad_codes(graph)
        model.functions.extend(parts.functions.values())
        if parts.functions:
            model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        if not self.unsigned_weights and any(may_saturate(layer) for layer in network.layers.values()):
            model.metadata_props.append(limit_entry())
        return model

    def _in_order(self, layer: str, weights: LayerWeights) -> LayerWeights:
        """The weights of a layer with their rows as its operator has them."""
        cell = self._cells.get(layer)
        if cell is None or len(cell.gates) == 1:
            return weights

        def ordered(rows: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if rows is None else cell.in_order(rows)

        return replace(
            weights, weight=cell.in_order(weights.weight), levels=ordered(weights.levels),
            ratios=ordered(weights.ratios), mask=ordered(weights.mask),
        )  # fmt: skip

    def _resize(self, graph: GraphProto, network: CompressedNetwork) -> None:
        """Tell reshapes how many channels are left."""
        stored = {i.name: i for i in graph.initializer}
        for name, node in resized(graph, self.traced).items():
            axis, channels = self.traced.reshapes[name]
            sizes = numpy_helper.to_array(stored[node.input[1]]).copy()
            sizes[axis] = channels.count(network.policy)
            stored[node.input[1]].CopyFrom(raw_tensor(node.input[1], sizes))

    def write(self, network: CompressedNetwork, path: Path) -> int:
        """Write the file; returns its size in bytes. Nothing is left at `path` if it cannot be written whole."""
        return write_whole(path, self.build(network).SerializeToString(deterministic=True))

    def _quantize_tensors(self, graph: GraphProto, network: CompressedNetwork, parts: "Parts") -> None:
        """Put QuantizeLinear → DequantizeLinear behind every tensor that has a range of its own."""
        execution, kernels = network.execution, self.traced.spec.kernels
        nodes_by_output = {name: node for node in graph.node for name in node.output}
        readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        outputs = {value.name for value in graph.output}
        integer_readers = {
            id(node)
            for k, precision in enumerate(execution.precisions)
            if precision == "int8"
            for node in self._entry_nodes(k, nodes_by_output)
        }
        for index in sorted(network.ranges):
            name = self.traced.input_name if index == NETWORK_INPUT else self.traced.tensors[index]
            is_float = index == NETWORK_INPUT or execution.precisions[index] == "fp32"
            consumers = readers.get(name, [])
            if is_float:
                consumers = [n for n in consumers if id(n) in integer_readers]
            if not consumers and name not in outputs:
                continue
            pooled = is_float and index != NETWORK_INPUT and kernels[index].op == "max_pool"
            is_output = name in outputs and not is_float  # else only its integer readers see it quantized
            parts.quantize(index, name, network.ranges[index], is_output=is_output, pooled=pooled)
            if is_output:
                # The graph output keeps its name: what produced it now writes to another one.
                nodes_by_output[name].output[0] = f"{name}_raw"
                parts.dequantize(index, name)
            for node in consumers:
                integer = id(node) in integer_readers
                reads = parts.dequantize(index) if integer else parts.plain_dequantize(index)
                for position, source in enumerate(node.input):
                    if source == name:
                        node.input[position] = reads
            self._quantize_before_flatten(index, name, nodes_by_output, parts, network.ranges[index])

    @staticmethod
    def _quantize_before_flatten(
        index: int, name: str, by_output: dict[str, NodeProto], parts: "Parts", range: TensorRange
    ) -> None:
        """A pooling that drops its spatial axes is GlobalAveragePool and Flatten: both need the same quantization."""
        flatten = by_output.get(name)
        if flatten is not None and flatten.op_type == "Flatten" and flatten.input[0] == f"{name}_4d":
            flatten.input[0] = parts.quantize_dequantize_flatten(index, name, range)

    def _entry_nodes(self, kernel: int, by_output: dict[str, NodeProto]) -> Iterable[NodeProto]:
        """The ONNX nodes that read a kernel's inputs: its first node, for MatMul + Add the MatMul too."""
        node = by_output[self.traced.starts[kernel]]
        yield node
        for name in node.input:
            if name in by_output and by_output[name].op_type in ("MatMul", "GlobalAveragePool"):
                yield by_output[name]

    def _assemble(self, graph: GraphProto, parts: "Parts") -> None:
        """Order the nodes: unpacking first, each quantization right behind what it reads."""
        body = list(graph.node)
        del graph.node[:]
        graph.node.extend(parts.prologue)
        for name in [value.name for value in graph.input]:
            graph.node.extend(parts.after.pop(name, []))
        for node in body:
            graph.node.append(node)
            for name in node.output:
                graph.node.extend(parts.after.pop(name, []))
        assert not parts.after, f"tensors that nothing computes: {sorted(parts.after)}"


def replace_input(graph: GraphProto, node: NodeProto, old: str, new: str) -> None:
    for candidate in graph.node if node.op_type == "MatMul" else [node]:
        for position, name in enumerate(candidate.input):
            if name == old:
                candidate.input[position] = new


def _scale_name(index: int) -> str:
    return f"s{index + 1}"


def raw_tensor(name: str, array: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array, order="C"), name)


class Parts:
    """Initializers, nodes and functions that a compressed file has beside the float graph's own."""

    def __init__(self, unsigned_weights: bool = False) -> None:
        self.unsigned_weights = unsigned_weights
        self.initializers: list[TensorProto] = []
        self.prologue: list[NodeProto] = []
        self.after: dict[str, list[NodeProto]] = {}
        self.functions: dict[str, onnx.FunctionProto] = {}
        self._behind: dict[int, list[NodeProto]] = {}

    def store(self, name: str, array: np.ndarray) -> str:
        self.initializers.append(raw_tensor(name, array))
        return name

    def weight(self, short: str, layer: LayerWeights, transposed: bool, packing: Packing | None = None) -> str:
        """Store one weight, by default in the smaller packing; returns the name of the tensor that stands for it."""
        kept = layer.weight.size if layer.mask is None else int(layer.mask.sum())
        packing = packing or _packing_of(layer, kept)
        if packing.bits == 32 and not packing.sparse:
            return self.store(short, layer.weight.T if transposed else layer.weight)
        values = layer.weight if layer.levels is None else layer.levels
        if packing.sparse:
            assert layer.mask is not None
            values = values[layer.mask]
        arguments: dict[str, np.ndarray] = {}
        if packing.bits < 8:
            codes = _codes(values.reshape(-1).astype(np.int8), layer.codebook, packing.bits)
            arguments |= {f"plane{i}": plane for i, plane in enumerate(pack_codes(codes, packing.bits))}
        else:
            arguments["values"] = values
        if layer.codebook is not None:
            arguments["codebook"] = layer.codebook
        if packing.sparse:
            mask = np.zeros(padded(layer.weight.size), np.uint8)
            mask[: layer.weight.size] = layer.mask.reshape(-1)  # type: ignore[union-attr]
            arguments["mask"] = pack_plane(mask, 1)
        if layer.ratios is not None:
            arguments |= {"base": np.array(layer.base, np.float32), "ratios": layer.ratios}
        arguments["shape"] = np.array(layer.weight.shape, np.int64)
        inputs = [self.store(_argument_name(short, name), arguments[name]) for name in weight_inputs(packing)]
        kind = (packing, layer.integer, transposed, self.unsigned_weights)
        function = weight_function_name(*kind)
        if function not in self.functions:
            self.functions[function] = weight_function(*kind)
        self.prologue.append(helper.make_node(function, inputs, [short], domain=DOMAIN))
        return short

    def bias(self, short: str, layer: LayerWeights, input_scale: str) -> str:
        """Store one bias; returns the name of the tensor that stands for it."""
        assert layer.bias is not None
        name = short + BIAS
        if layer.bias_levels is None:
            return self.store(name, layer.bias)
        function = bias_function(layer.exact_bias)
        self.functions.setdefault(function.name, function)
        levels = layer.bias_levels
        if not layer.exact_bias:
            levels = (levels / BIAS_STEP).astype(np.float16)  # which holds it: that is how it was rounded
        scale = [_argument_name(short, "base"), _argument_name(short, "ratios"), input_scale]
        inputs = [self.store(f"{short}h", levels), *scale]
        self.prologue.append(helper.make_node(function.name, inputs, [name], domain=DOMAIN))
        return name

    def quantize(self, index: int, name: str, range: TensorRange, is_output: bool, pooled: bool = False) -> None:
        """Add a QuantizeLinear behind tensor `name`; an output of the network is quantized ahead of it.

        pooled: it is the result of a float max pooling, past which the runtime would move the quantization: its
        pooling of integers that are not stored channels last is a scalar loop (64×64, 32 channels: 650 instead of
        30 µs). A LeakyRelu of slope 1, which changes nothing, keeps them apart.
        """
        scale = self.store(_scale_name(index), np.array(range.scale, np.float32))
        zero = f"z{range.zero_point}"
        if all(i.name != zero for i in self.initializers):
            self.store(zero, np.array(range.zero_point, np.uint8))
        source = f"{name}_raw" if is_output else name
        nodes = self.after[source] = []
        if pooled:
            nodes.append(helper.make_node("LeakyRelu", [source], [f"k{index + 1}"], alpha=1.0))
            source = f"k{index + 1}"
        nodes.append(helper.make_node("QuantizeLinear", [source, scale, zero], [f"q{index + 1}"]))
        self._behind[index] = nodes

    def dequantize(self, index: int, result: str = "") -> str:
        """Dequantize what `quantize` made, by the operator that integer kernels are fused with; returns its name.

        Only where something reads it: the runtime executes operators whose results nobody reads.
        """
        result = result or f"d{index + 1}"
        if self._lacks(index, result):
            self._behind[index].append(helper.make_node("DequantizeLinear", self._stored(index), [result]))
        return result

    def _lacks(self, index: int, result: str) -> bool:
        return all(node.output[0] != result for node in self._behind[index])

    def _stored(self, index: int) -> list[str]:
        """Names of the integers that `quantize` made, of their scale and of their zero-point."""
        quantize = next(node for node in self._behind[index] if node.op_type == "QuantizeLinear")
        return [quantize.output[0], *quantize.input[1:]]

    def quantize_dequantize_flatten(self, index: int, name: str, range: TensorRange) -> str:
        """Add a pair between a pooling and the flatten that makes `name`, with the scale that `name` has."""
        scale, zero = _scale_name(index), f"z{range.zero_point}"
        self.after[f"{name}_4d"] = [
            helper.make_node("QuantizeLinear", [f"{name}_4d", scale, zero], [f"p{index + 1}"]),
            helper.make_node("DequantizeLinear", [f"p{index + 1}", scale, zero], [f"f{index + 1}"]),
        ]
        return f"f{index + 1}"

    def plain_dequantize(self, index: int) -> str:
        """Dequantize the result of a kernel by arithmetic, once for all its float readers.

        Between DequantizeLinear and QuantizeLinear the runtime would quantize a layer's float weights by itself, to
        8 bits per tensor, and run it as an integer kernel that nobody asked for. It also duplicates a
        DequantizeLinear for each reader, and puts another pair of both behind it where it moves a transposition
        past it (ahead of a float addition, say): four passes over the tensor where one was asked for.
        """
        result = f"e{index + 1}"
        if self._lacks(index, result):
            function = plain_dequantize_function()
            self.functions.setdefault(function.name, function)
            node = helper.make_node(function.name, self._stored(index), [result], domain=DOMAIN)
            self._behind[index].append(node)
        return result


def _packing_of(layer: LayerWeights, kept: int) -> Packing:
    if layer.codebook is None:
        return choose_packing(layer.bits, layer.weight.size, kept)
    return choose_packing(len(layer.codebook).bit_length() - 1, layer.weight.size, kept, clustered=True)


def _codes(levels: NDArray[np.int8], codebook: NDArray[np.int8] | None, bits: int) -> NDArray[np.uint8]:
    """What is stored for each level, (n,)."""
    return Grid(bits).codes(levels) if codebook is None else np.searchsorted(codebook, levels).astype(np.uint8)


#: Ending of a layer's bias; "b" is the base of its scales.
BIAS = "a"
#: Endings of the tensors whose bytes do not depend on the number of weights and channels: base and shape.
FIXED_ARGUMENTS = ("b", "s")


def _argument_name(short: str, argument: str) -> str:
    return f"{short}{argument[0]}{argument[-1] if argument[-1].isdigit() else ''}"
