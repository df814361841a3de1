"""Masks: how many weights stay, and that those that become zero lie in the pattern that was asked for."""

import networks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import images, traced

from autocomp.compress.finetune import finetune, outputs_of
from autocomp.compress.masks import BLOCK, GROUP, kept_of_shape, sparsity_mask
from autocomp.compress.network import QuantizedNetwork
from autocomp.compress.prune import check_policy
from autocomp.errors import UserError
from autocomp.network import pattern_fault
from autocomp.policy import INT8, LayerPolicy, Pattern, Policy, Sparsity

shapes = st.one_of(
    st.tuples(st.integers(1, 70), st.integers(1, 9)),
    st.tuples(st.integers(1, 70), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
)


def random_weight(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def check_block(kept: np.ndarray) -> None:
    """kept: (out, …). Whole blocks of output channels stay or go."""
    for start in range(0, len(kept), BLOCK):
        block = kept[start : start + BLOCK]
        assert (block == block[0]).all()


def check_two_of_four(kept: np.ndarray) -> None:
    """kept: (out, in, …). At most two of four consecutive input channels stay."""
    groups = kept.reshape(len(kept), -1, GROUP, *kept.shape[2:])
    assert (groups.sum(axis=2) <= 2).all()


@settings(max_examples=60, deadline=None)
@given(shapes, st.floats(0.01, 0.99))
def test_blocks_stay_or_go_as_a_whole_and_as_many_as_said(shape, sparsity):
    weight = random_weight(shape)
    mask = sparsity_mask(weight, sparsity, "block")
    expected = kept_of_shape(shape, sparsity, "block")
    if mask is None:
        assert expected == weight.numel()
        return
    assert int(mask.sum()) == expected
    check_block(mask.numpy())
    # The share is met but for the rounding to whole blocks, and a block stays where there is any.
    assert abs(expected - weight.numel() * (1 - sparsity)) <= 2 * BLOCK


def test_the_strongest_blocks_stay():
    weight = random_weight((64, 6, 3, 3))
    mask = sparsity_mask(weight, 0.75, "block")
    norms = weight.unflatten(0, (4, BLOCK)).norm(dim=1)
    kept = mask.unflatten(0, (4, BLOCK))[:, 0]
    assert norms[kept].min() >= norms[~kept].max()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 8), st.sampled_from([(), (3,), (3, 3)]))
def test_two_of_four_are_the_two_largest_of_each_group(out, groups, window):
    weight = random_weight((out, GROUP * groups, *window))
    mask = sparsity_mask(weight, 0.5, "2:4").numpy()
    assert mask.sum() == weight.numel() / 2 == kept_of_shape(tuple(weight.shape), 0.5, "2:4")
    check_two_of_four(mask)
    magnitude = weight.abs().numpy().reshape(out, groups, GROUP, *window)
    kept = mask.reshape(magnitude.shape)
    assert (np.where(kept, magnitude, np.inf).min(axis=2) >= np.where(kept, 0, magnitude).max(axis=2)).all()


def test_two_of_four_worked_by_hand():
    weight = torch.tensor([[0.1, -3.0, 2.0, 0.5, 1.0, 1.0, 1.0, -9.0]])
    mask = sparsity_mask(weight, 0.5, "2:4")[0]
    assert mask[:4].tolist() == [False, True, True, False]
    assert int(mask[4:].sum()) == 2 and bool(mask[7])  # of equals any one stays, but no more than two in all


@pytest.mark.parametrize("pattern", ["block", "2:4"])
def test_zeros_lie_in_the_pattern_after_finetuning(pattern: Pattern):
    source = traced(networks.Residual)
    fits = {layer.name for layer in source.spec.layers if pattern_fault(layer, pattern) is None}
    assert fits
    policy = Policy({name: INT8.with_zeros(Sparsity(0.5, pattern)) for name in fits})
    network = QuantizedNetwork(source, policy)
    network.quantize([images(32)])
    x = images(64).numpy()
    _, scales = network.parameters()
    finetune(
        network.module, x, None, outputs_of(source.graph, x), epochs=3, batch_size=16, learning_rate=1e-2, seed=0,
        log_scales=scales,
    )  # fmt: skip
    frozen = network.freeze()
    for name in fits:
        levels = frozen.layers[name].levels
        check_block(frozen.layers[name].mask) if pattern == "block" else check_two_of_four(levels != 0)
        assert (levels[~frozen.layers[name].mask] == 0).all()
        assert (levels != 0).sum() <= kept_of_shape(levels.shape, 0.5, pattern)


def test_a_pattern_that_does_not_fit_the_layer_is_refused_by_name():
    spec = traced(networks.Residual).spec
    depthwise = next(layer.name for layer in spec.layers if layer.depthwise)
    policy = Policy({depthwise: LayerPolicy(8, "int8", 0.5, pattern="2:4")})
    with pytest.raises(UserError, match=rf"layer '{depthwise}' cannot be w8a8 2:4: .* multiple of four"):
        check_policy(spec, policy)
    # A channel count that a policy makes counts as well: 30 input channels are no whole groups.
    name, group = next(
        (layer.name, layer.in_channels.groups[0])
        for layer in spec.layers
        if layer.in_channels.groups and not layer.depthwise and pattern_fault(layer, "2:4") is None
        and spec.group_by_name[layer.in_channels.groups[0]].prunable
    )  # fmt: skip
    two_of_four = {name: LayerPolicy(8, "int8", 0.5, pattern="2:4")}
    check_policy(spec, Policy(two_of_four))
    with pytest.raises(UserError, match="multiple of four"):
        check_policy(spec, Policy(two_of_four, {group: spec.group_by_name[group].channels - 2}))
