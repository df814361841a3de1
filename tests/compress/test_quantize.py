"""Quantizers: grids, scales, ranges, masks, gradients; oracles by brute force and by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.compress.masks import kept_weights, sparsity_mask
from autocomp.compress.quantize import (
    ActivationQuantizer,
    Grid,
    TensorRange,
    WeightQuantizer,
    _FakeQuantize,
    activation_range,
    mse_scales,
)
from autocomp.compress.stored import representable_scales
from autocomp.policy import FLOAT, LayerPolicy

BITS = (2, 3, 4, 5, 6, 7, 8)


def levels_of(grid: Grid) -> np.ndarray:
    """All levels: 2 bits have codes 0…3; from 3 bits on the most negative code is not used."""
    codes = np.arange(0 if grid.bits == 2 else 1, 2**grid.bits)
    return codes * grid.step + grid.offset


def random_weight(seed: int, out: int = 6, per_channel: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(out, 1, generator=generator) * 3 + 0.01
    return torch.randn(out, per_channel, generator=generator) * spread


@pytest.mark.parametrize("bits", BITS)
def test_levels_are_symmetrical_and_fit_int8(bits):
    grid = Grid(bits)
    levels = levels_of(grid)
    assert (levels == -levels[::-1]).all()
    assert levels.max() == grid.largest <= 127
    assert (0 in levels) == (bits > 2)
    assert len(levels) == (4 if bits == 2 else 2**bits - 1)


@pytest.mark.parametrize("bits", BITS)
def test_codes_and_levels_are_one_to_one(bits):
    grid = Grid(bits)
    levels = levels_of(grid).astype(np.int8)
    codes = grid.codes(levels)
    assert codes.dtype == np.uint8
    assert codes.max() < 2**bits
    assert (codes.astype(int) * grid.step + grid.offset == levels).all()


@pytest.mark.parametrize("bits", BITS)
def test_rounding_finds_the_nearest_level(bits):
    grid = Grid(bits)
    x = torch.linspace(-1.3 * grid.largest, 1.3 * grid.largest, 4001)
    levels = torch.tensor(levels_of(grid), dtype=torch.float32)
    nearest = (x[:, None] - levels[None]).abs().min(dim=1).values
    torch.testing.assert_close((grid.round(x) - x).abs(), nearest, atol=1e-5, rtol=0)
    assert torch.isin(grid.round(x), levels).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(BITS))
def test_searched_scales_are_never_worse_than_the_peak(seed, bits):
    weight, grid = random_weight(seed), Grid(bits)

    def error(scale: torch.Tensor) -> torch.Tensor:
        return (grid.round(weight / scale) * scale - weight).square().sum(1)

    peak = weight.abs().amax(1, keepdim=True) / grid.largest
    scale = mse_scales(weight, grid)
    assert scale.shape == (6, 1)
    assert (scale > 0).all()
    assert (error(scale) <= error(peak) * (1 + 1e-4) + 1e-12).all()


def test_clipping_pays_at_few_bits():
    weight = random_weight(0, per_channel=400)
    for bits in (2, 3, 4):
        grid = Grid(bits)
        assert (mse_scales(weight, grid) < weight.abs().amax(1, keepdim=True) / grid.largest * 0.95).all()


def test_a_pruned_weight_does_not_count_for_the_scale():
    weight = random_weight(3)
    mask = torch.ones_like(weight, dtype=torch.bool)
    mask[:, 0] = False
    outlier = weight.clone()
    outlier[:, 0] = 1e4
    torch.testing.assert_close(mse_scales(outlier, Grid(4), mask), mse_scales(weight, Grid(4), mask))


def test_a_channel_of_zeros_gets_a_scale_and_stays_zero():
    weight = random_weight(4)
    weight[2] = 0
    quantizer = WeightQuantizer(weight, LayerPolicy(4))
    assert torch.isfinite(quantizer.log_scale).all()
    assert (quantizer(weight)[2] == 0).all()


def any_scale() -> st.SearchStrategy[float]:
    """Twenty-four decades, evenly."""
    return st.floats(-12, 12).map(lambda exponent: 10.0**exponent)


@settings(max_examples=100, deadline=None)
@given(st.lists(any_scale(), min_size=1, max_size=40))
def test_scales_in_half_precision_are_off_by_2_to_the_minus_9_at_most(values):
    scale = np.array(values, np.float32)
    base, roots, stored = representable_scales(scale)
    assert roots.dtype == np.float16
    squares = roots.astype(np.float32) * roots.astype(np.float32)
    assert (stored == squares * squares * base).all()
    np.testing.assert_allclose(stored, scale, rtol=2**-9 + 1e-5)


def test_stored_scales_are_stored_as_themselves():
    _, _, once = representable_scales(np.array([0.3, 0.017, 0.11], np.float32))
    assert (representable_scales(once)[2] == once).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.floats(0, 0.999))
def test_a_mask_keeps_exactly_as_many_weights_as_said(count, sparsity):
    weight = torch.randn(count, generator=torch.Generator().manual_seed(count))
    mask = sparsity_mask(weight, sparsity)
    keep = kept_weights(count, sparsity)
    assert 1 <= keep <= count
    assert abs(keep - count * (1 - sparsity)) <= 1
    if mask is None:
        assert keep == count
    else:
        assert int(mask.sum()) == keep
        assert weight[mask].abs().min() >= weight[~mask].abs().max()


def test_ties_do_not_change_how_many_weights_stay():
    assert int(sparsity_mask(torch.ones(4, 10), 0.75).sum()) == 10


def test_a_sparse_quantizer_writes_zeros_at_every_bit_width():
    weight = random_weight(5)
    for bits in (*BITS, None):
        quantizer = WeightQuantizer(weight, LayerPolicy(bits, sparsity=0.75))
        result = quantizer(weight)
        assert int((result != 0).sum()) <= 60
        assert (result[~quantizer.mask] == 0).all()


def test_a_float_weight_without_sparsity_passes_unchanged():
    weight = random_weight(6)
    assert torch.equal(WeightQuantizer(weight, FLOAT)(weight), weight)


def _gradients(weight, log_scale, grid, upstream):
    weight, log_scale = weight.clone().requires_grad_(), log_scale.clone().requires_grad_()
    _FakeQuantize.apply(weight, log_scale, grid, 1.0).backward(upstream)
    return weight.grad, log_scale.grad


def test_the_gradient_of_a_learned_scale_worked_by_hand():
    # 3 bits, scale 0.5: 0.6/0.5 = 1.2 → 1, −2.9/0.5 = −5.8 → clipped at −3, 0.2/0.5 = 0.4 → 0.
    # d/ds: 1 − 1.2 = −0.2; −3; 0 − 0.4 = −0.4. Times upstream (1, 2, 3) and s: 0.5 · (−0.2 − 6 − 1.2) = −3.7.
    weight = torch.tensor([[0.6, -2.9, 0.2]])
    upstream = torch.tensor([[1.0, 2.0, 3.0]])
    grad_weight, grad_log_scale = _gradients(weight, torch.tensor([[math.log(0.5)]]), Grid(3), upstream)
    assert grad_log_scale.item() == pytest.approx(-3.7, rel=1e-5)
    assert grad_weight.tolist() == [[1.0, 0.0, 3.0]]  # straight through, but not where the weight is clipped


@pytest.mark.parametrize("bits", BITS)
def test_the_gradient_of_a_scale_is_that_of_its_clipped_part(bits):
    # Outside the range the quantizer is level · s, differentiable: there finite differences must agree.
    grid = Grid(bits)
    weight = torch.tensor([[50.0, -70.0, 90.0]])
    log_scale = torch.tensor([[math.log(0.1)]])
    upstream = torch.tensor([[0.3, -0.2, 0.5]])
    _, analytic = _gradients(weight, log_scale, grid, upstream)
    step = 1e-3
    values = [
        float((_FakeQuantize.apply(weight, log_scale + d, grid, 1.0).double() * upstream).sum()) for d in (step, -step)
    ]
    assert analytic.item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)


def test_settling_moves_the_scale_to_what_the_file_holds():
    weight = random_weight(7)
    quantizer = WeightQuantizer(weight, LayerPolicy(4))
    before = quantizer.log_scale.exp().detach().clone()
    quantizer.settle(weight)
    after = quantizer.log_scale.exp().detach()
    _, _, stored = representable_scales(before.flatten().numpy())
    np.testing.assert_allclose(after.flatten(), stored, rtol=1e-6)
    np.testing.assert_allclose(after, before, rtol=2**-9 + 1e-6)


def dequantized(range_: TensorRange, code: int) -> float:
    return range_.scale * (code - range_.zero_point)


@settings(max_examples=60, deadline=None)
@given(st.floats(-50, 50), st.floats(0.01, 50), st.integers(0, 1000))
def test_an_activation_range_holds_zero_and_does_not_pass_the_peak(shift, spread, seed):
    x = torch.randn(200, generator=torch.Generator().manual_seed(seed)) * spread + shift
    chosen = activation_range(x)
    assert 0 <= chosen.zero_point <= 255
    assert dequantized(chosen, chosen.zero_point) == 0.0
    high, low = max(float(x.max()), 0), min(float(x.min()), 0)
    if low == 0:  # a ReLU6 may then do without a clamp of its own
        assert chosen.zero_point == 0
        assert dequantized(chosen, 255) <= high
    assert dequantized(chosen, 255) <= high + chosen.scale / 2 + 1e-6
    assert dequantized(chosen, 0) >= low - chosen.scale / 2 - 1e-6


def test_a_relu6_range_never_rounds_above_6():
    chosen = activation_range(torch.cat([torch.zeros(100), torch.full((100,), 6.0)]))
    assert 5.9 < dequantized(chosen, 255) <= 6.0


def test_ranges_clip_a_lone_outlier_but_not_a_uniform_spread():
    x = torch.linspace(0, 1, 1_000_000)  # an outlier at 2 costs 1e-6, a grid twice as coarse 4e-6
    assert dequantized(activation_range(x), 255) > 0.97
    assert dequantized(activation_range(torch.cat([x, torch.tensor([2.0])])), 255) < 1.1


def test_a_dead_activation_has_a_range():
    chosen = activation_range(torch.zeros(10))
    assert chosen.scale > 0
    assert (ActivationQuantizer(chosen)(torch.zeros(3)) == 0).all()


def test_an_activation_quantizer_worked_by_hand():
    quantizer = ActivationQuantizer(TensorRange(0.5, 10))
    x = torch.tensor([-9.0, -0.3, 0.2, 0.3, 200.0], requires_grad=True)
    y = quantizer(x)
    assert y.tolist() == [-5.0, -0.5, 0.0, 0.5, 122.5]  # codes 0, 9, 10, 11 and 255
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
