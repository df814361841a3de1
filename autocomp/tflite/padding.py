"""Zeros around an image: torch counts them per side, TFLite knows SAME, VALID, or an operator of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Window:
    """What a convolution or pooling reads: (height, width) of the kernel, of its steps, and between its taps."""

    kernel: Pair
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)

    @property
    def reach(self) -> Pair:
        """Rows and columns from the first tap to the last."""
        rows, columns = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        return rows, columns


@dataclass(frozen=True, slots=True)
class Border:
    """Rows above and below an image, columns left and right of it."""

    rows: Pair = (0, 0)
    columns: Pair = (0, 0)

    def __add__(self, other: Self) -> "Border":
        rows, columns = (
            (a[0] + b[0], a[1] + b[1]) for a, b in ((self.rows, other.rows), (self.columns, other.columns))
        )
        return Border(rows, columns)

    def __bool__(self) -> bool:
        return any((*self.rows, *self.columns))


def same_border(size: Sequence[int], window: Window) -> Border:
    """The border that SAME puts around an image of (height, width): the odd row or column comes last."""
    sides = []
    for length, reach, stride in zip(size, window.reach, window.stride, strict=True):
        total = max(_overhang(length, reach, stride), 0)
        sides.append((total // 2, total - total // 2))
    return Border(*sides)


def _overhang(length: int, reach: int, stride: int) -> int:
    """By how much ⌈length / stride⌉ steps reach beyond the image, both sides together; below 0 if they end inside."""
    return (-(-length // stride) - 1) * stride + reach - length


def pooling_border(size: Sequence[int], window: Window) -> Border:
    """What a pooling of a known window, but not of a known padding, reads around an image of (height, width).

    (window − 1) // 2 zeros ahead of the image, as nearly every network written in torch has it, and behind it as many
    as the last of ⌈size / stride⌉ steps reads.
    """
    sides = []
    for length, reach, stride in zip(size, window.reach, window.stride, strict=True):
        before = (reach - 1) // 2
        sides.append((before, max(_overhang(length, reach, stride) - before, 0)))
    return Border(*sides)


def read_border(size: Sequence[int], border: Border, window: Window, *, round_up: bool = False) -> Border:
    """The part of `border` that the window reads at all: a step may end before the last row or column.

    round_up: one more window counts that begins inside the image or the border in front of it and ends behind the
    other border (torch's `ceil_mode`): it reads rows that `border` lacks.
    """
    sides = []
    for length, (before, after), reach, stride in zip(
        size, (border.rows, border.columns), window.reach, window.stride, strict=True
    ):
        over = length + before + after - reach
        steps = over // stride
        if round_up and over % stride and (steps + 1) * stride < length + before:
            steps += 1
        sides.append((before, max(steps * stride + reach - length - before, 0)))
    return Border(*sides)
