"""The search space: genes and policies are two spellings of one thing."""

from dataclasses import replace

import numpy as np
import pytest
from controllers.analytic import Fake, chain
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.errors import UserError
from autocomp.network import LayerSpec
from autocomp.policy import FLOAT, INT8, LayerPolicy, Policy, Sparsity, clustered
from autocomp.space import SearchSpace, SpaceOptions, kept_channels

SPACE = Fake.make().space
#: What an NPU may be offered.
CODED = SpaceOptions(
    weight_bits=(4, 8, None), sparsities=(0.0, 0.5, 0.9), clusters=(16, 4), patterns=("unstructured", "block", "2:4")
)
CODED_SPACE = SearchSpace.build(chain(8, 2), CODED)


@st.composite
def gene_vectors(draw: st.DrawFn, space: SearchSpace = SPACE) -> tuple[int, ...]:
    return tuple(draw(st.integers(0, int(count) - 1)) for count in space.cardinalities)


@given(gene_vectors())
@settings(max_examples=100)
def test_encode_undoes_decode(genes: tuple[int, ...]) -> None:
    assert tuple(SPACE.encode(SPACE.decode(genes)).tolist()) == genes


@given(gene_vectors(CODED_SPACE))
@settings(max_examples=50)
def test_encode_undoes_decode_where_clusters_and_patterns_are_offered(genes: tuple[int, ...]) -> None:
    assert tuple(CODED_SPACE.encode(CODED_SPACE.decode(genes)).tolist()) == genes


@given(gene_vectors(), gene_vectors())
@settings(max_examples=50)
def test_other_genes_are_another_policy(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    assert (SPACE.decode(first) == SPACE.decode(second)) == (first == second)


@given(gene_vectors(), st.data())
def test_check_refuses_what_is_illegal(genes: tuple[int, ...], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(genes) - 1))
    for wrong in (-1, int(SPACE.cardinalities[at])):
        with pytest.raises(ValueError, match=SPACE.genes[at].name):
            SPACE.check([*genes[:at], wrong, *genes[at + 1 :]])
    with pytest.raises(ValueError, match="expected"):
        SPACE.check(genes[1:])


def test_choices_run_from_most_to_least_compressed() -> None:
    options = SpaceOptions(weight_bits=(8, None, 2), keep_ratios=(1.0, 0.5), sparsities=(0.5,))
    space = SearchSpace.build(chain(2, 1), options)
    choices = {gene.name: gene.choices for gene in space.genes}
    assert choices["channels:g0"] == (8, 16)
    assert choices["quant:conv0"] == (
        LayerPolicy(2, "int8"), LayerPolicy(2, "float"), LayerPolicy(8, "int8"), LayerPolicy(8, "float"), FLOAT,
    )  # fmt: skip
    assert choices["sparsity:conv1"] == (0.5, 0.0)
    assert space.size == 2 * (5 * 2) ** 2
    assert space.decode(space.largest) == Policy({"conv0": FLOAT, "conv1": FLOAT}, {"g0": 16})


def test_clusters_and_patterns_take_their_place_in_the_order() -> None:
    choices = {gene.name: gene.choices for gene in CODED_SPACE.genes}
    assert choices["quant:conv1"] == (
        clustered(4), LayerPolicy(4, "int8"), clustered(16), LayerPolicy(4, "float"), INT8, LayerPolicy(8, "float"),
        FLOAT,
    )  # fmt: skip
    assert choices["sparsity:conv1"] == (
        Sparsity(0.9, "block"), 0.9, Sparsity(0.5, "2:4"), Sparsity(0.5, "block"), 0.5, 0.0,
    )  # fmt: skip
    assert Sparsity(0.5, "2:4") not in choices["sparsity:conv0"]  # 3 input channels
    assert [what for what, _ in CODED_SPACE.removed] == ["conv0: 2:4"]
    assert "multiple of four" in CODED_SPACE.removed[0][1]


def test_what_no_profile_lists_changes_nothing_but_the_list_of_what_was_removed() -> None:
    def veto(layer: LayerSpec, policy: LayerPolicy) -> str | None:
        return "not here" if policy.clusters or policy.pattern != "unstructured" else None

    plain = SpaceOptions(weight_bits=CODED.weight_bits, sparsities=CODED.sparsities)
    vetoed = SearchSpace.build(chain(2, 1), CODED, veto)
    assert vetoed.genes == SearchSpace.build(chain(2, 1), plain).genes
    assert {reason for what, reason in vetoed.removed if "conv1" in what} == {"not here"}


def test_a_pattern_is_offered_only_where_every_precision_takes_it() -> None:
    def veto(layer: LayerSpec, policy: LayerPolicy) -> str | None:
        return "no float kernel skips" if policy.pattern == "2:4" and policy.activation == "float" else None

    options = SpaceOptions(weight_bits=(8, None), sparsities=(0.5,), patterns=("unstructured", "2:4"))
    both = SearchSpace.build(chain(2, 1), options, veto)
    assert ("conv1: 2:4", "no float kernel skips") in both.removed
    integers = SearchSpace.build(chain(2, 1), replace(options, weight_bits=(8,), weight_only=False), veto)
    assert Sparsity(0.5, "2:4") in next(gene for gene in integers.genes if gene.name == "sparsity:conv1").choices


def test_what_the_device_cannot_execute_is_not_offered_and_listed() -> None:
    def veto(layer: LayerSpec, policy: LayerPolicy) -> str | None:
        return "no integer kernel for this layer" if layer.name == "conv0" and policy.activation == "int8" else None

    space = SearchSpace.build(chain(2, 1), SpaceOptions(weight_bits=(8, None), sparsities=(0.0,)), veto)
    assert space.removed == (("conv0: w8a8", "no integer kernel for this layer"),)
    with pytest.raises(UserError, match="quant:conv0: w8a8 is not offered"):
        space.encode(Policy({"conv0": INT8}))
    mixed = space.decode(space.uniform(INT8))
    assert mixed.layer("conv0") == LayerPolicy(8, "float")
    assert mixed.layer("conv1") == INT8


@pytest.mark.parametrize(
    ("channels", "ratio", "multiple", "kept"),
    [(64, 0.5, 8, 32), (64, 1.0, 8, 64), (12, 0.5, 8, 8), (12, 0.9, 8, 8), (6, 0.5, 8, 6),
     (20, 0.99, 8, 16), (64, 0.01, 8, 8)],
)  # fmt: skip
def test_kept_channels_worked_by_hand(channels: int, ratio: float, multiple: int, kept: int) -> None:
    assert kept_channels(channels, ratio, multiple) == kept


@given(st.integers(1, 2048), st.floats(0.01, 1.0), st.integers(1, 64))
def test_kept_channels_are_never_none_nor_too_many(channels: int, ratio: float, multiple: int) -> None:
    assert 1 <= kept_channels(channels, ratio, multiple) <= channels


def test_uniform_settings() -> None:
    policy = SPACE.decode(SPACE.uniform(LayerPolicy(4, "int8"), keep=0.5, sparsity=0.5))
    assert set(policy.layers.values()) == {LayerPolicy(4, "int8", 0.5)}
    assert policy.channels == {"g0": 8, "g1": 16}
    assert np.array_equal(SPACE.uniform(FLOAT), SPACE.largest)
    coded = CODED_SPACE.decode(CODED_SPACE.uniform(clustered(16), sparsity=Sparsity(0.5, "2:4")))
    assert coded.layer("conv1") == LayerPolicy(8, "int8", 0.5, 16, "2:4")
    assert coded.layer("conv0") == LayerPolicy(8, "int8", 0.5, 16)  # its 3 input channels are no group of four
    # Where no codebook is offered, a grid of as many bits comes nearest.
    assert np.array_equal(SPACE.uniform(clustered(16)), SPACE.uniform(LayerPolicy(4, "int8")))
    assert np.array_equal(SPACE.uniform(INT8, sparsity=Sparsity(0.5, "block")), SPACE.uniform(INT8, sparsity=0.5))


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="keep_ratios"):
        SpaceOptions(keep_ratios=(0.0,))
    with pytest.raises(UserError, match="at least one entry"):
        SpaceOptions(weight_bits=())
    with pytest.raises(UserError, match="clusters must be one of"):
        SpaceOptions(clusters=(64,))
    with pytest.raises(UserError, match="pattern must be one of"):
        SpaceOptions(patterns=("1:2",))  # type: ignore[arg-type]
