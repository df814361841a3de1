"""A policy in words and rows: what the report shows of a point's decisions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from autocomp.policy import LayerPolicy, Policy
from autocomp.rundir import LayerFacts, Measured, RunData


@dataclass(frozen=True, slots=True)
class LayerDecision:
    """One row of a point's details.

    channels: unpruned output channels, None where unknown; kept is None with it.
    """

    name: str
    op: str
    decided: LayerPolicy
    kept: int | None
    channels: int | None


def known_layers(run: RunData) -> tuple[LayerFacts, ...]:
    """The network's layers; where network.json is missing, those that the policies name, with nothing else known."""
    if run.layers:
        return run.layers
    names = dict.fromkeys(name for policy in run.policies.values() for name in policy.layers)
    return tuple(LayerFacts(name, "", 1, 0, "") for name in names)


def decisions(policy: Policy, layers: Sequence[LayerFacts]) -> list[LayerDecision]:
    rows = []
    for layer in layers:
        channels = layer.channels or None
        kept = None if channels is None else policy.channels.get(layer.group, channels)
        rows.append(LayerDecision(layer.name, layer.op, policy.layer(layer.name), kept, channels))
    return rows


def summary(policy: Policy, layers: Sequence[LayerFacts]) -> list[str]:
    """In parts, each only where it says something: "4.6 bits a weight (w4 ×31, c16 ×22)", "12 % of the weights zero", …

    A layer of 16 levels, c16, counts with the 4 bits of a place in its codebook. Means are over the unpruned weights,
    so that a large layer counts for what it is.
    """
    if not layers:
        return ["no layer is decided"]
    rows = decisions(policy, layers)
    weights = [layer.weights for layer in layers]
    total = sum(weights)
    bits = sum((row.decided.stored_bits or 32) * count for row, count in zip(rows, weights, strict=True)) / total
    sparsity = sum(row.decided.sparsity * count for row, count in zip(rows, weights, strict=True)) / total
    kinds = Counter(_weights(row.decided) for row in rows)
    # "float" sorts before "w…" by name but is the widest.
    listed = ", ".join(f"{kind} ×{kinds[kind]}" for kind in sorted(kinds, key=lambda k: (k == "float", k)))
    parts = [f"{bits:.1f} bits a weight ({listed})"]
    integer = sum(row.decided.activation == "int8" for row in rows)
    parts.append(
        "all layers int8"
        if integer == len(rows)
        else f"{integer} of {len(rows)} layers int8"
        if integer
        else "all layers run in float"
    )
    if sparsity >= 0.005:
        patterns = sorted({row.decided.pattern for row in rows} - {"unstructured"})
        lie = f", some of them in patterns ({', '.join(patterns)})" if patterns else ""
        parts.append(f"{sparsity * 100:.0f} % of the weights zero{lie}")
    channels = sum(row.channels or 0 for row in rows)
    kept = sum(row.kept or 0 for row in rows)
    if channels and kept < channels:
        parts.append(f"{kept / channels * 100:.0f} % of the channels kept")
    return parts


def _weights(decided: LayerPolicy) -> str:
    if decided.clusters is not None:
        return f"c{decided.clusters}"
    return "float" if decided.weight_bits is None else f"w{decided.weight_bits}"


def most_useful(run: RunData) -> Measured | None:
    """The point to show first: the smallest that loses at most half a point of accuracy, else the most accurate."""
    if not run.front:
        return None
    reference = run.float_reference
    if reference is not None:
        close = [point for point in run.front if point.accuracy >= reference.accuracy - 0.005]
        if close:
            return min(close, key=lambda point: point.stored_bytes)
    return max(run.front, key=lambda point: point.accuracy)
