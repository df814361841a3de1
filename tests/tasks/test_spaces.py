"""Search-space files: those that ship, and the faults of a user's own."""

import pytest
from damage import damaged

from autocomp.errors import UserError
from autocomp.tasks.spaces import load_space, space_names

GOOD = """
name: mine
description: few choices
weight_bits: [4, 8, null]
activations: [int8, float]
keep_ratios: [0.5, 1.0]
sparsities: [0.0]
"""


@pytest.mark.parametrize("name", space_names())
def test_spaces_that_ship(name):
    space = load_space(name)
    assert space.name == name
    assert 1.0 in space.options.keep_ratios
    assert 0.0 in space.options.sparsities
    assert None in space.options.weight_bits


def test_a_space_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    options = load_space(str(path)).options
    assert (options.weight_bits, options.keep_ratios, options.sparsities) == ((4, 8, None), (0.5, 1.0), (0.0,))
    assert not options.weight_only
    assert (options.clusters, options.patterns) == ((), ("unstructured",))


def test_codebooks_and_patterns_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD + 'clusters: [8, 32]\npatterns: [block, "2:4"]\n')
    options = load_space(str(path)).options
    assert (options.clusters, options.patterns) == ((8, 32), ("block", "2:4"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("weight_bits: [4, 8, null]", "weight_bits: []"), "weight_bits"),
        (("weight_bits: [4, 8, null]", "weight_bits: [four]"), "weight_bits"),
        (("weight_bits: [4, 8, null]", "weight_bits: [1]"), "weight_bits"),
        (("[int8, float]", "[int4]"), "activations"),
        (("keep_ratios: [0.5, 1.0]", "keep_ratios: [0]"), "keep_ratios"),
        (("sparsities: [0.0]", "sparsities: [1.5]"), "sparsit"),
        (("sparsities: [0.0]", ""), "sparsities: Field required"),
        (("description", "descripton"), "descri"),
        (("name: mine", "name: mine\nclusters: [3]"), "clusters must be one of"),
        (("name: mine", "name: mine\npatterns: [1:2]"), "patterns"),
        (("name: mine", "name: mine\npatterns: []"), "patterns"),
        (("name: mine", "name: mine\nnetwork: {width: 0}"), "network"),
        ((GOOD, "- a list"), "expected keys with values, got list"),
        ((GOOD, "a: [b"), "is not YAML"),
        (("[0.5, 1.0]", f"[{'9' * 5000}]"), "is not YAML"),
        (("name: mine", "name: mine\nname: yours"), "stands twice"),
    ],
)
def test_a_fault_names_the_file_and_the_field(change, expected, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(UserError, match=expected) as caught:
        load_space(str(path))
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_spaces():
    with pytest.raises(UserError, match="did you mean 'mobilenet_v2'"):
        load_space("mobilenet")
    with pytest.raises(UserError, match="does not exist"):
        load_space("no/such.yaml")


def test_a_damaged_space_is_read_or_refused_in_one_line(tmp_path):
    path = tmp_path / "mine.yaml"
    refusals = []
    for seed in range(400):
        path.write_bytes(damaged(GOOD.encode(), seed))
        try:
            load_space(str(path))
        except UserError as error:
            refusals.append(str(error))
    assert 200 < len(refusals) < 400
    assert all(said.isprintable() and len(said.replace(str(tmp_path), "")) < 700 for said in refusals)
