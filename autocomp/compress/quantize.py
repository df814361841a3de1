"""Quantizers: what a weight or an activation becomes at a given number of bits, in training and for good."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autocomp.compress.cluster import Codebook, fit_codebook
from autocomp.compress.masks import sparsity_mask
from autocomp.compress.stored import LARGEST_SCALE, SMALLEST_SCALE, representable_scales, scales_with_room
from autocomp.policy import LayerPolicy


@dataclass(frozen=True, slots=True)
class Grid:
    """Integer levels of a weight: `step * u + offset` for the codes u = 0 … 2**bits − 1, symmetric around zero.

    2 bits use the half-step grid {−3, −1, 1, 3}: all four codes carry a magnitude, which loses less than a ternary
    grid (Liu et al. 2025, ParetoQ, §3.3). From 3 bits on zero is a level, and the most negative code is not used.
    Every level fits int8.
    """

    bits: int

    @property
    def step(self) -> int:
        return 2 if self.bits == 2 else 1

    @property
    def offset(self) -> int:
        return -3 if self.bits == 2 else -(2 ** (self.bits - 1))

    @property
    def largest(self) -> int:
        """Largest level; the smallest is its negative."""
        return 3 if self.bits == 2 else 2 ** (self.bits - 1) - 1

    @property
    def reach(self) -> int:
        """Weights beyond it, in units of the scale, are clipped: no gradient reaches them."""
        return self.largest + (1 if self.bits == 2 else 0)

    def round(self, x: torch.Tensor) -> torch.Tensor:
        """Nearest level to each element of `x` (in units of the scale)."""
        if self.bits == 2:
            return (torch.floor(x / 2) * 2 + 1).clamp_(-3, 3)
        return x.round().clamp_(-self.largest, self.largest)

    def codes(self, levels: NDArray[np.int8]) -> NDArray[np.uint8]:
        """The code u of each level."""
        return ((levels.astype(np.int16) - self.offset) // self.step).astype(np.uint8)


class _FakeQuantize(torch.autograd.Function):
    """Learned step size quantization (Esser et al. 2020, eq. 3), the scale being exp(log_scale) per channel.

    grid: a Grid or a Codebook; either way gradients pass straight through its rounding.
    """

    @staticmethod
    def forward(ctx, weight, log_scale, grid, gradient_scale):  # type: ignore[no-untyped-def]
        scale = log_scale.exp()
        x = weight / scale
        levels = grid.round(x)
        inside = x.abs() <= grid.reach
        ctx.save_for_backward(x, levels, inside, scale)
        ctx.gradient_scale = gradient_scale
        return levels * scale

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, levels, inside, scale = ctx.saved_tensors
        # d(levels·s)/ds is levels − x inside the range and the largest level outside; chain rule for s = exp(t).
        slope = torch.where(inside, levels - x, levels)
        over = tuple(range(1, grad.ndim))
        grad_scale = (grad * slope).sum(dim=over, keepdim=True) * scale * ctx.gradient_scale
        return grad * inside, grad_scale, None, None


def mse_scales(weight: torch.Tensor, grid: Grid, mask: torch.Tensor | None = None, steps: int = 24) -> torch.Tensor:
    """Per-output-channel scales of least squared error, by a search over clipping points.

    weight: (out, …). mask: booleans of the same shape, False where a weight is pruned (it is not quantized and
    does not count). Returns (out, 1, …), positive.
    """
    flat = weight.detach().flatten(1)
    chosen = mask.flatten(1) if mask is not None else None
    peak = (flat if chosen is None else flat * chosen).abs().amax(dim=1, keepdim=True)
    # Not every grid has a zero: what stands for a channel without weights must be too small to matter.
    least = peak[peak > 0].min() * 2.0**-24 if (peak > 0).any() else torch.tensor(1e-8)
    peak = torch.where(peak > 0, peak, least)
    unit = flat / peak  # errors are compared in units of the peak: their squares would leave float32 otherwise
    best = torch.full_like(peak, torch.inf)
    scale = peak / grid.largest
    # The best clipping point lies higher the more levels there are; 8-bit weights hardly gain from clipping.
    lowest = {2: 0.3, 3: 0.35, 4: 0.45, 5: 0.55, 6: 0.65}.get(grid.bits, 0.8)
    for fraction in torch.linspace(lowest, 1.0, steps if grid.bits < 8 else 6):
        trial = fraction / grid.largest
        error = (grid.round(unit / trial) * trial - unit).square()
        if chosen is not None:
            error = error * chosen
        total = error.sum(dim=1, keepdim=True)
        better = total < best
        best = torch.where(better, total, best)
        scale = torch.where(better, peak * trial, scale)
    scale = scale.clamp(SMALLEST_SCALE, LARGEST_SCALE)
    return scale.reshape(-1, *[1] * (weight.ndim - 1))


class WeightQuantizer(nn.Module):
    """Quantizes one layer's weight in training; after `settle`, to what the file holds."""

    def __init__(self, weight: torch.Tensor, decision: LayerPolicy) -> None:
        super().__init__()
        mask = sparsity_mask(weight, decision.sparsity, decision.pattern)
        self.register_buffer("mask", mask)
        self.grid: Grid | Codebook | None = None
        if decision.weight_bits is not None:
            self.grid = Grid(decision.weight_bits)
            scales = mse_scales(weight, self.grid, mask)
            if decision.clusters is not None:
                self.grid, scales = fit_codebook(weight, scales, decision.clusters, mask)
            self.log_scale = nn.Parameter(scales.log())
            # Esser et al. 2020, §2.2: keep the step size's update in proportion to the weights'.
            per_channel = max(1, weight[0].numel())
            self.gradient_scale = 1.0 / (per_channel * self.grid.largest) ** 0.5

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if self.grid is not None:
            weight = _FakeQuantize.apply(weight, self.log_scale, self.grid, self.gradient_scale)
        return weight * self.mask if self.mask is not None else weight

    @torch.no_grad()
    def settle(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None, input_scale: float | None = None
    ) -> tuple[np.float32, NDArray[np.float16], NDArray[np.float32]]:
        """Move the scales to the nearest that the file can hold, so that training and file agree.

        weight: (out, …). bias: (out,), where it is added as an integer; input_scale: of what the layer then reads.
        Returns (base, roots, scales (out,)) of `representable_scales`.
        """
        kept = weight if self.mask is None else weight * self.mask
        scale = scales_with_room(
            self.log_scale.exp().flatten().numpy(), kept.numpy(), None if bias is None else bias.numpy(), input_scale
        )
        base, roots, stored = representable_scales(scale)
        self.log_scale.copy_(torch.from_numpy(stored).reshape(self.log_scale.shape).log())
        return base, roots, stored


@dataclass(frozen=True, slots=True)
class TensorRange:
    """Affine uint8 quantization of an activation: real = scale * (q − zero_point)."""

    scale: float
    zero_point: int


def activation_range(samples: torch.Tensor, steps: int = 20) -> TensorRange:
    """The uint8 range of least squared error over `samples` (any shape), by a search over clipping points.

    Zero is always representable exactly: padding and ReLU need it.
    """
    low, high = min(float(samples.min()), 0.0), max(float(samples.max()), 0.0)
    if (high - low) / 255 < SMALLEST_SCALE:
        return TensorRange(1.0 / 255, 0)
    # Errors are compared in units of the peak: their squares would leave float32 otherwise.
    peak = max(high, -low)
    unit, lowest, highest = samples / peak, low / peak, high / peak
    best, chosen = float("inf"), 1.0
    for fraction in torch.linspace(0.5, 1.0, steps).tolist():
        candidate = _affine(lowest * fraction, highest * fraction)
        quantized = torch.fake_quantize_per_tensor_affine(unit, candidate.scale, candidate.zero_point, 0, 255)
        error = float((quantized - unit).square().mean())
        if error < best:
            best, chosen = error, fraction
    return _affine(low * chosen, high * chosen)


def _affine(low: float, high: float) -> TensorRange:
    # The scale is what float32 holds, and small enough that the top code never passes `high`: a ReLU6 then needs
    # no clamp of its own after quantization.
    scale = float(np.float32(min(max((high - low) / 255.0 * (1 - 2.0**-20), SMALLEST_SCALE), LARGEST_SCALE)))
    return TensorRange(scale, round(min(max(-low / scale, 0.0), 255.0)))


class ActivationQuantizer(nn.Module):
    """Rounds an activation to its uint8 grid; gradients pass inside the range."""

    def __init__(self, range: TensorRange) -> None:
        super().__init__()
        self.range = range

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fake_quantize_per_tensor_affine(x, self.range.scale, self.range.zero_point, 0, 255)
