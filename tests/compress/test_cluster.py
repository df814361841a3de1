"""Codebooks: k-means in one dimension against brute force and scipy, and how a layer's weights take few levels."""

from itertools import combinations

import networks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import images, traced
from scipy.cluster.vq import kmeans2

from autocomp.compress.cluster import LARGEST, Codebook, fit_codebook, kmeans_levels
from autocomp.compress.finetune import distillation_loss, finetune, outputs_of
from autocomp.compress.network import QuantizedNetwork
from autocomp.compress.quantize import Grid, WeightQuantizer, mse_scales
from autocomp.policy import CLUSTERS, Policy, clustered


def error(x: np.ndarray, levels: np.ndarray, importance: np.ndarray | None = None) -> float:
    weights = np.ones_like(x) if importance is None else importance
    return float((weights * ((x[:, None] - levels[None].astype(float)) ** 2).min(axis=1)).sum())


def random_weight(seed: int, out: int = 8, per_channel: int = 60) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, per_channel, generator=generator) * (torch.rand(out, 1, generator=generator) * 3 + 0.05)


def test_levels_worked_by_hand():
    x = np.array([-100.0, -98.0, 1.0, 2.0, 60.0])
    assert kmeans_levels(x, 1).tolist() == [-27]  # the mean
    assert kmeans_levels(x, 2).tolist() == [-99, 21]
    # One level for −100 and −98 costs 2, one for 1 and 2 (rounded to a whole number) costs 1.
    assert kmeans_levels(x, 4).tolist() == [-100, -98, 2, 60]
    assert kmeans_levels(np.array([5.0, 5.2]), 4).tolist() == [5]
    assert kmeans_levels(np.array([300.0, -300.0]), 2).tolist() == [-LARGEST, LARGEST]
    # The second value counts nine times: the common level moves there.
    assert kmeans_levels(np.array([0.0, 10.0]), 1, np.array([1.0, 9.0])).tolist() == [9]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(-LARGEST, LARGEST), min_size=1, max_size=9, unique=True), st.integers(1, 4), st.integers(0, 99)
)
def test_no_other_split_is_better(values, clusters, seed):
    x = np.sort(np.array(values, float))
    importance = np.random.default_rng(seed).uniform(0.1, 2.0, len(x))
    found = error(x, kmeans_levels(x, clusters, importance), importance)
    # Clusters of an optimum are runs of the sorted values, their levels the means, rounded: try every way to cut.
    for cuts in combinations(range(1, len(x)), min(clusters, len(x)) - 1):
        parts = np.split(np.arange(len(x)), cuts)
        levels = np.array([np.rint(np.average(x[part], weights=importance[part])) for part in parts])
        assert found <= error(x, levels, importance) + 1e-9


@pytest.mark.parametrize("clusters", [2, 4, 16])
def test_lloyd_iterations_of_scipy_end_no_better(clusters):
    x = np.random.default_rng(clusters).standard_t(4, 4000) * 20
    x = np.rint(x[np.abs(x) <= LARGEST])
    levels = kmeans_levels(x, clusters)
    best = min(error(x, kmeans2(x, clusters, seed=seed, minit="++")[0]) for seed in range(5))
    assert len(levels) == clusters
    # scipy's centres need not be whole numbers, which is worth at most a quarter of a squared unit a value.
    assert error(x, levels) <= best + 0.25 * len(x)
    assert error(x, levels) >= 0.9 * best


def test_rounding_finds_the_nearest_level():
    book = Codebook(torch.tensor([-127.0, -20.0, 3.0, 90.0, 90.0]))
    x = torch.linspace(-150, 150, 3001)
    nearest = (x[:, None] - book.levels[None]).abs().min(dim=1).values
    torch.testing.assert_close((book.round(x) - x).abs(), nearest)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(CLUSTERS))
def test_a_codebook_beats_the_grid_of_as_many_bits(seed, clusters):
    weight = random_weight(seed)
    book, scale = fit_codebook(weight, mse_scales(weight, Grid(8)), clusters)
    assert len(book.levels) == clusters
    assert (book.levels.diff() >= 0).all()
    assert book.levels.abs().max() >= LARGEST - 2  # the whole of int8 is used, or rounding the levels would cost
    assert scale.shape == (8, 1) and (scale > 0).all()
    found = (book.round(weight / scale) * scale - weight).square().sum()
    if clusters > 2:
        grid = Grid(clusters.bit_length() - 1)
        steps = mse_scales(weight, grid)
        assert found <= (grid.round(weight / steps) * steps - weight).square().sum() * 1.02


def test_scales_and_codebook_undo_what_channels_are_multiplied_by():
    weight = random_weight(1)
    factor = torch.logspace(-2, 2, 8)[:, None]
    relative = []
    for tensor in (weight, weight * factor):
        book, scale = fit_codebook(tensor, mse_scales(tensor, Grid(8)), 8)
        relative.append(((book.round(tensor / scale) * scale - tensor) / tensor.norm(dim=1, keepdim=True)).norm())
    assert relative[1] <= 1.2 * relative[0]


def test_pruned_weights_do_not_count():
    weight = random_weight(2)
    mask = torch.ones_like(weight, dtype=torch.bool)
    mask[:, :20] = False
    wild = torch.where(mask, weight, torch.tensor(1e3))
    start = mse_scales(weight, Grid(8), mask)
    for mine, other in zip(fit_codebook(weight, start, 8, mask), fit_codebook(wild, start, 8, mask), strict=True):
        levels = [part.levels if isinstance(part, Codebook) else part for part in (mine, other)]
        assert torch.equal(*levels)


def test_a_channel_of_zeros_does_no_harm():
    weight = random_weight(3)
    weight[2] = 0
    result = WeightQuantizer(weight, clustered(4))(weight)
    assert torch.isfinite(result).all()
    assert result[2].abs().max() < 1e-6


def everywhere(decision) -> Policy:
    return Policy({layer.name: decision for layer in traced(networks.Residual).spec.layers})


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("clusters", [2, 16])
def test_a_finetuned_layer_takes_the_levels_of_its_codebook_and_no_other(clusters, sparsity):
    network = QuantizedNetwork(traced(networks.Residual), everywhere(clustered(clusters).with_zeros(sparsity)))
    network.quantize([images(32)])
    x = images(64).numpy()
    teacher = outputs_of(traced(networks.Residual).graph, x)

    def distance() -> float:
        return float(distillation_loss(torch.from_numpy(outputs_of(network.module, x)), torch.from_numpy(teacher)))

    before = distance()
    _, scales = network.parameters()
    finetune(
        network.module, x, None, teacher, epochs=12, batch_size=16, learning_rate=1e-3, seed=0, log_scales=scales,
    )  # fmt: skip
    frozen = network.freeze()
    assert distance() < 0.9 * before  # weights move between levels, and scales learn
    for layer in frozen.layers.values():
        assert layer.codebook is not None and len(layer.codebook) == clusters
        kept = layer.levels if layer.mask is None else layer.levels[layer.mask]
        assert set(np.unique(kept)) <= set(layer.codebook.tolist())
        if layer.mask is not None:
            assert (layer.levels[~layer.mask] == 0).all()
        scale = layer.scales.reshape(-1, *[1] * (layer.weight.ndim - 1))
        np.testing.assert_array_equal(layer.weight, layer.levels * scale)


def test_more_levels_lose_less():
    x = images(32)
    losses = []
    with torch.no_grad():
        reference = traced(networks.Residual).graph(x)
        for clusters in CLUSTERS:
            network = QuantizedNetwork(traced(networks.Residual), everywhere(clustered(clusters)))
            network.quantize([x])
            losses.append(float((network.module(x) - reference).std() / reference.std()))
    assert losses == sorted(losses, reverse=True)
    assert losses[CLUSTERS.index(16)] < 0.2
