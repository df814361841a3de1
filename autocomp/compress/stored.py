"""The numbers that a file holds beside its weights: scales and biases, each within the range of its type.

Scales of channels may be twenty decades apart, and a bias may be worth far more than a channel's weights; a file must
hold both all the same.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: A bias counts at most so many units of input scale × weight scale, half of what int32 holds: products come on top.
LARGEST_BIAS = 2**30
#: Units of a bias that float16 counts by: its largest number, 65504, then stands for just below 2^31.
BIAS_STEP = 2**15
#: What a scale, and a scale times that of the layer's input, stays above and below: far from where float32 ends.
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-125, 2.0**120
#: Ratios of scales are stored by their fourth root: one in float16 that is no subnormal then spans 35 decades.
_SMALLEST_ROOT, _LARGEST_ROOT = 2.0**-14, 2.0**14


def representable_scales(scale: Floats) -> tuple[np.float32, NDArray[np.float16], Floats]:
    """Scales as the file stores them: one float32, and per channel the fourth root of a ratio to it in float16.

    scale: (out,), positive. Returns (base, roots (out,) float16, the float32 scales that the runtime will compute).
    The rounding error is at most 2^-9 of a scale, for which a weight that is rounded by it makes up.
    """
    scale = np.clip(scale.astype(np.float64), SMALLEST_SCALE, LARGEST_SCALE)
    base = np.float32(max(scale.max() / _LARGEST_ROOT**4, SMALLEST_SCALE))
    roots = np.maximum((scale / np.float64(base)) ** 0.25, _SMALLEST_ROOT).astype(np.float16)
    return base, roots, expanded_scales(base, roots)


def expanded_scales(base: np.float32, roots: NDArray[np.float16]) -> Floats:
    """The scales that a base and fourth roots stand for, by the runtime's own arithmetic; (out,)."""
    squares = np.square(roots.astype(np.float32))
    return (np.square(squares) * base).astype(np.float32)


def scales_with_room(scale: Floats, weight: Floats, bias: Floats | None, input_scale: float | None) -> Floats:
    """Scales with which a channel's bias fits into int32, and which float32 holds.

    scale: (out,). weight: (out, …). bias: (out,). input_scale: of the tensor that the layer reads, None where its bias
    is added in float. A channel whose bias is worth more than `LARGEST_BIAS` units gets a larger unit: each weight is
    then off by less than 2^-30 of the bias. One without weights gets the finest unit in which its bias fits.
    """
    fitting = scale.astype(np.float64)
    empty = ~weight.reshape(len(scale), -1).any(axis=1)
    if not empty.all():
        # A 2-bit grid lacks zero: what stands for the weights of an empty channel must be too small to matter.
        fitting[empty] = fitting[~empty].min() * 2.0**-24
    unit_limits = SMALLEST_SCALE, LARGEST_SCALE
    if input_scale is not None:
        unit_limits = SMALLEST_SCALE / min(input_scale, 1.0), LARGEST_SCALE / max(input_scale, 1.0)
        if bias is not None:
            size = np.abs(bias.astype(np.float64)) / input_scale
            # The factor is slack for rounding: what was fitted once fits as it is.
            fitting = np.where(size > LARGEST_BIAS * fitting, size / LARGEST_BIAS * 1.1, fitting)
            coarse = empty & (size > 0) & (size < LARGEST_BIAS / 4 * fitting)
            fitting = np.where(coarse, size / LARGEST_BIAS * 2, fitting)
    return np.clip(fitting, *unit_limits).astype(np.float32)


def bias_levels(bias: Floats, scales: Floats, input_scale: float, *, exact: bool) -> tuple[NDArray[np.int32], Floats]:
    """A bias in units of input scale × weight scale, as integer kernels add it, and what that stands for; both (out,).

    exact: to the unit. Else as float16 holds it, off by at most 2^-11 of itself, which is less than the rounding of
    the result to 8 bits: the two are of one size.
    """
    unit = scales * np.float32(input_scale)
    count = np.clip(bias.astype(np.float64) / unit, -LARGEST_BIAS * 1.5, LARGEST_BIAS * 1.5)
    if not exact:
        count = (count / BIAS_STEP).astype(np.float16).astype(np.float64) * BIAS_STEP
    levels = np.rint(count).astype(np.int32)
    return levels, levels.astype(np.float32) * unit
