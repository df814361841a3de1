"""Kernels: what a runtime executes as one call, and the key under which a latency table files it."""

from dataclasses import dataclass
from typing import Literal, get_args

from autocomp.policy import LayerPolicy, Pattern

#: What a kernel computes in. "tf32": float32 values, multiplied with 10 bits of mantissa on tensor cores.
#: "fp16_2of4": fp16 with two of any four neighbouring weights zero (2:4), which sparse tensor cores skip.
Precision = Literal["fp32", "tf32", "fp16", "bf16", "fp16_2of4", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_VALUE_BYTES: dict[Precision, int] = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "fp16_2of4": 2, "int8": 1}

#: Operators that a table may hold. "conv" has groups 1 or a true grouped convolution; "depthwise" has one filter
#: per channel; "linear" is a fully-connected layer applied to `height * width` positions; "pad" copies an image of
#: `height` x `width` to where zeros surround it.
#:
#: The others are seldom in a table, and then estimated from those that are (`hardware.unlisted`): "matmul" multiplies
#: `height` pairs of activations, (width, in_channels) by (in_channels, out_channels); "conv_transpose" has `height` x
#: `width` inputs that its stride spreads out; "conv3d" is one over a volume that is laid out as an image; "lstm", "gru"
#: and "rnn" go over `width` steps of `height` examples, with out_channels values of state in `groups` directions;
#: "norm" and "softmax" go over all values more than once; "other" does what no table has a name for.
OPS = (
    "conv", "depthwise", "linear", "add", "mul", "concat", "max_pool", "avg_pool", "global_avg_pool",
    "activation", "pad", "quantize", "dequantize",
    "matmul", "conv_transpose", "conv3d", "lstm", "gru", "rnn", "norm", "softmax", "other",
)  # fmt: skip
#: Linear layers in a step of a recurrent layer, on the input and on the state each.
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


@dataclass(frozen=True, slots=True, order=True)
class WeightCoding:
    """How the weights of a kernel are coded, for devices on which that decides how fast they arrive.

    bits, sparsity, pattern: as in a LayerPolicy. clusters: levels of the codebook; 0 for none.
    """

    bits: int = 8
    clusters: int = 0
    sparsity: float = 0.0
    pattern: Pattern = "unstructured"

    @classmethod
    def of(cls, decision: LayerPolicy) -> "WeightCoding | None":
        """The coding of a layer; None where its weights are float."""
        if decision.weight_bits is None:
            return None
        return cls(decision.weight_bits, decision.clusters or 0, float(decision.sparsity), decision.pattern)

    @property
    def decision(self) -> LayerPolicy:
        """The integer layer that has this coding."""
        return LayerPolicy(self.bits, "int8", self.sparsity, self.clusters or None, self.pattern)

    def __str__(self) -> str:
        return str(self.decision).replace("a8", "", 1)  # the kernel says int8 already


@dataclass(frozen=True, slots=True, order=True)
class Kernel:
    """One fused kernel (convolution + bias + activation count as one), batch size 1.

    height, width: spatial size of the input; a 1-D signal has height 1, a vector 1×1.
    kernel_h, kernel_w, stride: 1 for what has no window. Padding is "same" (kernel // 2).
    in_channels: channels of the input; of the sum of all inputs for "concat"; of one input for "add", "mul".
    coding: of its weights, on devices whose kernels differ by it; else None.
    """

    op: str
    precision: Precision
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel_h: int = 1
    kernel_w: int = 1
    stride: int = 1
    groups: int = 1
    coding: WeightCoding | None = None

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise ValueError(f"kernel op must be one of {OPS}, got {self.op!r}")

    @property
    def out_height(self) -> int:
        return self.height * self.stride if self.op == "conv_transpose" else -(-self.height // self.stride)

    @property
    def out_width(self) -> int:
        return self.width * self.stride if self.op == "conv_transpose" else -(-self.width // self.stride)

    @property
    def window(self) -> int:
        """Taps of the window."""
        return self.kernel_h * self.kernel_w

    @property
    def weight_count(self) -> int:
        """Number of weights; 0 for kernels without any."""
        if self.op in GATES:
            state = self.out_channels // self.groups
            return GATES[self.op] * self.out_channels * (self.in_channels + state)
        if self.op not in ("conv", "depthwise", "linear", "conv_transpose", "conv3d"):
            return 0
        return self.out_channels * (self.in_channels // self.groups) * self.window

    @property
    def value_bytes(self) -> int:
        """Bytes of one value of its tensors and weights."""
        return _VALUE_BYTES[self.precision]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        if self.op == "matmul":
            return self.in_channels * self.out_channels * self.height * self.width
        if self.op == "conv_transpose":
            return self.weight_count * self.height * self.width
        return self.weight_count * self.out_height * self.out_width

    @property
    def in_elements(self) -> int:
        if self.op == "matmul":
            return self.in_channels * self.height * (self.width + self.out_channels)
        return self.in_channels * self.height * self.width * (2 if self.op in ("add", "mul") else 1)

    @property
    def out_elements(self) -> int:
        if self.op == "global_avg_pool":
            return self.out_channels
        return self.out_channels * self.out_height * self.out_width

    def __str__(self) -> str:
        window = f" {self.kernel_h}x{self.kernel_w}" if self.window > 1 else ""
        stride = f" s{self.stride}" if self.stride > 1 else ""
        groups = f" g{self.groups}" if self.groups > 1 and self.op != "depthwise" else ""
        size = f" @{self.height}x{self.width}" if self.height * self.width > 1 else ""
        coding = f" {self.coding}" if self.coding is not None else ""
        channels = f"{self.in_channels}→{self.out_channels}"
        return f"{self.op}{window} {channels}{stride}{groups}{size} {self.precision}{coding}"
