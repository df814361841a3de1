"""A policy in words: what stands beside a point of the front."""

from autocomp.policy import FLOAT, INT8, LayerPolicy, Policy, Sparsity, clustered
from autocomp.report.explain import decisions, summary
from autocomp.rundir import LayerFacts

LAYERS = (LayerFacts("stem", "conv", 100, 16, "g0"), LayerFacts("body", "conv", 300, 0, ""))


def test_bits_and_zeros_are_weighted_by_the_weights_of_a_layer():
    policy = Policy({"stem": INT8, "body": LayerPolicy(4, "int8", 0.5)}, {"g0": 8})
    assert summary(policy, LAYERS) == [
        "5.0 bits a weight (w4 ×1, w8 ×1)", "all layers int8", "38 % of the weights zero", "50 % of the channels kept",
    ]  # fmt: skip
    assert summary(Policy(), LAYERS) == ["32.0 bits a weight (float ×2)", "all layers run in float"]


def test_codebooks_and_patterns_are_named():
    policy = Policy({"stem": FLOAT, "body": clustered(16).with_zeros(Sparsity(0.5, "2:4"))})
    assert summary(policy, LAYERS) == [
        "11.0 bits a weight (c16 ×1, float ×1)", "1 of 2 layers int8",
        "38 % of the weights zero, some of them in patterns (2:4)",
    ]  # fmt: skip
    assert [row.decided for row in decisions(policy, LAYERS)] == [FLOAT, policy.layer("body")]
