"""Kernels that differ in their channels only, to look at: "conv 96→* @14x14 int8"."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal, cast

from autocomp.errors import UserError
from autocomp.hardware.estimator import LatencyEstimate, LatencyModel
from autocomp.hardware.table import Latency, LatencyTable
from autocomp.kernel import OPS, PRECISIONS, Kernel, Precision

EXAMPLE = "conv 96→* @14x14 int8"
#: Which channels of a kernel vary: those of its input, those of its output, or both as one number.
Axis = Literal["in", "out", "both"]

_PATTERN = re.compile(
    rf"(?P<op>{'|'.join(OPS)})"
    r"(?: (?P<kernel_h>\d{1,4})x(?P<kernel_w>\d{1,4}))?"
    r" (?P<in>\*|\d{1,6}) ?(?:→|->) ?(?P<out>\*|\d{1,6})"
    r"(?: s(?P<stride>\d{1,4}))?(?: g(?P<groups>\d{1,6}))?"
    r"(?: @(?P<height>\d{1,6})x(?P<width>\d{1,6}))?"
    rf" (?P<precision>{'|'.join(PRECISIONS)})"
)
#: Operators whose output may have other channels than their input. Those of any other vary together.
_TWO_COUNTS = frozenset({"conv", "linear"})


@dataclass(frozen=True, slots=True)
class ChannelSweep:
    """All kernels like `template` but for the channels along `axis`, which are 1 in the template itself."""

    template: Kernel
    axis: Axis

    @classmethod
    def parse(cls, text: str) -> "ChannelSweep":
        """A kernel as it is printed, with * for the channels that vary. UserError for anything else."""
        found = _PATTERN.fullmatch(" ".join(text.split()))
        if found is None:
            raise UserError(f"--kernel: expected a kernel as it is printed, with * for the channels that vary, "
                            f"such as {EXAMPLE!r}, got {text[:80]!r}")  # fmt: skip
        part = found.groupdict()
        varies = [side for side in ("in", "out") if part[side] == "*"]
        if part["op"] in _TWO_COUNTS and len(varies) != 1:
            raise UserError(f"--kernel: write * for the input's or for the output's channels, as in {EXAMPLE!r}")
        if part["op"] not in _TWO_COUNTS and len(varies) != 2:
            raise UserError(f"--kernel: {part['op']} has as many outputs as inputs: write *→*, got {text[:80]!r}")
        sizes = {name: int(part[name] or 1) for name in ("height", "width", "kernel_h", "kernel_w", "stride", "groups")}
        channels = {side: 1 if part[side] == "*" else int(part[side]) for side in ("in", "out")}
        if min(*sizes.values(), *channels.values()) < 1:
            raise UserError(f"--kernel: sizes are whole numbers of at least 1, got {text[:80]!r}")
        template = Kernel(
            part["op"], cast(Precision, part["precision"]), channels["in"], channels["out"], **sizes, coding=None
        )
        return cls(template, "both" if len(varies) == 2 else cast(Axis, varies[0]))

    @classmethod
    def through(cls, kernel: Kernel, axis: Axis) -> "ChannelSweep":
        """The sweep along `axis` that `kernel` belongs to."""
        return cls(_with_channels(kernel, axis, 1), axis)

    @classmethod
    def fullest(cls, table: LatencyTable) -> "ChannelSweep":
        """The sweep with the most rows of `table`, over convolutions where it has any. ValueError if it is empty."""
        kernels = [kernel for kernel in table if kernel.op == "conv"] or list(table)
        sweeps = Counter(cls.through(kernel, axis) for kernel in kernels for axis in _axes(kernel))
        # Among equals the one with the most work, which tells most; then by name, so that it is always the same.
        return max(sweeps, key=lambda sweep: (sweeps[sweep], sweep.kernel(64).macs, str(sweep)))

    def kernel(self, channels: int) -> Kernel:
        """The member with so many channels."""
        return _with_channels(self.template, self.axis, channels)

    def rows(self, table: LatencyTable) -> dict[int, Kernel]:
        """Channels → kernel of the rows of `table` that belong to the sweep, fewest channels first."""
        counts = {kernel: kernel.out_channels if self.axis == "out" else kernel.in_channels for kernel in table}
        return {count: k for k, count in sorted(counts.items(), key=lambda item: item[1]) if self.kernel(count) == k}

    def __str__(self) -> str:
        """As `parse` reads it."""
        left, _, right = str(self.template).partition("→")
        left = left if self.axis == "out" else left.removesuffix("1") + "*"
        right = right if self.axis == "in" else "*" + right.removeprefix("1")
        return f"{left}→{right}"


@dataclass(frozen=True)
class Curve:
    """Latency over channels: what was measured, and what the model makes of it.

    channels: ascending, n of them. estimate: of these, see `LatencyEstimate`. measured: channels → row of the table.
    """

    sweep: ChannelSweep
    channels: tuple[int, ...]
    estimate: LatencyEstimate
    measured: dict[int, Latency]


def curve(sweep: ChannelSweep, table: LatencyTable, model: LatencyModel, points: int = 400) -> Curve:
    """The curve of `sweep` from 1 channel to a fifth beyond the most that were measured, at about `points` channels.

    All measured channels are among them. Where nothing was measured it ends at 256 channels.
    """
    rows = sweep.rows(table)
    end = max(rows, default=214) * 6 // 5
    step = -(-end // points)
    channels = tuple(sorted({*range(step, end + 1, step), 1, *rows}))
    estimate = model.predict([sweep.kernel(count) for count in channels])
    return Curve(sweep, channels, estimate, {count: table[kernel] for count, kernel in rows.items()})


def _axes(kernel: Kernel) -> tuple[Axis, ...]:
    if kernel.op not in _TWO_COUNTS:
        return ("both",) if kernel.in_channels == kernel.out_channels else ()
    return ("in", "out") if kernel.groups == 1 else ()


def _with_channels(kernel: Kernel, axis: Axis, channels: int) -> Kernel:
    groups = channels if kernel.op == "depthwise" else kernel.groups
    ins = kernel.in_channels if axis == "out" else channels
    outs = kernel.out_channels if axis == "in" else channels
    return replace(kernel, in_channels=ins, out_channels=outs, groups=groups)
