"""What a candidate will cost, before any training: bytes of its file, milliseconds by the table. Arrays in and out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from autocomp.hardware.choices import (
    Columns,
    Dimension,
    Layout,
    choosable_kernels,
    conversion_kernel,
    executed,
    executed_over,
    kernels_over,
    layer_sizes,
    result_shape,
)
from autocomp.hardware.estimator import LatencyModel, band
from autocomp.hardware.ethos_u.pooling import with_copies
from autocomp.hardware.memory import PeakMemory, peak_memory
from autocomp.hardware.population import CHUNK, Accumulated, Term
from autocomp.kernel import Kernel, WeightCoding
from autocomp.network import NETWORK_INPUT, LayerSpec, NetworkSpec, plan_execution
from autocomp.policy import LayerPolicy, Policy
from autocomp.space import Genes, SearchSpace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Kernels asked of the latency model at once, so that its matrices stay small.
_BATCH = 4096


class Sizes(Protocol):
    """Bytes of a file's parts. The export room implements it from the protobufs that it writes."""

    def fixed_bytes(self) -> int:
        """Bytes that every file of the network has, whatever its policy."""
        ...

    def layer_bytes(self, layer: LayerSpec, decision: LayerPolicy, out_channels: Ints, weights: Ints) -> Ints:
        """Bytes of one layer for arrays of channel and weight counts."""
        ...

    def tensor_bytes(self, kernel: int) -> int:
        """Bytes of quantizing the result of a kernel (NETWORK_INPUT: the network's input)."""
        ...

    def dequantize_bytes(self, kernel: int) -> int:
        """Bytes of handing the integer result of a kernel to a float layer."""
        ...

    def dequantize_function_bytes(self) -> int:
        """Shared definition that the first of those needs."""
        ...

    def function_bytes(self, layer: LayerSpec, decision: LayerPolicy) -> Mapping[str, int]:
        """Shared definitions that a decision needs, name → bytes; each counts once a file."""
        ...


class Cost(NamedTuple):
    """Costs of n candidates, each (n,): bytes of the file; milliseconds and the ends of their band; peak memory.

    memory_bytes: of activations, see `memory`.
    """

    size_bytes: Floats
    latency_ms: Floats
    latency_low_ms: Floats
    latency_high_ms: Floats
    memory_bytes: Floats


def network_kernels(
    network: NetworkSpec, policy: Policy, *, integer_only: bool = False
) -> list[tuple[Kernel, str | None]]:
    """Every kernel that the runtime executes under `policy`, conversions included, with the layer it belongs to.

    integer_only: see `network.plan_execution`; the kernels of such a device differ by how their weights are coded.
    """
    if integer_only:
        network = with_copies(network)
    plan = plan_execution(network, policy, integer_only=integer_only)
    found: list[tuple[Kernel, str | None]] = []
    for node, precision in zip(network.kernels, plan.precisions, strict=True):
        found += [(kernel, node.layer) for kernel in executed(node, precision, policy, integer_only=integer_only)]
    if integer_only:
        return found  # the file's input and output are int8: whoever calls it converts
    for source, step in plan.conversions:
        channels = result_shape(network, source)[0].count(policy)
        found.append((conversion_kernel(network, source, step, channels), None))
    return found


class CostModel:
    """Costs of gene vectors of one space. `latency` scores kernels, `sizes` counts bytes.

    Everything that depends on one kernel, layer or tensor is tabulated once over the choices that it sees
    (`population`), so that a population costs a few lookups a layer, however large the latency table is.
    """

    def __init__(self, space: SearchSpace, latency: LatencyModel, sizes: Sizes, *, integer_only: bool = False) -> None:
        self.space = space
        self.integer_only = integer_only
        self.latency = latency
        self.sizes = sizes
        self.layout = Layout(space, integer_only=integer_only)
        self.network = self.layout.network
        foreseen = choosable_kernels(space, integer_only=integer_only)
        known = _Latencies(latency, foreseen)
        #: Of the kernels that candidates may execute, the share whose latency the table does not reach.
        self.beyond_table = len(known.extrapolated) / max(1, len(foreseen))
        terms = [*self._kernel_terms(known), *self._tensor_terms(known), *self._layer_terms()]
        fixed = Term.of(_bytes(np.array(float(sizes.fixed_bytes()))))
        self._figures = Accumulated.of([fixed, *terms])
        self._definitions = self._prepare_definitions()
        self._memory = PeakMemory(self.layout)

    def __call__(self, genes: Genes) -> Cost:
        """genes: (n, len(space)) choice indices."""
        genes = np.atleast_2d(np.asarray(genes, dtype=np.int64))
        figures, memory = np.empty((len(genes), 3)), np.empty(len(genes))
        room = None
        for start in range(0, len(genes), CHUNK):
            part = slice(start, start + CHUNK)
            columns = self.layout.columns(genes[part], room)
            self._figures(columns, figures[part])
            figures[part, 2] += self._definitions(columns)
            memory[part] = self._memory(columns)
            room = columns if room is None else room
        latency, squares, size = figures.T
        return Cost(size, latency, *band(latency, squares, self.latency.common), memory)

    def of_policy(self, policy: Policy) -> Cost:
        """Cost of any policy of the network, whether the space offers it or not; arrays of length 1."""
        estimate = self.latency.predict(self._kernels(policy))
        latency, low, high = (us / 1000 for us in estimate.total_us)
        figures = (
            self._policy_bytes(policy),
            latency,
            low,
            high,
            peak_memory(self.network, policy, integer_only=self.integer_only),
        )
        size, latency_ms, low_ms, high_ms, memory = (np.array([float(figure)]) for figure in figures)
        return Cost(size, latency_ms, low_ms, high_ms, memory)

    def extrapolated_share(self, policy: Policy) -> float:
        """Of the latency of `policy`, what lies outside the measured range of the table; a fraction."""
        estimate = self.latency.predict(self._kernels(policy))
        return float(estimate.us[estimate.extrapolated].sum() / estimate.us.sum())

    def _kernels(self, policy: Policy) -> list[Kernel]:
        return [kernel for kernel, _ in network_kernels(self.network, policy, integer_only=self.integer_only)]

    def _policy_bytes(self, policy: Policy) -> int:
        size = self.sizes.fixed_bytes()
        definitions: dict[str, int] = {}
        for layer in self.network.layers:
            decision = policy.layer(layer.name)
            counts = (np.array([channels.count(policy)]) for channels in (layer.in_channels, layer.out_channels))
            size += int(self.sizes.layer_bytes(layer, decision, *layer_sizes(layer, *counts))[0])
            definitions |= self.sizes.function_bytes(layer, decision)
        plan = plan_execution(self.network, policy, integer_only=self.integer_only)
        quantized = {source for source, step in plan.conversions if step == "quantize"}
        for index, (node, precision) in enumerate(zip(self.network.kernels, plan.precisions, strict=True)):
            if precision == "int8" and (self.integer_only or not (node.output and node.op == "linear")):
                quantized.add(index)
        if self.integer_only:
            quantized.add(NETWORK_INPUT)
        dequantized = {source for source, step in plan.conversions if step == "dequantize"}
        size += sum(map(self.sizes.tensor_bytes, quantized)) + sum(map(self.sizes.dequantize_bytes, dequantized))
        return size + sum(definitions.values()) + (self.sizes.dequantize_function_bytes() if dequantized else 0)

    def _kernel_terms(self, known: "_Latencies") -> list[Term]:
        """Latency of each kernel, over its precision (for a layer: its decision) and the channels on both sides."""
        terms = []
        for node, flag in zip(self.network.kernels, self.layout.executed, strict=True):
            shapes = self.layout.kernel_shapes(node)
            if self.integer_only and node.layer is not None:
                which, decisions = self.layout.full_decisions(node.layer)
                coded = [known.over(kernels_over(node, "int8", shapes, WeightCoding.of(d))) for d in decisions]
                terms.append(Term.of(_latency(np.stack(coded)), *which, *shapes.dimensions))
                continue
            alternatives = {
                int8: executed_over(node, "int8" if int8 else "fp32", shapes, integer_only=self.integer_only)
                for int8 in flag.values
            }
            if not any(any(kernels) for kernels in alternatives.values()):
                continue
            by_precision = {int8: known.sums(kernels) for int8, kernels in alternatives.items()}
            if node.layer is not None:
                which, choices = self.layout.decisions(node.layer)
                values = [by_precision[choice.activation == "int8"] for choice in choices]
            else:
                which, values = flag.dimensions, [by_precision[int8] for int8 in flag.values]
            terms.append(Term.of(_latency(np.stack(values)), *which, *shapes.dimensions))
        return terms

    def _tensor_terms(self, known: "_Latencies") -> list[Term]:
        """What the precision of each tensor costs: bytes of its quantization, latency and bytes of its conversion."""
        terms = []
        for source, stored in self.layout.stored.items():
            converted, axis = self.layout.converted[source], self.layout.result_axis(source)
            figures = np.zeros((len(stored.values), len(converted.values), len(axis.counts), 3))
            for i, is_int8 in enumerate(stored.values):
                for j, happens in enumerate(converted.values):
                    if happens:
                        step = "dequantize" if is_int8 else "quantize"
                        counts = axis.counts.tolist()
                        kernels = [conversion_kernel(self.network, source, step, count) for count in counts]
                        figures[i, j, :, :2] = known.over(kernels)
                        figures[i, j, :, 2] += self.sizes.dequantize_bytes(source) if is_int8 else 0
                    if is_int8 or happens:
                        figures[i, j, :, 2] += self.sizes.tensor_bytes(source)
            if figures.any():
                dimensions = (*stored.dimensions, *converted.dimensions, *axis.dimensions)
                terms.append(self._by_decision(source, Term.of(figures, *dimensions)))
        return terms

    def _by_decision(self, source: int, term: Term) -> Term:
        """A term of a layer's result over the layer's decision instead of its precision, to merge with its others."""
        layer = self.network.kernels[source].layer if source >= 0 else None
        if layer is None or not self.layout.stored[source].dimensions:
            return term
        which, choices = self.layout.decisions(layer)
        picked = term.values[[int(choice.activation == "int8") for choice in choices]]
        return Term.of(picked, *which, *term.dimensions[1:])

    def _layer_terms(self) -> list[Term]:
        """Bytes of each layer over its decision, its sparsity and the channels on both sides."""
        terms = []
        for layer in self.network.layers:
            dimensions, decisions = self.layout.full_decisions(layer.name)
            shapes = self.layout.layer_shapes(layer)
            counts = layer_sizes(layer, shapes.inputs, shapes.outputs)
            amounts = np.stack([self.sizes.layer_bytes(layer, decision, *counts) for decision in decisions])
            terms.append(Term.of(_bytes(amounts), *dimensions, *shapes.dimensions))
        return terms

    def _prepare_definitions(self) -> "_Definitions":
        """Which shared definitions each decision and each conversion needs."""
        needs: list[tuple[tuple[Dimension, ...], list[Mapping[str, int]]]] = []
        for layer in self.network.layers:
            dimensions, decisions = self.layout.full_decisions(layer.name)
            needs.append((dimensions, [self.sizes.function_bytes(layer, decision) for decision in decisions]))
        dequantize = {"": self.sizes.dequantize_function_bytes()}
        for source, stored in self.layout.stored.items():
            converted = self.layout.converted[source]
            both = [a and b for a in stored.values for b in converted.values]
            if any(both):
                needs.append((
                    (*stored.dimensions, *converted.dimensions), [dequantize if needed else {} for needed in both]
                ))  # fmt: skip
        return _Definitions.of(needs)


def _latency(values: Floats) -> Floats:
    """(…, 2) → (…, 3): latency and what it is off by, and no bytes."""
    return np.concatenate([values, np.zeros((*values.shape[:-1], 1))], axis=-1)


def _bytes(values: Floats | Ints) -> Floats:
    """(…) → (…, 3): bytes, and no latency."""
    figures = np.zeros((*values.shape, 3))
    figures[..., 2] = values
    return figures


class _Latencies:
    """Milliseconds of kernels, and the squares of what each is off by alone (see `estimator.band`).

    extrapolated: those that the table does not reach.
    """

    def __init__(self, latency: LatencyModel, kernels: Sequence[Kernel]) -> None:
        self._known: dict[Kernel, tuple[float, float]] = {}
        self.extrapolated: list[Kernel] = []
        for start in range(0, len(kernels), _BATCH):
            batch = kernels[start : start + _BATCH]
            estimate = latency.predict(batch)
            figures = np.stack([estimate.us / 1000, np.square(estimate.own_us / 1000)], axis=1)
            self._known |= zip(batch, map(tuple, figures.tolist()), strict=True)
            self.extrapolated += [kernel for kernel, far in zip(batch, estimate.extrapolated, strict=True) if far]

    def over(self, kernels: Sequence[Kernel]) -> Floats:
        """(n, 2). What was not foreseen is no candidate's and must not be read: NaN."""
        never = (np.nan, np.nan)
        return np.array([self._known.get(kernel, never) for kernel in kernels])

    def sums(self, executed: Sequence[Sequence[Kernel]]) -> Floats:
        """(n, 2): of n groups of kernels, each group one after the other."""
        return np.array([self.over(kernels).sum(0) if kernels else (0.0, 0.0) for kernels in executed])


@dataclass(frozen=True)
class _Definitions:
    """Bytes of the definitions that a file needs, each once however many layers call it.

    needed: which of them, a bit each, in words of 64 bits. amounts: (bytes of the words, 256), how many bytes of
    definitions each value of a byte stands for.
    """

    needed: Accumulated
    amounts: Floats

    @classmethod
    def of(cls, needs: Sequence[tuple[tuple[Dimension, ...], list[Mapping[str, int]]]]) -> "_Definitions":
        """needs: per part of the network, the definitions (name → bytes) for each row of a table over dimensions."""
        amounts = {name: amount for _, choices in needs for choice in choices for name, amount in choice.items()}
        names = [*amounts]
        words = len(names) // 64 + 1
        terms = [Term.of(np.zeros(words, np.uint64))]  # a network may have no layer at all
        for dimensions, choices in needs:
            bits = np.array([[name in choice for name in names] for choice in choices], dtype=bool)
            padded = np.pad(bits, ((0, 0), (0, 64 * words - len(names))))
            masks = np.packbits(padded, axis=1, bitorder="little").view(np.uint64)
            terms.append(Term.of(masks, *dimensions))
        of_bits = np.pad([float(amounts[name]) for name in names], (0, 64 * words - len(names))).reshape(-1, 8)
        bits_of_byte = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        return cls(Accumulated.of(terms, np.bitwise_or), of_bits @ bits_of_byte.T)

    def __call__(self, columns: Columns) -> Floats:
        """columns: (width, n). Bytes, (n,)."""
        masks = self.needed(columns, np.empty((columns.shape[1], len(self.amounts) // 8), np.uint64))
        size = np.zeros(len(masks))
        for amounts, values in zip(self.amounts, masks.view(np.uint8).T, strict=True):
            if amounts.any():
                size += amounts[values]
        return size
