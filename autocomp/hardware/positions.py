"""Kernels as points: columns of their sizes, and where they lie among others of their family."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocomp.kernel import Kernel

Floats = NDArray[np.float64]

#: Distance of a doubling of a size, and of channels that are no multiple of 4, 8, 16, or less than 16.
_WORTH = {"in": 0.7, "out": 0.7, "area": 0.5, "window": 1.0, "stride": 1.5, "groups": 1.0}
_STEPS = {"in": (2.0, 1.0, 2.0, 2.0), "out": (2.0, 0.5, 1.0, 1.0)}


def sizes(kernels: Sequence[Kernel]) -> dict[str, Floats]:
    """Columns of the kernels' sizes, each of shape (n,)."""
    raw = np.array(
        [
            (
                k.in_channels, k.out_channels, k.height * k.width, k.out_height * k.out_width, k.kernel_h * k.kernel_w,
                k.stride, k.groups, k.weight_count, k.in_elements, k.out_elements, k.precision == "fp32",
            )
            for k in kernels
        ],
        dtype=np.float64,
    ).reshape(len(kernels), 11)  # fmt: skip
    names = ("in", "out", "area", "out_area", "window", "stride", "groups", "weights", "reads", "writes", "fp32")
    return dict(zip(names, raw.T, strict=True))


def up(channels: Floats, multiple: int) -> Floats:
    """`channels`, (n,), rounded up to a multiple."""
    return np.ceil(channels / multiple) * multiple


def position(size: dict[str, Floats]) -> Floats:
    """Where a kernel lies among others of its family, shape (n, 14): log₂ of sizes, and how channels divide.

    What each is worth was chosen by the error on left-out rows of this repository's reference machine
    (experiments/latency_estimator): latencies follow the roofline from one area to another more than elsewhere.
    """
    log = {name: np.log2(size[name]) for name in ("in", "out", "area", "window", "stride", "groups")}
    log["groups"] = np.where(size["groups"] >= size["in"], 0.0, log["groups"])  # depthwise: one a channel, told already
    scaled: list[NDArray[Any]] = [_WORTH[name] * value for name, value in log.items()]
    # Channels that do not fill a vector, or less than one, take another code path: as far as a change of size by that.
    for name, worth in _STEPS.items():
        scaled += [step * (size[name] % multiple != 0) for multiple, step in zip((4, 8, 16), worth[:3], strict=True)]
        scaled.append(worth[3] * (size[name] < 16))
    return np.stack(scaled, axis=1)


def kernel_positions(kernels: Sequence[Kernel]) -> Floats:
    """Where kernels lie among others of their (op, precision), shape (n, 14); near ones have similar latencies."""
    return position(sizes(kernels))
