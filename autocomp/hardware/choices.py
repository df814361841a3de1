"""What each kernel of a network may look like over the candidates of a space: its precision and its channels.

A candidate is laid out as *columns* of small integers, of which every cost is a table lookup: its genes first, and
after them what follows from several genes together (the channels that enter a concatenation, whether a kernel runs
as int8, whether its result is converted). `Layout` names the columns and how each is filled for a whole population.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import gcd, prod
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from autocomp.hardware.ethos_u.pooling import with_copies
from autocomp.kernel import Kernel, Precision, WeightCoding
from autocomp.network import NETWORK_INPUT, Channels, KernelNode, LayerSpec, NetworkSpec
from autocomp.policy import FLOAT, LayerPolicy, Policy, Zeros
from autocomp.space import SearchSpace

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Columns = NDArray[np.signedinteger]

#: Positions of one axis. A concatenation of more different sums is tabulated at every n-th of them.
MOST_POSITIONS = 1024


class Dimension(NamedTuple):
    """A column that a table runs over, and how many values it takes."""

    column: int
    size: int


class Step(Protocol):
    """One column worked out from others, for all candidates of a chunk."""

    def fill(self, columns: Columns) -> None:
        """columns: (columns, n)."""
        ...


@dataclass(frozen=True)
class Lookup:
    """column = table[source]."""

    column: int
    source: int
    table: Columns

    def fill(self, columns: Columns) -> None:
        self.table.take(columns[self.source], out=columns[self.column], mode="clip")  # "raise" would copy


@dataclass(frozen=True)
class Total:
    """column = the sum of `sources` in units of `step`, rounded up. A source may stand there more than once."""

    column: int
    sources: tuple[int, ...]
    step: int

    def fill(self, columns: Columns) -> None:
        total = columns[self.sources[0]].astype(np.int32)
        for source in self.sources[1:]:
            total += columns[source]
        columns[self.column] = -(-total // self.step)


@dataclass(frozen=True)
class All:
    """column = 1 where all `sources` are."""

    column: int
    sources: tuple[int, ...]

    def fill(self, columns: Columns) -> None:
        row = columns[self.column]
        row[:] = columns[self.sources[0]]
        for source in self.sources[1:]:
            row &= columns[source]


@dataclass(frozen=True)
class AnyDiffer:
    """column = 1 where the flags of any of the `pairs` differ."""

    column: int
    pairs: tuple[tuple[int, int], ...]

    def fill(self, columns: Columns) -> None:
        row = columns[self.column]
        (first, second), *others = self.pairs
        np.bitwise_xor(columns[first], columns[second], out=row)
        for first, second in others:
            row |= columns[first] ^ columns[second]


@dataclass(frozen=True)
class Flag:
    """A yes or no of each candidate. values: those that occur, so one for what never changes."""

    column: int
    values: tuple[bool, ...]

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        return (Dimension(self.column, 2),) if len(self.values) > 1 else ()


@dataclass(frozen=True)
class Axis:
    """Channel counts that a tensor may have.

    column: holds a candidate's position among them, None where there is only one. counts: (positions,).
    reachable: (positions,), whether any candidate has that count.
    """

    column: int | None
    counts: Ints
    reachable: Bools

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        return () if self.column is None else (Dimension(self.column, len(self.counts)),)


@dataclass(frozen=True)
class Shapes:
    """Pairs of channel counts, inputs and outputs, that a kernel or layer may have.

    inputs, outputs, reachable: (positions,), in the order of a table over `dimensions`.
    """

    dimensions: tuple[Dimension, ...]
    inputs: Ints
    outputs: Ints
    reachable: Bools

    @classmethod
    def of(cls, inputs: Axis, outputs: Axis) -> "Shapes":
        if inputs.column is None or outputs.column is None or inputs.column == outputs.column:
            ins, outs = np.broadcast_arrays(inputs.counts, outputs.counts)
            return cls(inputs.dimensions or outputs.dimensions, ins, outs, inputs.reachable & outputs.reachable)
        first, second = (len(axis.counts) for axis in (inputs, outputs))
        return cls(
            (*inputs.dimensions, *outputs.dimensions),
            np.repeat(inputs.counts, second),
            np.tile(outputs.counts, first),
            np.outer(inputs.reachable, outputs.reachable).ravel(),
        )


def result_shape(network: NetworkSpec, source: int) -> tuple[Channels, int, int]:
    """Channels, height and width of a kernel's result, or of the network's input."""
    if source == NETWORK_INPUT:
        shape = network.input_shape
        channels = Channels(((None, shape[0] if shape else 1),))
        if len(shape) == 3:
            return channels, shape[1], shape[2]
        return channels, 1, shape[1] if len(shape) == 2 else 1
    node = network.kernels[source]
    if node.result is not None:
        return node.out_channels, *node.result
    if node.op == "global_avg_pool" or node.out_channels.repeat > 1:
        return node.out_channels, 1, 1
    return node.out_channels, -(-node.height // node.stride), -(-node.width // node.stride)


def layer_sizes(layer: LayerSpec, inputs: Ints, outputs: Ints) -> tuple[Ints, Ints]:
    """Output channels and number of weights of a layer with so many channels; arrays of one shape."""
    if layer.depthwise:
        return outputs, outputs * prod(layer.weight_shape[1:])
    if layer.groups > 1:
        return np.full_like(outputs, layer.weight_shape[0]), np.full_like(outputs, layer.weights())
    return outputs, outputs * inputs * prod(layer.weight_shape[2:])


class Layout:
    """Columns of a candidate of `space`, and in them where each kernel's precision and channels are found.

    executed: per kernel, whether it runs as int8. stored: per tensor (by the kernel that makes it, NETWORK_INPUT for
    the input), whether it is int8. converted: per tensor, whether a reader needs the other precision, so that it is
    quantized or dequantized; the rule is that of `network.plan_execution`. network: as the device executes it.
    """

    def __init__(self, space: SearchSpace, *, integer_only: bool = False) -> None:
        self.space = space
        self.network = with_copies(space.network) if integer_only else space.network
        self.integer_only = integer_only
        self.steps: list[Step] = []
        self._gene_of = {(gene.kind, gene.target): index for index, gene in enumerate(space.genes)}
        self.width = len(space) + 2
        self.never, self.always = Flag(len(space), (False,)), Flag(len(space) + 1, (True,))
        self._kept: dict[int, int] = {}
        self._totals: dict[tuple[int, ...], Axis] = {}
        self.executed: list[Flag] = []
        self.stored: dict[int, Flag] = {NETWORK_INPUT: self.always if integer_only else self.never}
        for node in self.network.kernels:
            self._place_precision(node)
        self.converted = {source: self._conversion(source) for source in self.stored}

    def columns(self, genes: NDArray[np.int64], room: Columns | None = None) -> Columns:
        """genes: (n, len(space)) → (width, n), in the memory of `room`, an earlier result for at least n, if given."""
        if room is None:
            room = np.empty((self.width, len(genes)), dtype=np.int16)
        columns = room[:, : len(genes)]
        columns[: len(self.space)] = genes.astype(columns.dtype).T  # narrowed first: a quarter to turn in the cache
        columns[self.never.column], columns[self.always.column] = 0, 1
        for step in self.steps:
            step.fill(columns)
        return columns

    def decisions(self, layer: str) -> tuple[tuple[Dimension, ...], tuple[LayerPolicy, ...]]:
        """What may be decided about a layer's precision, sparsity aside."""
        index = self._gene_of.get(("quant", layer))
        for gene in self.space.genes if index is not None else self.space.fixed:
            if gene.kind == "quant" and gene.target == layer:
                choices = tuple(choice for choice in gene.choices if isinstance(choice, LayerPolicy))
                return (() if index is None else (Dimension(index, len(choices)),)), choices
        return (), (FLOAT,)

    def sparsities(self, layer: str) -> tuple[tuple[Dimension, ...], tuple[Zeros, ...]]:
        """Which weights of a layer may be zero."""
        index = self._gene_of.get(("sparsity", layer))
        for gene in self.space.genes if index is not None else self.space.fixed:
            if gene.kind == "sparsity" and gene.target == layer:
                choices = tuple(choice for choice in gene.choices if not isinstance(choice, LayerPolicy))
                return (() if index is None else (Dimension(index, len(choices)),)), choices
        return (), (0.0,)

    def axis(self, channels: Channels) -> Axis:
        """The counts that a channel axis may have."""
        fixed, varied = 0, []
        for group, size in channels.parts:
            index = None if group is None else self._gene_of.get(("channels", group))
            if index is not None:
                varied.append(index)
            else:
                fixed += size if group is None else self._only_choice(group)
        if not varied:
            return Axis(None, np.array([channels.repeat * fixed]), np.array([True]))
        if len(set(varied)) == 1:
            kept = len(varied) * np.array(self.space.genes[varied[0]].choices, dtype=np.int64)
            return Axis(varied[0], channels.repeat * (fixed + kept), np.ones(len(kept), dtype=bool))
        total = self._total(tuple(sorted(varied)))
        return Axis(total.column, channels.repeat * (fixed + total.counts), total.reachable)

    def full_decisions(self, layer: str) -> tuple[tuple[Dimension, ...], list[LayerPolicy]]:
        """Every decision about a layer, in the order of a table over the dimensions."""
        which, choices = self.decisions(layer)
        sparse, sparsities = self.sparsities(layer)
        return (*which, *sparse), [choice.with_zeros(zeros) for choice in choices for zeros in sparsities]

    def kernel_shapes(self, node: KernelNode) -> Shapes:
        return Shapes.of(self.axis(node.in_channels), self.axis(node.out_channels))

    def layer_shapes(self, layer: LayerSpec) -> Shapes:
        if layer.groups > 1 and not layer.depthwise:
            return Shapes.of(self.axis(Channels(())), self.axis(Channels(())))  # never pruned
        return Shapes.of(self.axis(layer.in_channels), self.axis(layer.out_channels))

    def result_axis(self, source: int) -> Axis:
        return self.axis(result_shape(self.network, source)[0])

    def conversions(self, source: int) -> tuple[str, ...]:
        """ "quantize" and "dequantize" as far as the result of `source` may need them."""
        if True not in self.converted[source].values:
            return ()
        return tuple("dequantize" if stored else "quantize" for stored in self.stored[source].values)

    def _new_column(self) -> int:
        self.width += 1
        return self.width - 1

    def _only_choice(self, group: str) -> int:
        for gene in self.space.fixed:
            if gene.kind == "channels" and gene.target == group:
                return int(gene.choices[0])  # type: ignore[arg-type]
        return self.network.group_by_name[group].channels

    def _place_precision(self, node: KernelNode) -> None:
        if node.layer is not None:
            flag = self._decided(node.layer)
        elif self.integer_only:
            flag = self.always
        elif not node.output and node.int8 and node.inputs:
            flag = self._all([self.stored[source] for source in node.inputs])
        else:
            flag = self.never
        writes_float = node.output and node.op == "linear" and not self.integer_only
        self.stored[len(self.executed)] = self.never if writes_float else flag
        self.executed.append(flag)

    def _decided(self, layer: str) -> Flag:
        dimensions, choices = self.decisions(layer)
        int8 = np.array([choice.activation == "int8" for choice in choices])
        if len(set(int8.tolist())) == 1:
            return self.always if int8[0] else self.never
        column = self._new_column()
        self.steps.append(Lookup(column, dimensions[0].column, int8.astype(np.int16)))
        return Flag(column, (False, True))

    def _all(self, flags: Sequence[Flag]) -> Flag:
        if any(flag.values == (False,) for flag in flags):
            return self.never
        varied = {flag.column: flag for flag in flags if len(flag.values) > 1}
        if len(varied) < 2:
            return next(iter(varied.values()), self.always)
        column = self._new_column()
        self.steps.append(All(column, tuple(varied)))
        return Flag(column, (False, True))

    def _conversion(self, source: int) -> Flag:
        stored = self.stored[source]
        readers = [self.executed[reader] for reader, node in enumerate(self.network.kernels) if source in node.inputs]
        if source != NETWORK_INPUT and self.network.kernels[source].output and not self.integer_only:
            readers.append(self.never)  # whoever called reads float
        others = {reader.column: reader for reader in readers if reader.column != stored.column}
        if any(len(reader.values) == len(stored.values) == 1 for reader in others.values()):
            return self.always
        if not others:
            return self.never
        column = self._new_column()
        self.steps.append(AnyDiffer(column, tuple((stored.column, other) for other in others)))
        return Flag(column, (False, True))

    def _total(self, genes: tuple[int, ...]) -> Axis:
        """The axis of the sum of what several genes keep, each as often as it is named."""
        if genes not in self._totals:
            choices = [np.array(self.space.genes[gene].choices, dtype=np.int64) for gene in genes]
            low, high = (sum(int(pick(c)) for c in choices) for pick in (np.min, np.max))
            unit = gcd(*(int(kept - c.min()) for c in choices for kept in c))
            step = unit * -(-((high - low) // unit + 1) // MOST_POSITIONS)
            counts = np.minimum(low + step * np.arange(-(-(high - low) // step) + 1), high)
            sums = {0}
            for c in choices:
                sums = {total + kept for total in sums for kept in (c - c.min()).tolist()}
            reachable = np.zeros(len(counts), dtype=bool)
            reachable[[-(-total // step) for total in sums]] = True
            column = self._new_column()
            self.steps.append(Total(column, tuple(self._kept_column(gene) for gene in genes), step))
            self._totals[genes] = Axis(column, counts, reachable)
        return self._totals[genes]

    def _kept_column(self, gene: int) -> int:
        """Holds how many channels more than the fewest possible a gene keeps."""
        if gene not in self._kept:
            choices = np.array(self.space.genes[gene].choices, dtype=np.int64)
            self._kept[gene] = self._new_column()
            self.steps.append(Lookup(self._kept[gene], gene, (choices - choices.min()).astype(np.int16)))
        return self._kept[gene]


def conversion_kernel(network: NetworkSpec, source: int, step: str, channels: int) -> Kernel:
    """The kernel that quantizes or dequantizes the result of `source`."""
    _, height, width = result_shape(network, source)
    return Kernel(step, "int8", channels, channels, height, width)


def kernels_over(
    node: KernelNode, precision: Precision, shapes: Shapes, coding: WeightCoding | None = None
) -> list[Kernel]:
    """The kernel that names `node` at every position of `shapes`."""
    return [
        node.sized(precision, inputs, outputs, coding)
        for inputs, outputs in zip(shapes.inputs.tolist(), shapes.outputs.tolist(), strict=True)
    ]


def executed(node: KernelNode, precision: Precision, policy: Policy, *, integer_only: bool) -> tuple[Kernel, ...]:
    """All kernels that are executed for `node` under `policy`."""
    if integer_only:
        return () if node.free else (node.kernel(precision, policy, coded=True),)
    return node.kernels(precision, node.in_channels.count(policy), node.out_channels.count(policy))


def executed_over(
    node: KernelNode, precision: Precision, shapes: Shapes, *, integer_only: bool = False
) -> list[tuple[Kernel, ...]]:
    """All kernels that are executed for `node`, which has no coded weights, at every position of `shapes`."""
    if integer_only:
        return [() if node.free else (kernel,) for kernel in kernels_over(node, precision, shapes)]
    return [
        node.kernels(precision, inputs, outputs)
        for inputs, outputs in zip(shapes.inputs.tolist(), shapes.outputs.tolist(), strict=True)
    ]


def choosable_kernels(space: SearchSpace, *, integer_only: bool = False) -> list[Kernel]:
    """Every kernel that some candidate of the space may execute, without repetition: what a table should hold.

    integer_only: see `network.plan_execution`; the kernels of such a device differ by how their weights are coded.
    """
    layout = Layout(space, integer_only=integer_only)
    found: dict[Kernel, None] = {}
    for node, flag in zip(layout.network.kernels, layout.executed, strict=True):
        shapes = layout.kernel_shapes(node)
        if integer_only and node.layer is not None:
            codings = {WeightCoding.of(decision) for decision in layout.full_decisions(node.layer)[1]}
            for int8, coding in product(flag.values, sorted(codings, key=str)):
                every = kernels_over(node, "int8" if int8 else "fp32", shapes, coding)
                found |= dict.fromkeys(k for k, may in zip(every, shapes.reachable, strict=True) if may)
            continue
        for int8 in flag.values:
            all_of = executed_over(node, "int8" if int8 else "fp32", shapes, integer_only=integer_only)
            found |= dict.fromkeys(k for ks, may in zip(all_of, shapes.reachable, strict=True) if may for k in ks)
    for source in layout.stored:
        axis = layout.result_axis(source)
        for step, channels in product(layout.conversions(source), axis.counts[axis.reachable].tolist()):
            found[conversion_kernel(layout.network, source, step, channels)] = None
    return list(found)
