"""Policies: round trips through JSON, and documents that are no policies."""

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.errors import UserError
from autocomp.policy import FLOAT, INT8, WEIGHT_BITS, LayerPolicy, Policy

layer_policies = st.one_of(
    st.builds(LayerPolicy, st.sampled_from(WEIGHT_BITS), st.sampled_from(["float", "int8"]), st.floats(0, 0.999)),
    st.builds(LayerPolicy, sparsity=st.floats(0, 0.999)),
)
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


@given(st.dictionaries(st.sampled_from(["version", "layers", "channels", "other"]), json_values))
def test_a_wrong_document_is_a_user_error(document: dict[str, object]) -> None:
    refused_or_read(json.dumps({"version": 1, **document}))


@given(st.sampled_from(["weight_bits", "activation", "sparsity", "more"]), json_values)
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
        ('{"version": 1, "channels": {"g": 0}}', "group 'g'"),
        ('{"version": 1, "channels": {"g": true}}', "group 'g'"),
        ("[" * 100_000, "not JSON"),
        ("9" * 5000, "not JSON"),
    ],
    ids=range(13),
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
