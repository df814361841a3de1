"""Kernels of a family that a table has no rows of, in terms of families that it has.

What stands in has the same multiply-accumulates, or goes over the same values as often. Nobody measured how far that
carries, so whoever uses it says so and widens the band.
"""

from collections.abc import Container
from dataclasses import replace

from autocomp.hardware.table import LatencyTable
from autocomp.kernel import GATES, Kernel, Precision

#: Operators whose work is multiply-accumulates of many channels.
MULTIPLIES = ("conv", "linear", "matmul", "conv_transpose", "conv3d", *GATES)
#: What stands in for an operator that goes over its values, the nearest first, and how often. A norm reads them for the
#: mean, for the deviation and to scale them, where a multiplication reads two values and writes one; softmax takes an
#: exponential of each on top; the rest moves values about, as a concatenation does.
_LIGHT: dict[str, tuple[tuple[str, int], ...]] = {
    "norm": (("mul", 2), ("add", 2), ("activation", 2), ("concat", 3), ("avg_pool", 3), ("max_pool", 3)),
    "softmax": (("activation", 2), ("mul", 3), ("add", 3), ("concat", 4), ("avg_pool", 4), ("max_pool", 4)),
    **dict.fromkeys(
        ("other", "activation", "add", "mul", "concat", "pad"),
        (("concat", 1), ("mul", 1), ("add", 1), ("activation", 1), ("avg_pool", 1), ("max_pool", 1)),
    ),
}
#: Precisions that stand in for one, the nearest first: those that are seldom faster.
_PRECISIONS: dict[Precision, tuple[Precision, ...]] = {
    "int8": ("int8", "fp32"), "fp32": ("fp32", "int8"), "tf32": ("tf32", "fp32"), "fp16": ("fp16", "fp32"),
    "bf16": ("bf16", "fp16", "fp32"), "fp16_2of4": ("fp16_2of4", "fp16", "fp32"),
}  # fmt: skip

#: Kernels that stand in, each with how often it is executed.
StandIns = list[tuple[Kernel, int]]


def stand_ins(kernel: Kernel, families: Container[tuple[str, str]]) -> StandIns | None:
    """Kernels of `families`, (op, precision), that together do the work of `kernel`; None if none is near."""
    for precision in _PRECISIONS[kernel.precision]:
        same = replace(kernel, precision=precision, coding=None)
        if (kernel.op, precision) in families:
            return [(same, 1)]
        for parts in _ways(same):
            if all((part.op, part.precision) in families for part, _ in parts):
                return parts
    return None


def best_us_per_mac(table: LatencyTable) -> dict[str, float]:
    """Precision → microseconds a multiply-accumulate of the fastest linear layer or, without one, convolution."""
    best: dict[tuple[str, str], float] = {}
    for kernel, row in table.items():
        if kernel.op in ("linear", "conv") and kernel.macs:
            family = kernel.op, kernel.precision
            best[family] = min(best.get(family, float("inf")), row.latency_us / kernel.macs)
    convolutions, linears = ({p: us for (op, p), us in best.items() if op == asked} for asked in ("conv", "linear"))
    return convolutions | linears


def _ways(kernel: Kernel) -> list[StandIns]:
    """Ways to do the work of `kernel` by others, the nearest first."""
    op, precision = kernel.op, kernel.precision
    if op in GATES:
        return _recurrent(kernel)
    if op in ("conv3d", "depthwise"):
        return [[(replace(kernel, op="conv"), 1)], *_multiplied(kernel, kernel.out_height * kernel.out_width)]
    if op == "conv_transpose":
        # Each input is multiplied with all taps, as by a convolution without stride.
        return [[(replace(kernel, op="conv", stride=1), 1)], *_multiplied(kernel, kernel.height * kernel.width)]
    if op in ("linear", "matmul", "conv"):
        return _multiplied(kernel, kernel.out_height * kernel.out_width)
    channels = max(kernel.in_channels, kernel.out_channels)
    return [
        [(Kernel(name, precision, channels, channels, kernel.height, kernel.width), times)]
        for name, times in _LIGHT.get(op, ())
    ]


def _multiplied(kernel: Kernel, positions: int) -> list[StandIns]:
    """A linear layer, or a convolution without a window, of the same multiply-accumulates at so many positions."""
    depth = kernel.in_channels // kernel.groups * kernel.window
    size = Kernel("linear", kernel.precision, max(1, depth), kernel.out_channels, 1, positions)
    return [[(size, 1)], [(replace(size, op="conv"), 1)]]


def _recurrent(kernel: Kernel) -> list[StandIns]:
    """The inputs of all steps in one linear layer, then the state in one a step and direction."""
    gates, state = GATES[kernel.op], kernel.out_channels // kernel.groups
    inputs = Kernel("linear", kernel.precision, kernel.in_channels, gates * kernel.out_channels, 1,
                    kernel.height * kernel.width)  # fmt: skip
    step = Kernel("linear", kernel.precision, state, gates * state, 1, kernel.height)
    steps = kernel.width * kernel.groups
    return [[(replace(inputs, op=op), 1), (replace(step, op=op), steps)] for op in ("linear", "conv")]
