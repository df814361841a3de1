"""The legal choices of a search, as genes: a candidate is one choice index per gene."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autocomp.errors import UserError
from autocomp.network import WEIGHT_ONLY, LayerSpec, NetworkSpec, pattern_fault
from autocomp.policy import FLOAT, HALF, PATTERNS, Activation, LayerPolicy, Pattern, Policy, Sparsity, Zeros, clustered

GeneKind = Literal["channels", "quant", "sparsity"]
#: A channel count, a precision, or which weights are zero.
Choice = int | LayerPolicy | Zeros
Genes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Gene:
    """One decision: channels a group keeps, precision of a layer, or sparsity of a layer.

    target: the group or layer it decides about. choices: legal values from the most to the least compressed, so
    that index 0 is the cheapest and the last is the original: ints for "channels", LayerPolicy for "quant",
    floats for "sparsity", or Sparsity for zeros that lie in a pattern.
    """

    kind: GeneKind
    target: str
    choices: tuple[Choice, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.target}"


@dataclass(frozen=True, slots=True)
class SpaceOptions:
    """What a space file offers before the profile removes what the device cannot execute.

    keep_ratios: fractions of a group's channels; kept counts are rounded to a multiple of `channel_multiple`.
    weight_only: also offer quantized weights with float activations.
    clusters: also offer int8 layers whose weights take so many levels. patterns: how zeros may lie.
    """

    weight_bits: tuple[int | None, ...] = (2, 3, 4, 5, 6, 8, None)
    activations: tuple[Activation, ...] = ("int8", "float")
    keep_ratios: tuple[float, ...] = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
    sparsities: tuple[float, ...] = (0.0, 0.5, 0.75, 0.9)
    channel_multiple: int = 8
    weight_only: bool = True
    clusters: tuple[int, ...] = ()
    patterns: tuple[Pattern, ...] = ("unstructured",)

    def __post_init__(self) -> None:
        if not self.weight_bits or not self.activations:
            raise UserError("a search space needs at least one entry in weight_bits and in activations")
        for bits in self.weight_bits:
            LayerPolicy(bits)  # its own check says what is wrong
        for sparsity in self.sparsities:
            LayerPolicy(sparsity=sparsity)
        for count in self.clusters:
            clustered(count)
        for pattern in self.patterns:
            LayerPolicy(sparsity=HALF, pattern=pattern)
        if any(not 0 < ratio <= 1 for ratio in self.keep_ratios):
            raise UserError(f"keep_ratios must lie in (0, 1], got {self.keep_ratios}")
        if self.channel_multiple < 1:
            raise UserError(f"channel_multiple must be at least 1, got {self.channel_multiple}")

    def precisions(self) -> list[LayerPolicy]:
        """What may be decided about a layer's precision, from the fewest bits in a file to the most."""
        plain = [
            LayerPolicy(bits, activation)
            for bits in self.weight_bits
            for activation in self.activations
            if (activation == "float" and (bits is None or self.weight_only)) or (activation == "int8" and bits)
        ]
        coded = [clustered(n) for n in self.clusters if "int8" in self.activations]

        def compressed(decision: LayerPolicy) -> tuple[int, bool, bool]:
            bits = decision.stored_bits
            # Of as many bits, int8 activations are cheaper, and a grid has smaller codes than a codebook once coded.
            return 32 if bits is None else bits, decision.activation == "float", decision.clusters is not None

        return sorted(plain + coded, key=compressed)

    def weights_alone(self) -> list[LayerPolicy]:
        """The same for a layer that no runtime computes on integers: few bits of its weights are all there is."""
        return replace(self, activations=("float",), weight_only=True, clusters=()).precisions()

    def zeros(self) -> list[Zeros]:
        """Which weights of a layer may be zero, from the most zeros to none."""
        ratios = {*self.sparsities} - {0.0}
        found: list[Zeros] = [0.0]
        if "unstructured" in self.patterns:
            found += ratios
        if "block" in self.patterns:
            found += [Sparsity(ratio, "block") for ratio in ratios]
        if "2:4" in self.patterns:
            found.append(Sparsity(HALF, "2:4"))
        # Of as many zeros, those in a pattern are cheaper.
        return sorted(found, key=lambda zeros: (_ratio(zeros), PATTERNS.index(_pattern(zeros))), reverse=True)


#: Says why a device cannot execute a layer under a decision; None if it can.
Veto = Callable[[LayerSpec, LayerPolicy], str | None]


def _pattern_veto(layer: LayerSpec, zeros: Sparsity, precisions: Sequence[LayerPolicy], veto: Veto) -> str | None:
    """Why zeros of `layer` may not lie so: its shape, or any of its precisions, since either gene is free to move."""
    reasons = (veto(layer, precision.with_zeros(zeros)) for precision in precisions)
    return pattern_fault(layer, zeros.pattern) or next((reason for reason in reasons if reason is not None), None)


def kept_channels(channels: int, ratio: float, multiple: int) -> int:
    """`ratio` of `channels`, rounded to a multiple (at least one multiple, at most all channels)."""
    if ratio >= 1:
        return channels
    return min(channels, max(min(multiple, channels), round(channels * ratio / multiple) * multiple))


class SearchSpace:
    """Genes with their legal choices for one network on one device.

    `size` counts candidates as a Python int. Genes with one choice are kept out of the vector but still decoded.
    """

    def __init__(self, network: NetworkSpec, genes: Sequence[Gene], removed: Sequence[tuple[str, str]] = ()) -> None:
        self.network = network
        self.fixed = tuple(gene for gene in genes if len(gene.choices) == 1)
        self.genes = tuple(gene for gene in genes if len(gene.choices) > 1)
        self.removed = tuple(removed)
        if any(not gene.choices for gene in genes):
            raise ValueError("a gene without a legal choice")

    @classmethod
    def build(
        cls, network: NetworkSpec, options: SpaceOptions, veto: Veto = lambda layer, policy: None
    ) -> "SearchSpace":
        """All that `options` offers and `veto` allows; `removed` lists (layer: choice, reason) of what it does not."""
        genes: list[Gene] = []
        removed: list[tuple[str, str]] = []
        for group in network.groups:
            if group.prunable:
                counts = {kept_channels(group.channels, r, options.channel_multiple) for r in options.keep_ratios}
                genes.append(Gene("channels", group.name, tuple(sorted(counts | {group.channels}))))
        for layer in network.layers:
            legal: list[LayerPolicy] = []
            for decision in options.precisions() if layer.op not in WEIGHT_ONLY else options.weights_alone():
                reason = veto(layer, decision)
                if reason is None:
                    legal.append(decision)
                else:
                    removed.append((f"{layer.name}: {decision}", reason))
            genes.append(Gene("quant", layer.name, tuple(legal or [FLOAT])))
            zeros: list[Zeros] = []
            for choice in options.zeros():
                reason = _pattern_veto(layer, choice, legal or [FLOAT], veto) if isinstance(choice, Sparsity) else None
                if reason is None:
                    zeros.append(choice)
                else:
                    removed.append((f"{layer.name}: {choice}", reason))
            genes.append(Gene("sparsity", layer.name, tuple(zeros)))
        return cls(network, genes, removed)

    def __len__(self) -> int:
        return len(self.genes)

    @cached_property
    def cardinalities(self) -> Genes:
        """Number of choices of each gene, shape (len(self),)."""
        return np.array([len(gene.choices) for gene in self.genes], dtype=np.int64)

    @property
    def size(self) -> int:
        """Number of candidates."""
        product = 1
        for gene in self.genes:
            product *= len(gene.choices)
        return product

    def check(self, genes: Sequence[int] | Genes) -> Genes:
        """`genes` as an int array; ValueError if its length or an index is not legal."""
        vector = np.asarray(genes, dtype=np.int64)
        if vector.shape != (len(self),):
            raise ValueError(f"expected {len(self)} genes, got shape {vector.shape}")
        bad = np.flatnonzero((vector < 0) | (vector >= self.cardinalities))
        if len(bad):
            gene = self.genes[bad[0]]
            raise ValueError(f"gene {gene.name} has {len(gene.choices)} choices, got index {vector[bad[0]]}")
        return vector

    def decode(self, genes: Sequence[int] | Genes) -> Policy:
        """The policy that a gene vector stands for."""
        vector = self.check(genes)
        chosen = [(gene, gene.choices[0]) for gene in self.fixed]
        chosen += [(gene, gene.choices[index]) for gene, index in zip(self.genes, vector, strict=True)]
        quant: dict[str, LayerPolicy] = {}
        zeros: dict[str, Zeros] = {}
        channels: dict[str, int] = {}
        for gene, value in chosen:
            if isinstance(value, LayerPolicy):
                quant[gene.target] = value
            elif gene.kind == "channels":
                assert isinstance(value, int)
                channels[gene.target] = value
            else:
                zeros[gene.target] = value
        layers = {
            layer.name: quant[layer.name].with_zeros(zeros.get(layer.name, 0.0))
            for layer in self.network.layers
            if layer.name in quant
        }
        return Policy(layers, channels)

    def encode(self, policy: Policy) -> Genes:
        """The gene vector of `policy`. UserError naming the layer or group whose choice the space does not offer."""
        vector = np.zeros(len(self), dtype=np.int64)
        for index, gene in enumerate(self.genes):
            wanted: Choice
            if gene.kind == "channels":
                wanted = policy.channels.get(gene.target, self.network.group_by_name[gene.target].channels)
            elif gene.kind == "quant":
                wanted = policy.layer(gene.target).precision
            else:
                wanted = policy.layer(gene.target).zeros
            if wanted not in gene.choices:
                offered = ", ".join(str(choice) for choice in gene.choices)
                raise UserError(f"{gene.name}: {wanted} is not offered on this device; offered: {offered}")
            vector[index] = gene.choices.index(wanted)
        return vector

    @property
    def largest(self) -> Genes:
        """The least compressed candidate."""
        return self.cardinalities - 1

    @property
    def smallest(self) -> Genes:
        """The most compressed candidate."""
        return np.zeros(len(self), dtype=np.int64)

    def uniform(self, quant: LayerPolicy, keep: float = 1.0, sparsity: Zeros = 0.0) -> Genes:
        """The candidate nearest to one setting for all layers.

        Each gene takes the choice nearest to the wish: a layer that cannot run as int8 falls back to the offered
        decision with the same activation kind or, failing that, the nearest number of bits; a codebook to a grid of
        as many bits, zeros in a pattern to as many without.
        """

        def distance(gene: Gene, choice: Choice) -> float:
            if isinstance(choice, LayerPolicy):
                other_kind = 0.25 * ((choice.clusters is None) != (quant.clusters is None))
                return abs(_bits(choice) - _bits(quant)) + 0.5 * (choice.activation != quant.activation) + other_kind
            if gene.kind == "channels":
                assert isinstance(choice, int)
                return abs(choice / self.network.group_by_name[gene.target].channels - keep)
            wish = [_pattern(sparsity), "unstructured", *PATTERNS]
            return abs(_ratio(choice) - _ratio(sparsity)) + 1e-6 * wish.index(_pattern(choice))

        return np.array(
            [min(range(len(g.choices)), key=lambda i: distance(g, g.choices[i])) for g in self.genes], dtype=np.int64
        )


def _bits(decision: LayerPolicy) -> int:
    return 32 if decision.stored_bits is None else decision.stored_bits


def _ratio(zeros: Zeros) -> float:
    return zeros.ratio if isinstance(zeros, Sparsity) else zeros


def _pattern(zeros: Zeros) -> Pattern:
    return zeros.pattern if isinstance(zeros, Sparsity) else "unstructured"
