"""What a candidate will cost, before any training: bytes of its file, milliseconds by the table. Arrays in and out."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from autocomp.hardware.estimator import LatencyModel
from autocomp.kernel import Kernel, Precision
from autocomp.network import NETWORK_INPUT, Channels, KernelNode, LayerSpec, NetworkSpec, plan_execution
from autocomp.policy import FLOAT, LayerPolicy, Policy
from autocomp.space import Genes, SearchSpace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: A table over more combinations of kept channels than this is not built; such a kernel is looked up one by one.
_MOST_COMBINATIONS = 20_000


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
    """Costs of n candidates, each (n,): bytes of the file; milliseconds and the ends of their band."""

    size_bytes: Floats
    latency_ms: Floats
    latency_low_ms: Floats
    latency_high_ms: Floats


@dataclass(frozen=True, slots=True)
class KernelCost:
    """One kernel of a candidate: milliseconds with their band; extrapolated where the table does not reach."""

    kernel: Kernel
    layer: str | None
    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    extrapolated: bool


def network_kernels(network: NetworkSpec, policy: Policy) -> list[tuple[Kernel, str | None]]:
    """Every kernel that the runtime executes under `policy`, conversions included, with the layer it belongs to."""
    plan = plan_execution(network, policy)
    found: list[tuple[Kernel, str | None]] = []
    for node, precision in zip(network.kernels, plan.precisions, strict=True):
        if not node.free:
            found.append((node.kernel(precision, policy), node.layer))
    for source, step in plan.conversions:
        found.append((_conversion(network, source, step, policy), None))
    return found


def _result_shape(network: NetworkSpec, source: int) -> tuple[Channels, int, int]:
    """Channels, height and width of a kernel's result, or of the network's input."""
    if source == NETWORK_INPUT:
        shape = network.input_shape
        channels = Channels(((None, shape[0] if shape else 1),))
        if len(shape) == 3:
            return channels, shape[1], shape[2]
        return channels, 1, shape[1] if len(shape) == 2 else 1
    node = network.kernels[source]
    if node.op == "global_avg_pool" or node.out_channels.repeat > 1:
        return node.out_channels, 1, 1
    return node.out_channels, -(-node.height // node.stride), -(-node.width // node.stride)


def _conversion(network: NetworkSpec, source: int, step: str, policy: Policy | None) -> Kernel:
    channels, height, width = _result_shape(network, source)
    count = channels.count(policy)
    return Kernel(step, "int8", count, count, height, width)


def choosable_kernels(network: NetworkSpec, space: SearchSpace) -> list[Kernel]:
    """Every kernel that some candidate of the space may execute, without repetition: what a table should hold."""
    found: dict[Kernel, None] = {}
    int8_possible = any(
        isinstance(choice, LayerPolicy) and choice.activation == "int8"
        for gene in (*space.genes, *space.fixed)
        for choice in gene.choices
    )
    for node in network.kernels:
        if node.free:
            continue
        precisions: list[Precision] = ["fp32", "int8"] if int8_possible and node.int8 else ["fp32"]
        groups = _groups_of(node)
        for kept in itertools.islice(_combinations(space, groups), _MOST_COMBINATIONS):
            for precision in precisions:
                found.setdefault(node.kernel(precision, Policy(channels=kept)))
    if int8_possible:
        for source in range(-1, len(network.kernels)):
            groups = _result_shape(network, source)[0].groups
            for kept in itertools.islice(_combinations(space, groups), 64):
                for step in ("quantize", "dequantize"):
                    found.setdefault(_conversion(network, source, step, Policy(channels=kept)))
    return list(found)


def _groups_of(node: KernelNode) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*node.in_channels.groups, *node.out_channels.groups)))


def _choices(space: SearchSpace, group: str) -> tuple[int, ...]:
    """Channel counts that a group may keep."""
    for gene in (*space.genes, *space.fixed):
        if gene.kind == "channels" and gene.target == group:
            return tuple(int(c) for c in gene.choices if not isinstance(c, LayerPolicy))
    return (space.network.group_by_name[group].channels,)


def _combinations(space: SearchSpace, groups: Sequence[str]):  # type: ignore[no-untyped-def]
    for kept in itertools.product(*(_choices(space, group) for group in groups)):
        yield dict(zip(groups, kept, strict=True))


class CostModel:
    """Costs of gene vectors of one space. `latency` scores kernels, `sizes` counts bytes.

    Everything that depends on one kernel or one layer is tabulated once over the choices that it sees, so that a
    population costs a few gathers a layer, however large the latency table is.
    """

    def __init__(self, space: SearchSpace, latency: LatencyModel, sizes: Sizes) -> None:
        self.space = space
        self.network = space.network
        self.latency = latency
        self.sizes = sizes
        self._gene_of = {(gene.kind, gene.target): index for index, gene in enumerate(space.genes)}
        self._memo: dict[Kernel, tuple[float, float, float]] = {}
        self._prepare_activations()
        self._prepare_latency()
        self._prepare_bytes()

    def __call__(self, genes: Genes) -> Cost:
        """genes: (n, len(space)) choice indices."""
        genes = np.atleast_2d(np.asarray(genes, dtype=np.int64))
        n = len(genes)
        int8, conversions = self._plan(genes)
        latency, low, high = (np.zeros(n) for _ in range(3))
        for index, lookup in self._kernel_tables:
            position = lookup.position(genes)
            row = int8[index].astype(np.int64) if lookup.values.shape[1] > 1 else 0
            value = lookup.values[:, row, position]
            latency += value[0]
            low += value[1]
            high += value[2]
        size = np.full(n, float(self.sizes.fixed_bytes()))
        for (source, step), happens in conversions.items():
            lookup = self._conversion_tables[source, step]
            value = lookup.values[:, 0, lookup.position(genes)] * happens
            latency += value[0]
            low += value[1]
            high += value[2]
        size += self._tensor_bytes(int8, conversions, n)
        used: dict[str, tuple[int, NDArray[np.bool_]]] = {}
        for layer in self._layer_tables:
            decision = layer.decision(genes)
            size += layer.bytes[decision, layer.shape.position(genes)]
            for name, (amount, needed) in layer.functions.items():
                present = needed[decision]
                used[name] = (amount, used[name][1] | present if name in used else present)
        for amount, present in used.values():
            size += amount * present
        return Cost(size, latency, low, high)

    def of_policy(self, policy: Policy) -> Cost:
        """Cost of any policy of the network, whether the space offers it or not; arrays of length 1."""
        plan = plan_execution(self.network, policy)
        kernels = [kernel for kernel, _ in network_kernels(self.network, policy)]
        estimate = self.latency.predict(kernels)
        size = self.sizes.fixed_bytes()
        functions: dict[str, int] = {}
        for layer in self.network.layers:
            decision = policy.layer(layer.name)
            out = np.array(
                [layer.out_channels.count(policy) if not layer.groups > 1 or layer.depthwise else layer.weight_shape[0]]
            )
            size += int(self.sizes.layer_bytes(layer, decision, out, np.array([layer.weights(policy)]))[0])
            functions |= self.sizes.function_bytes(layer, decision)
        conversions = {step: np.ones(1, dtype=bool) for step in plan.conversions}
        int8 = [np.array([p == "int8"]) for p in plan.precisions]
        size += int(self._tensor_bytes(int8, conversions, 1)[0])
        size += sum(functions.values())
        return Cost(
            np.array([float(size)]),
            *(np.array([values.sum() / 1000]) for values in (estimate.us, estimate.low_us, estimate.high_us)),
        )

    def per_kernel(self, policy: Policy) -> list[KernelCost]:
        """The kernels of a policy one by one, in execution order, conversions last."""
        kernels = network_kernels(self.network, policy)
        estimate = self.latency.predict([kernel for kernel, _ in kernels])
        return [
            KernelCost(kernel, layer, us / 1000, low / 1000, high / 1000, bool(far))
            for (kernel, layer), us, low, high, far in zip(
                kernels, estimate.us, estimate.low_us, estimate.high_us, estimate.extrapolated, strict=True
            )
        ]

    # --- which kernels run as int8 -------------------------------------------------------------------------------

    def _prepare_activations(self) -> None:
        self._runs_int8: dict[str, tuple[int | None, NDArray[np.bool_]]] = {}
        for layer in self.network.layers:
            index, choices = self._decisions(layer.name)
            self._runs_int8[layer.name] = (index, np.array([c.activation == "int8" for c in choices]))

    def _decisions(self, layer: str) -> tuple[int | None, tuple[LayerPolicy, ...]]:
        """Index of a layer's precision gene (None where it is fixed) and what it chooses from."""
        index = self._gene_of.get(("quant", layer))
        genes = self.space.genes if index is not None else self.space.fixed
        for gene in genes:
            if gene.kind == "quant" and gene.target == layer:
                return index, tuple(c for c in gene.choices if isinstance(c, LayerPolicy))
        return None, (FLOAT,)

    def _plan(self, genes: Genes) -> tuple[list[NDArray[np.bool_]], dict[tuple[int, str], NDArray[np.bool_]]]:
        """`network.plan_execution` for a population: per kernel (n,) booleans, and per possible conversion (n,)."""
        n = len(genes)
        stored: dict[int, NDArray[np.bool_]] = {NETWORK_INPUT: np.zeros(n, dtype=bool)}
        int8: list[NDArray[np.bool_]] = []
        conversions: dict[tuple[int, str], NDArray[np.bool_]] = {}
        for index, node in enumerate(self.network.kernels):
            if node.layer is not None:
                gene, flags = self._runs_int8[node.layer]
                runs = flags[genes[:, gene]] if gene is not None else np.full(n, flags[0])
            elif not node.output and node.int8 and node.inputs:
                runs = np.logical_and.reduce([stored[source] for source in node.inputs])
            else:
                runs = np.zeros(n, dtype=bool)
            int8.append(runs)
            stored[index] = np.zeros(n, dtype=bool) if node.output and node.op == "linear" else runs
            for source in node.inputs:
                for step, happens in (("quantize", runs & ~stored[source]), ("dequantize", ~runs & stored[source])):
                    if happens.any():
                        key = (source, step)
                        conversions[key] = conversions[key] | happens if key in conversions else happens
            if node.output and stored[index].any():
                conversions[index, "dequantize"] = stored[index]
        return int8, conversions

    def _tensor_bytes(
        self, int8: Sequence[NDArray[np.bool_]], conversions: Mapping[tuple[int, str], NDArray[np.bool_]], n: int
    ) -> Floats:
        """Bytes of what stands between the layers of n candidates, (n,)."""
        size = np.zeros(n)
        for source, quantized in self._quantized(int8, conversions).items():
            size += self.sizes.tensor_bytes(source) * quantized
        back = {source: happens for (source, step), happens in conversions.items() if step == "dequantize"}
        for source, happens in back.items():
            size += self.sizes.dequantize_bytes(source) * happens
        if back:
            size += self.sizes.dequantize_function_bytes() * np.logical_or.reduce(list(back.values()))
        return size

    def _quantized(
        self, int8: Sequence[NDArray[np.bool_]], conversions: Mapping[tuple[int, str], NDArray[np.bool_]]
    ) -> dict[int, NDArray[np.bool_]]:
        """Which tensors carry a quantization in the file: the results of integer kernels, and what is converted."""
        result = {
            index: runs
            for index, (node, runs) in enumerate(zip(self.network.kernels, int8, strict=True))
            if not (node.output and node.op == "linear")
        }
        for (source, step), happens in conversions.items():
            if step == "quantize":
                result[source] = result[source] | happens if source in result else happens
        return result

    # --- tables ---------------------------------------------------------------------------------------------------

    def _lookup(self, groups: Sequence[str], kernels: Callable[[Policy], Sequence[Kernel]]) -> "_Lookup":
        """Latencies of one or two kernels over all combinations of the channels that `groups` keep."""
        genes = [(self._gene_of.get(("channels", g)), _choices(self.space, g)) for g in groups]
        total = int(np.prod([len(choices) for _, choices in genes])) if genes else 1
        if total > _MOST_COMBINATIONS:
            return self._coarse_lookup(groups, genes, kernels)
        rows = [kernels(Policy(channels=kept)) for kept in _combinations(self.space, groups)]
        values = np.array([[self._scores(k) for k in row] for row in rows])  # (combinations, precisions, 3)
        return _Lookup.over(genes, values.transpose(2, 1, 0))

    def _coarse_lookup(self, groups, genes, kernels) -> "_Lookup":  # type: ignore[no-untyped-def]
        """For a kernel fed by many groups (dense concatenations): a table over the share of channels kept."""
        steps = 33
        rows = []
        for share in np.linspace(0, 1, steps):
            kept = {g: c[round(share * (len(c) - 1))] for g, (_, c) in zip(groups, genes, strict=True)}
            rows.append([self._scores(k) for k in kernels(Policy(channels=kept))])
        return _Lookup.averaged(genes, np.array(rows).transpose(2, 1, 0), steps)

    def _scores(self, kernel: Kernel) -> tuple[float, float, float]:
        return self._memo[kernel]

    def _prepare_latency(self) -> None:
        nodes = [(i, node) for i, node in enumerate(self.network.kernels) if not node.free]
        wanted = choosable_kernels(self.network, self.space)
        # Kernels of fixed groups and of every conversion that may happen are asked for at once: one prediction.
        estimate = self.latency.predict(wanted)
        scores = np.stack([estimate.us, estimate.low_us, estimate.high_us], axis=1) / 1000
        self._memo = _Memo(self.latency, dict(zip(wanted, map(tuple, scores.tolist()), strict=True)))
        self._kernel_tables = [(i, self._lookup(_groups_of(node), self._node_kernels(node))) for i, node in nodes]
        self._conversion_tables = {
            (source, step): self._lookup(
                _result_shape(self.network, source)[0].groups,
                lambda policy, source=source, step=step: [_conversion(self.network, source, step, policy)],  # type: ignore[misc]
            )
            for source in range(-1, len(self.network.kernels))
            for step in ("quantize", "dequantize")
        }

    @staticmethod
    def _node_kernels(node: KernelNode) -> Callable[[Policy], Sequence[Kernel]]:
        if node.int8:
            return lambda policy: [node.kernel("fp32", policy), node.kernel("int8", policy)]
        return lambda policy: [node.kernel("fp32", policy)]

    def _prepare_bytes(self) -> None:
        self._layer_tables = [self._layer_table(layer) for layer in self.network.layers]

    def _layer_table(self, layer: LayerSpec) -> "_LayerTable":
        quant_gene, decisions = self._decisions(layer.name)
        sparsity_gene = self._gene_of.get(("sparsity", layer.name))
        sparsities: tuple[float, ...] = (0.0,)
        for gene in self.space.genes if sparsity_gene is not None else self.space.fixed:
            if gene.kind == "sparsity" and gene.target == layer.name:
                sparsities = tuple(float(c) for c in gene.choices if not isinstance(c, LayerPolicy))
        full = [LayerPolicy(d.weight_bits, d.activation, s) for d in decisions for s in sparsities]
        groups = tuple(dict.fromkeys((*layer.in_channels.groups, *layer.out_channels.groups)))
        if layer.groups > 1:
            groups = layer.out_channels.groups
        genes = [(self._gene_of.get(("channels", g)), _choices(self.space, g)) for g in groups]
        total = int(np.prod([len(choices) for _, choices in genes])) if genes else 1
        coarse = total > _MOST_COMBINATIONS
        if coarse:
            kept = [
                {g: c[round(share * (len(c) - 1))] for g, (_, c) in zip(groups, genes, strict=True)}
                for share in np.linspace(0, 1, 33)
            ]
        else:
            kept = list(_combinations(self.space, groups))
        policies = [Policy(channels=k) for k in kept]
        out = np.array([layer.shape(p)[0] for p in policies], dtype=np.int64)
        weights = np.array([layer.weights(p) for p in policies], dtype=np.int64)
        table = np.stack([self.sizes.layer_bytes(layer, d, out, weights) for d in full]).astype(float)
        shape = (
            _Lookup.averaged(genes, np.zeros((1, 1, 33)), 33)
            if coarse
            else _Lookup.over(genes, np.zeros((1, 1, len(out))))
        )
        functions: dict[str, tuple[int, NDArray[np.bool_]]] = {}
        for position, decision in enumerate(full):
            for name, amount in self.sizes.function_bytes(layer, decision).items():
                functions.setdefault(name, (amount, np.zeros(len(full), dtype=bool)))[1][position] = True
        return _LayerTable(quant_gene, sparsity_gene, len(sparsities), table, shape, functions)


class _Memo(dict[Kernel, tuple[float, float, float]]):
    """Scores of kernels; one that was not foreseen is asked for when it is needed."""

    def __init__(self, latency: LatencyModel, known: Mapping[Kernel, tuple[float, ...]]) -> None:
        super().__init__({k: (v[0], v[1], v[2]) for k, v in known.items()})
        self.latency = latency

    def __missing__(self, kernel: Kernel) -> tuple[float, float, float]:
        estimate = self.latency.predict([kernel])
        score = (float(estimate.us[0]) / 1000, float(estimate.low_us[0]) / 1000, float(estimate.high_us[0]) / 1000)
        self[kernel] = score
        return score


@dataclass(frozen=True)
class _Lookup:
    """Where in a table a candidate stands: a mixed-radix number of the channel genes that matter to it.

    values: (figures, precisions, combinations).
    """

    genes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    values: Floats
    spans: tuple[int, ...] = ()
    steps: int = 0

    @classmethod
    def over(cls, genes: Sequence[tuple[int | None, tuple[int, ...]]], values: Floats) -> "_Lookup":
        strides, stride = [], 1
        for _, choices in reversed(genes):
            strides.append(stride)
            stride *= len(choices)
        strides.reverse()
        varied = [(gene, s) for (gene, _), s in zip(genes, strides, strict=True) if gene is not None]
        return cls(tuple(g for g, _ in varied), tuple(s for _, s in varied), 0, values)

    @classmethod
    def averaged(cls, genes: Sequence[tuple[int | None, tuple[int, ...]]], values: Floats, steps: int) -> "_Lookup":
        varied = [(gene, len(choices) - 1) for gene, choices in genes if gene is not None and len(choices) > 1]
        return cls(tuple(g for g, _ in varied), (), 0, values, tuple(s for _, s in varied), steps)

    def position(self, genes: Genes) -> Ints:
        if self.steps:
            share = np.mean([genes[:, g] / span for g, span in zip(self.genes, self.spans, strict=True)], axis=0)
            return np.asarray(np.rint(share * (self.steps - 1)), dtype=np.int64)
        where = np.full(len(genes), self.offset, dtype=np.int64)
        for gene, stride in zip(self.genes, self.strides, strict=True):
            where += genes[:, gene] * stride
        return where


@dataclass(frozen=True)
class _LayerTable:
    """Bytes of one layer: (decisions, combinations), and the definitions each decision needs."""

    quant_gene: int | None
    sparsity_gene: int | None
    sparsities: int
    bytes: Floats
    shape: _Lookup
    functions: dict[str, tuple[int, NDArray[np.bool_]]]

    def decision(self, genes: Genes) -> Ints:
        where = np.zeros(len(genes), dtype=np.int64)
        if self.quant_gene is not None:
            where += genes[:, self.quant_gene] * self.sparsities
        if self.sparsity_gene is not None:
            where += genes[:, self.sparsity_gene]
        return where
