"""A network as the search sees it: layers, coupled channel groups, fused kernels. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from autocomp.kernel import Kernel, Precision, WeightCoding
from autocomp.policy import LayerPolicy, Pattern, Policy

NETWORK_INPUT = -1
#: Kernels with weights.
LAYER_OPS = ("conv", "depthwise", "linear")
#: Kinds of layers whose weights are stored in few bits and unpacked at load: no runtime computes them on integers.
WEIGHT_ONLY = ("embedding", "recurrent")


@dataclass(frozen=True, slots=True)
class Channels:
    """The channel axis of a tensor: the channel groups concatenated along it.

    parts: (group name, channels of that group) in order; the name is None for channels that nothing can prune.
    repeat: elements that stand for one channel, more than 1 after a flatten of spatial positions.
    """

    parts: tuple[tuple[str | None, int], ...]
    repeat: int = 1

    def count(self, policy: Policy | None = None) -> int:
        """Elements along the axis under `policy` (unpruned where it is None)."""
        kept = policy.channels if policy is not None else {}
        return self.repeat * sum(kept.get(group, size) if group is not None else size for group, size in self.parts)

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(group for group, _ in self.parts if group is not None))


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A layer that can be quantized: a convolution, a linear layer, or one of `WEIGHT_ONLY`.

    weight_shape: (out, in / groups, *window), unpruned; of an embedding, (entries, features); of a
    recurrent layer, which is two for each direction, (gates * units, inputs or units).
    positions: output positions that share the weights (out_height * out_width; tokens for a linear layer, steps of a
    recurrent one); 0 where nothing is multiplied.
    depthwise: one filter per channel; input and output are then the same channel group.
    """

    name: str
    op: str
    weight_shape: tuple[int, ...]
    in_channels: Channels
    out_channels: Channels
    positions: int
    groups: int = 1
    depthwise: bool = False
    bias: bool = True

    def shape(self, policy: Policy | None = None) -> tuple[int, ...]:
        """Shape of the weight under `policy`."""
        if policy is None:
            return self.weight_shape
        if self.depthwise:
            return (self.out_channels.count(policy), *self.weight_shape[1:])
        if self.groups > 1:
            return self.weight_shape
        return (self.out_channels.count(policy), self.in_channels.count(policy), *self.weight_shape[2:])

    def weights(self, policy: Policy | None = None) -> int:
        """Number of weights under `policy`, zeros of unstructured sparsity included."""
        product = 1
        for size in self.shape(policy):
            product *= size
        return product

    def macs(self, policy: Policy | None = None) -> int:
        """Multiply-accumulates of one inference. Unstructured sparsity does not lower it: no kernel skips zeros."""
        return self.weights(policy) * self.positions


def activation_fault(layer: LayerSpec, decision: LayerPolicy) -> str | None:
    """Why `layer` cannot read integers, as `decision` says; None if it can, or does not have to."""
    if layer.op in WEIGHT_ONLY and decision.activation == "int8":
        return f"no runtime has an integer kernel for a layer of kind {layer.op}: only its weights may have few bits."
    return None


def pattern_fault(layer: LayerSpec, pattern: Pattern, policy: Policy | None = None) -> str | None:
    """Why zeros of `layer`, as large as under `policy`, cannot lie in `pattern`; None if they can."""
    if pattern != "2:4":
        return None
    if layer.shape(policy)[1] % 4:
        return "2:4 takes two of every four input channels of a filter: their number must be a multiple of four."
    if layer.in_channels.repeat > 1:
        # What is flattened lies in another order in files that store channels last.
        return "2:4 takes two of every four input channels: behind a flatten, neighbouring inputs are of one channel."
    return None


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels that must be kept or dropped together, wherever they are produced or read.

    producers: layers whose output channels belong to the group. reason: why it cannot be pruned; "" if it can.
    """

    name: str
    channels: int
    producers: tuple[str, ...]
    reason: str = ""

    @property
    def prunable(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True)
class KernelNode:
    """A fused kernel in the graph.

    inputs: indices of the kernels that produce its inputs, NETWORK_INPUT for the network's own input.
    layer: the layer it executes, or None.
    int8: whether the runtime has an integer kernel for it when its inputs are int8 (layers: when the policy says so).
    free: no work of its own (reshape, flatten): it only passes its input's precision on.
    keeps_range: its result takes only values of its input (max pooling, transpose), so both share one int8 grid.
    output: its result is the network's output, which stays float.
    work: float kernels that the runtime executes for it besides the one that op names. only_work: that one is not
    executed, as where an operator has no integer kernel and is not a layer; an empty `work` then only renames data, and
    where it may run as int8, its work does. result: height and width of its result where its window does not say them.
    """

    name: str
    op: str
    inputs: tuple[int, ...]
    in_channels: Channels
    out_channels: Channels
    height: int = 1
    width: int = 1
    kernel_h: int = 1
    kernel_w: int = 1
    stride: int = 1
    groups: int = 1
    layer: str | None = None
    int8: bool = False
    free: bool = False
    keeps_range: bool = False
    output: bool = False
    work: tuple[Kernel, ...] = ()
    only_work: bool = False
    result: tuple[int, int] | None = None

    def kernels(
        self, precision: Precision, in_channels: int, out_channels: int, coding: WeightCoding | None = None
    ) -> tuple[Kernel, ...]:
        """All that is executed for it, on a device with floating point, with so many channels and weights so coded."""
        work = tuple(self._resized(kernel, in_channels, out_channels) for kernel in self.work)
        if self.only_work and self.int8:
            work = tuple(replace(kernel, precision=precision) for kernel in work)
        return (
            work if self.only_work or self.free else (self.sized(precision, in_channels, out_channels, coding), *work)
        )

    def _resized(self, kernel: Kernel, in_channels: int, out_channels: int) -> Kernel:
        """A kernel of its work with the channels that are left: of what is pruned, work keeps channels as they are."""
        unpruned = self.in_channels.count(), self.out_channels.count()
        if (in_channels, out_channels) == unpruned:
            return kernel
        inputs = in_channels if kernel.in_channels == unpruned[0] else kernel.in_channels
        outputs = out_channels if kernel.out_channels == unpruned[1] else kernel.out_channels
        return replace(kernel, in_channels=inputs, out_channels=outputs)

    def kernel(self, precision: Precision, policy: Policy | None = None, *, coded: bool = False) -> Kernel:
        """The table key of this kernel under `policy`; coded: on a device whose kernels differ by their weights."""
        coding = None
        if coded and policy is not None and self.layer is not None:
            coding = WeightCoding.of(policy.layer(self.layer))
        return self.sized(precision, self.in_channels.count(policy), self.out_channels.count(policy), coding)

    def sized(
        self, precision: Precision, in_channels: int, out_channels: int, coding: WeightCoding | None = None
    ) -> Kernel:
        """The table key of this kernel with so many channels, and weights so coded."""
        return Kernel(
            self.op, precision, in_channels, out_channels, self.height, self.width, self.kernel_h, self.kernel_w,
            self.stride, out_channels if self.op == "depthwise" else self.groups, coding,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """Something that is not traced, quantized or pruned. what: "quantize", "prune" or "trace"."""

    name: str
    what: str
    reason: str


@dataclass(frozen=True)
class NetworkSpec:
    """A traced network.

    input_shape: one example without the batch axis. kernels: in topological order.
    """

    name: str
    input_shape: tuple[int, ...]
    layers: tuple[LayerSpec, ...]
    groups: tuple[ChannelGroup, ...]
    kernels: tuple[KernelNode, ...]
    left_alone: tuple[LeftAlone, ...] = ()
    layer_by_name: Mapping[str, LayerSpec] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        if len(set(names)) != len(names):
            raise ValueError(f"layer names are not unique: {names}")
        object.__setattr__(self, "layer_by_name", {layer.name: layer for layer in self.layers})

    @cached_property
    def group_by_name(self) -> dict[str, ChannelGroup]:
        return {group.name: group for group in self.groups}

    def weights(self, policy: Policy | None = None) -> int:
        return sum(layer.weights(policy) for layer in self.layers)

    def macs(self, policy: Policy | None = None) -> int:
        return sum(layer.macs(policy) for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Execution:
    """How the runtime will execute a network: a precision per kernel, and the conversions between them.

    precisions: one per kernel of the network. conversions: (kernel index whose output is converted, or
    NETWORK_INPUT; "quantize" or "dequantize"). integer_only: the network's input and output are int8 too.
    """

    precisions: tuple[Precision, ...]
    conversions: tuple[tuple[int, str], ...]
    integer_only: bool = False


def plan_execution(network: NetworkSpec, policy: Policy, *, integer_only: bool = False) -> Execution:
    """Precision of each kernel under `policy`, by the rule that the writers follow.

    A layer runs as int8 if the policy says so. Anything else runs as int8 if it has an integer kernel and all its
    inputs are int8, except for what makes the network's output, which is float. A float tensor is quantized once for
    all its int8 readers, an int8 tensor dequantized once for all its float readers. integer_only: a device without
    floating point, whose caller hands over an int8 input and reads an int8 output.
    """
    precisions: list[Precision] = []
    stored: dict[int, Precision] = {NETWORK_INPUT: "int8" if integer_only else "fp32"}
    conversions: list[tuple[int, str]] = []
    seen: set[tuple[int, str]] = set()
    for index, node in enumerate(network.kernels):
        if node.layer is not None:
            precision: Precision = "int8" if policy.layer(node.layer).activation == "int8" else "fp32"
        elif integer_only or (
            not node.output and node.int8 and node.inputs and all(stored[source] == "int8" for source in node.inputs)
        ):
            precision = "int8"
        else:
            precision = "fp32"
        precisions.append(precision)
        # A linear layer writes float by itself; an integer convolution has an int8 result, whoever reads it.
        stored[index] = "fp32" if node.output and node.op == "linear" and not integer_only else precision
        for source in node.inputs:
            if stored[source] != precision:
                step = (source, "quantize" if precision == "int8" else "dequantize")
                if step not in seen:
                    seen.add(step)
                    conversions.append(step)
        if node.output and stored[index] == "int8" and not integer_only:
            conversions.append((index, "dequantize"))
    return Execution(tuple(precisions), tuple(conversions), integer_only)
