"""Policies: round trips through JSON, and documents that are no policies."""

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.errors import UserError
from autocomp.policy import CLUSTERS, FLOAT, INT8, WEIGHT_BITS, LayerPolicy, Policy, Sparsity, clustered

zeros = st.one_of(
    st.floats(0, 0.999), st.builds(Sparsity, st.floats(0.001, 0.999), st.just("block")), st.just(Sparsity(0.5, "2:4"))
)
precisions = st.one_of(
    st.builds(LayerPolicy, st.sampled_from(WEIGHT_BITS), st.sampled_from(["float", "int8"])),
    st.just(FLOAT),
    st.builds(clustered, st.sampled_from(CLUSTERS)),
)
layer_policies = st.builds(LayerPolicy.with_zeros, precisions, zeros)
names = st.text(max_size=8)
policies = st.builds(
    Policy, st.dictionaries(names, layer_policies, max_size=4), st.dictionaries(names, st.integers(1, 4096), max_size=4)
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(policies)
def test_policy_survives_json_and_pickle(policy: Policy) -> None:
    read = Policy.from_json(policy.to_json())
    assert read == policy
    assert hash(read) == hash(policy)
    assert pickle.loads(pickle.dumps(policy)) == policy


@given(layer_policies)
def test_precision_and_zeros_make_up_a_decision(decision: LayerPolicy) -> None:
    assert decision.precision.with_zeros(decision.zeros) == decision
    assert decision.precision.with_zeros(0.0) == decision.precision
    assert decision.precision.clusters == decision.clusters


@given(layer_policies)
def test_clusters_and_patterns_are_written_only_where_they_say_something(decision: LayerPolicy) -> None:
    entry = json.loads(Policy({"conv": decision}).to_json())["layers"]["conv"]
    expected = {"weight_bits", "activation", "sparsity"}
    expected |= {"clusters"} if decision.clusters is not None else set()
    expected |= {"pattern"} if decision.pattern != "unstructured" else set()
    assert set(entry) == expected  # what releases before codebooks wrote and read


def test_a_file_of_a_release_before_codebooks_is_read() -> None:
    text = '{"version": 1, "layers": {"a": {"weight_bits": 4, "activation": "int8", "sparsity": 0.5}}, "channels": {}}'
    assert Policy.from_json(text) == Policy({"a": LayerPolicy(4, "int8", 0.5)})


@given(st.dictionaries(st.sampled_from(["version", "layers", "channels", "other"]), json_values))
def test_a_wrong_document_is_a_user_error(document: dict[str, object]) -> None:
    refused_or_read(json.dumps({"version": 1, **document}))


@given(st.sampled_from(["weight_bits", "activation", "sparsity", "clusters", "pattern", "more"]), json_values)
@settings(max_examples=150)
def test_a_wrong_layer_is_a_user_error(field: str, value: object) -> None:
    refused_or_read(json.dumps({"version": 1, "layers": {"conv": {"weight_bits": 8, field: value}}, "channels": {}}))


@given(st.text())
def test_any_text_is_a_policy_or_a_user_error(text: str) -> None:
    refused_or_read(text)


def refused_or_read(text: str) -> None:
    try:
        policy = Policy.from_json(text, "policy.json")
    except UserError as error:
        message = str(error)
    else:
        message = "policy.json"
        assert Policy.from_json(policy.to_json()) == policy
    assert "policy.json" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"version": 2}', "'version': 1"),
        ("[]", "'version': 1"),
        ('{"version": 1, "lairs": {}}', "unknown keys"),
        ('{"version": 1, "layers": {"conv1": {"weight_bits": 9}}}', "layer 'conv1': weight_bits"),
        ('{"version": 1, "layers": {"conv1": {"weight_bits": 8.0}}}', "layer 'conv1': weight_bits"),
        ('{"version": 1, "layers": {"conv1": {"activation": "int8"}}}', "layer 'conv1': int8 activations"),
        ('{"version": 1, "layers": {"conv1": {"sparsity": 1.0}}}', "layer 'conv1': sparsity"),
        ('{"version": 1, "layers": {"conv1": {"sparsity": NaN}}}', "layer 'conv1': sparsity"),
        ('{"version": 1, "layers": {"conv1": {"sparsity": 1' + "0" * 400 + "}}}", "layer 'conv1': sparsity"),
        ('{"version": 1, "layers": {"c": {"weight_bits": 8, "clusters": 12}}}', "layer 'c': clusters must be one of"),
        ('{"version": 1, "layers": {"c": {"weight_bits": 8, "clusters": true}}}', "layer 'c': clusters must be"),
        ('{"version": 1, "layers": {"c": {"weight_bits": 8, "clusters": 16}}}', "set weight_bits to 8 and activation"),
        ('{"version": 1, "layers": {"c": {"clusters": 16}}}', "got None and 'float'"),
        ('{"version": 1, "layers": {"c": {"sparsity": 0.5, "pattern": "4:2"}}}', "layer 'c': pattern must be one of"),
        ('{"version": 1, "layers": {"c": {"sparsity": 0.5, "pattern": [1]}}}', "layer 'c': pattern must be one of"),
        ('{"version": 1, "layers": {"c": {"sparsity": 0.4, "pattern": "2:4"}}}', "a sparsity of 0.5, got 0.4"),
        ('{"version": 1, "layers": {"c": {"pattern": "block"}}}', "set sparsity above 0"),
        ('{"version": 1, "channels": {"g": 0}}', "group 'g'"),
        ('{"version": 1, "channels": {"g": true}}', "group 'g'"),
        ("[" * 100_000, "not JSON"),
        ("9" * 5000, "not JSON"),
    ],
    ids=range(21),
)
def test_the_error_names_the_field(text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        Policy.from_json(text)


def test_policy_is_frozen() -> None:
    policy = Policy({"conv": INT8}, {"g": 8})
    with pytest.raises(TypeError):
        policy.layers["conv"] = FLOAT  # type: ignore[index]
    assert policy.layer("unnamed") == FLOAT


def test_layer_policy_reads_as_text() -> None:
    assert str(FLOAT) == "float"
    assert str(LayerPolicy(4, "int8", 0.5)) == "w4a8 50% sparse"
    assert str(clustered(16)) == "w8a8 c16"
    assert str(LayerPolicy(8, "int8", 0.75, 16, "block")) == "w8a8 c16 75% block-sparse"
    assert str(LayerPolicy(4, "int8", 0.5, pattern="2:4")) == "w4a8 2:4"


def test_bits_of_a_code() -> None:
    assert [clustered(count).stored_bits for count in CLUSTERS] == [1, 2, 3, 4, 5]
    assert (FLOAT.stored_bits, LayerPolicy(6, "int8").stored_bits) == (None, 6)
