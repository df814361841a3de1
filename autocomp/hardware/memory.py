"""Peak memory of activations: the most bytes that a runtime holds at one moment of an inference, weights not counted.

The runtime executes kernels in the order of the graph, converts a tensor right before the first reader that needs the
other precision, and frees it after its last reader. The caller's input is held throughout. An element-wise kernel
writes over an input that nobody reads after it, and what only reshapes hands its input on: both as ONNX Runtime's
memory planner does. Integer layers need scratch space beside their tensors, by the rules of ONNX Runtime's kernels
(`scratch_bytes`). `experiments/activation_memory` holds the figures against what ONNX Runtime allocates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from autocomp.hardware.choices import Columns, Flag, Layout, result_shape
from autocomp.hardware.population import Accumulated, Term, merged
from autocomp.network import NETWORK_INPUT, KernelNode, NetworkSpec, plan_execution
from autocomp.policy import Policy

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Operators whose result may take the place of an input of the same size.
_ELEMENTWISE = ("add", "mul", "activation")
#: Precisions of a tensor's readers that are told apart. One with more readers is held from the first to the last.
_MOST_FLAGS = 5
_BYTES = {False: 4, True: 1}  # of a float32 and of an int8 value
#: Bytes a value by which a second float copy exceeds the int8 one, see `Life`.
_RELAID = 2 * _BYTES[False] - sum(_BYTES.values())


@dataclass(frozen=True)
class Life:
    """Moments in which a tensor is held: as it was made, and as the copy in the other precision.

    relaid: when it is held as float twice. Float convolutions have a memory layout of their own (NCHWc), so a map that
    is converted changes its layout as well, on the float side.
    """

    original: range
    copy: range
    relaid: range

    def bytes_per_value(self, stored: bool) -> list[tuple[range, int]]:
        """What a value of the tensor takes in which moments; stored: whether it was made as int8."""
        return [(self.original, _BYTES[stored]), (self.copy, _BYTES[not stored]), (self.relaid, _RELAID)]


class Lifetimes:
    """When each tensor of a network is needed.

    A moment is the conversion of one input of a kernel, or the kernel's execution; they are numbered in order.
    """

    def __init__(self, network: NetworkSpec) -> None:
        self.network = network
        self._converts: dict[tuple[int, int], int] = {}  # (reader, source) → moment
        self._executes: list[int] = []
        self.moments = 0
        for index, node in enumerate(network.kernels):
            for source in dict.fromkeys(node.inputs):
                self._converts[index, source] = self._next()
            self._executes.append(self._next())
        # Whoever called reads the outputs, as float, when all is done.
        self._caller = len(network.kernels)
        for index, node in enumerate(network.kernels):
            if node.output:
                self._converts[self._caller, index] = self._next()
        self._executes.append(self._next())

    def _next(self) -> int:
        self.moments += 1
        return self.moments - 1

    @cached_property
    def readers(self) -> Mapping[int, tuple[int, ...]]:
        """Of each tensor, the kernels that read it in order, the caller (one past the last kernel) included."""
        found: dict[int, list[int]] = {source: [] for source in range(NETWORK_INPUT, len(self.network.kernels))}
        for reader, source in sorted(self._converts):
            found[source].append(reader)
        return {source: tuple(readers) for source, readers in found.items()}

    def life(self, source: int, stored: bool, wanted: Sequence[bool]) -> Life:
        """stored: whether the tensor is int8. wanted: the same of what each of its readers reads."""
        readers = self.readers[source]
        differ = [reader for reader, int8 in zip(readers, wanted, strict=True) if int8 != stored]
        last_use = max(
            (self._executes[r] for r, int8 in zip(readers, wanted, strict=True) if int8 == stored), default=-1
        )
        if not differ:
            return Life(self._held(source, last_use), range(0), range(0))
        converted = self._converts[differ[0], source]
        relaid = range(converted, converted + self._is_relaid(source, differ[0]))
        return Life(
            self._held(source, max(last_use, converted)), range(converted, self.executes(differ[-1]) + 1), relaid
        )

    def longest(self, source: int, converted: bool) -> Life:
        """The life that is as long as any, however precisions are mixed among the readers."""
        readers = self.readers[source]
        first, last = self._converts[readers[0], source], self.executes(readers[-1])
        copy = range(first, last + 1) if converted else range(0)
        return Life(self._held(source, last), copy, copy if self._is_relaid(source, readers[0]) else range(0))

    def executes(self, index: int) -> int:
        """The moment of a kernel's execution."""
        return self._executes[index]

    def _is_relaid(self, source: int, reader: int) -> bool:
        """Whether both sides of a conversion are kernels, and what is converted is a map."""
        _, height, width = result_shape(self.network, source)
        return source != NETWORK_INPUT and reader < len(self.network.kernels) and height * width > 1

    def _held(self, source: int, last_use: int) -> range:
        if source == NETWORK_INPUT:
            return range(self.moments)
        made = self._executes[source]
        return range(made + self._in_place(source), max(made, last_use) + 1)

    def _in_place(self, index: int) -> bool:
        """Whether a kernel writes over an input; its result then takes memory only from the next moment on."""
        node = self.network.kernels[index]
        if not (node.free or node.op in _ELEMENTWISE):
            return False
        return any(
            source != NETWORK_INPUT
            and self.readers[source][-1] == index
            and _elements(self.network, source) == _elements(self.network, index)
            for source in node.inputs
        )


def _elements(network: NetworkSpec, source: int) -> int:
    channels, height, width = result_shape(network, source)
    return channels.count() * height * width


def scratch_bytes(node: KernelNode, inputs: Ints, outputs: Ints) -> Ints:
    """What an int8 kernel allocates beside its tensors, for arrays of channel counts of one shape.

    ONNX Runtime 1.32, qlinearconv.cc: a convolution whose channels fill its vectors (MlasConvSymPackWSize) reads its
    input through a table of pointers, a window each; any other unfolds its input (im2col) and holds int32 sums of its
    result. A 1×1 window needs neither pointers nor unfolding.
    """
    positions = -(-node.height // node.stride) * -(-node.width // node.stride)
    window = node.kernel_h * node.kernel_w
    sums = 4 * outputs * positions
    if node.op == "linear":
        return sums
    if node.op not in ("conv", "depthwise"):
        return np.zeros_like(outputs)
    gathers = window > 1 or node.stride > 1
    pointers = 8 * window * positions if gathers else 0
    if node.op == "depthwise":
        return pointers + np.where(outputs % 16 == 0, 0, sums)
    unfolded = inputs // node.groups * window * positions if gathers else 0
    fills = (node.groups == 1) & (inputs % 4 == 0) & (outputs >= 16)
    return np.where(fills, pointers, sums + unfolded)


def peak_memory(network: NetworkSpec, policy: Policy, *, integer_only: bool = False) -> int:
    """Bytes of activations at the worst moment of an inference under `policy`.

    integer_only: see `network.plan_execution`; such a device unfolds nothing, and its caller reads int8.
    """
    plan = plan_execution(network, policy, integer_only=integer_only)
    executed = [precision == "int8" for precision in plan.precisions]
    lifetimes = Lifetimes(network)
    held = np.zeros(lifetimes.moments, dtype=np.int64)
    for source, readers in lifetimes.readers.items():
        channels, height, width = result_shape(network, source)
        elements = channels.count(policy) * height * width
        stored = integer_only or _stored(network, source, executed)
        wanted = [executed[reader] if reader < len(executed) else integer_only for reader in readers]
        life = lifetimes.life(source, stored, wanted)
        for moments, width_bytes in life.bytes_per_value(stored):
            held[moments.start : moments.stop] += elements * width_bytes
    for index, (node, int8) in enumerate(zip(network.kernels, executed, strict=True)):
        if int8 and not integer_only:
            counts = (np.array(channels.count(policy)) for channels in (node.in_channels, node.out_channels))
            held[lifetimes.executes(index)] += int(scratch_bytes(node, *counts))
    return int(held.max())


def _stored(network: NetworkSpec, source: int, executed: Sequence[bool]) -> bool:
    """Whether a tensor is int8: a linear layer at the output writes float by itself."""
    if source == NETWORK_INPUT:
        return False
    node = network.kernels[source]
    return executed[source] and not (node.output and node.op == "linear")


class PeakMemory:
    """`peak_memory` for populations of a space.

    Where more readers than `_MOST_FLAGS` differ in precision, a tensor is taken to be held as long as by any of them,
    so the figure is then an upper bound; otherwise it is the same.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        lifetimes = Lifetimes(layout.network)
        by_moment: list[list[Term]] = [[] for _ in range(lifetimes.moments)]
        for source in lifetimes.readers:
            for moment, term in self._terms(lifetimes, source).items():
                by_moment[moment].append(term)
        for index, (node, flag) in enumerate(zip(layout.network.kernels, layout.executed, strict=True)):
            shapes = layout.kernel_shapes(node)
            scratch = np.stack([int8 * scratch_bytes(node, shapes.inputs, shapes.outputs) for int8 in flag.values])
            if scratch.any() and not layout.integer_only:
                over = (*flag.dimensions, *shapes.dimensions)
                by_moment[lifetimes.executes(index)].append(Term.of(scratch[..., None].astype(float), *over))
        by_moment = [merged(terms, np.add) for terms in by_moment if terms]
        # What is less than another moment whatever is chosen need not be looked at.
        least = max(sum(float(term.values.min()) for term in terms) for terms in by_moment)
        worst = [terms for terms in by_moment if sum(float(term.values.max()) for term in terms) >= least]
        single = merged([terms[0] for terms in worst if len(terms) == 1], np.maximum)
        self._single = Accumulated.of(single, np.maximum) if single else None
        self._several = [Accumulated.of(terms) for terms in worst if len(terms) > 1]

    def __call__(self, columns: Columns) -> Floats:
        """columns: (width, n). Bytes, (n,)."""
        n = columns.shape[1]
        peak = np.zeros((n, 1))
        if self._single is not None:
            self._single(columns, peak)
        held = np.empty((n, 1))
        for moment in self._several:
            np.maximum(peak, moment(columns, held), out=peak)
        return peak[:, 0]

    def _terms(self, lifetimes: Lifetimes, source: int) -> dict[int, Term]:
        """Bytes of one tensor in each moment that some candidate holds it in."""
        layout = self._layout
        axis = layout.result_axis(source)
        _, height, width = result_shape(layout.network, source)
        elements = axis.counts * (height * width)
        stored, lives = self._lives(lifetimes, source)
        over = (*(d for flag in stored for d in flag.dimensions), *axis.dimensions)
        held: dict[int, Floats] = {}
        for position, (int8, life) in enumerate(lives):
            for moments, width_bytes in life.bytes_per_value(int8):
                for moment in moments:
                    figures = held.setdefault(moment, np.zeros((len(lives), len(elements))))
                    figures[position] += elements * width_bytes
        return {moment: Term.of(figures[..., None], *over) for moment, figures in held.items()}

    def _lives(self, lifetimes: Lifetimes, source: int) -> tuple[list[Flag], list[tuple[bool, Life]]]:
        """The flags that a tensor's life depends on, and (is int8, life) for all their values, the last one fastest."""
        layout = self._layout
        stored = layout.stored[source]
        executed = [*layout.executed, layout.always if layout.integer_only else layout.never]  # the caller's reading
        wanted = [executed[reader] for reader in lifetimes.readers[source]]
        flags = [*{flag.column: flag for flag in (stored, *wanted)}.values()]
        if len(flags) > _MOST_FLAGS:
            converted = layout.converted[source]
            pairs = product(stored.values, converted.values)
            return [stored, converted], [(int8, lifetimes.longest(source, happens)) for int8, happens in pairs]
        lives = []
        for values in product(*(flag.values for flag in flags)):
            value = {flag.column: v for flag, v in zip(flags, values, strict=True)}
            int8 = value[stored.column]
            lives.append((int8, lifetimes.life(source, int8, [value[flag.column] for flag in wanted])))
        return flags, lives
