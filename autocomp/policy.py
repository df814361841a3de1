"""What may be decided for each layer, and a whole network's worth of such decisions."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import log2
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

from autocomp.errors import UserError

T = TypeVar("T")
Activation = Literal["float", "int8"]
#: How the zeros of a layer lie; `compress.masks` says what each stands for.
Pattern = Literal["unstructured", "block", "2:4"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8)
#: Distinct levels of a clustered weight. The weight decoder of an Ethos-U looks up at most 32 (docs/npu.md, Choices).
CLUSTERS = (2, 4, 8, 16, 32)
#: The only sparsity of the pattern 2:4.
HALF = 0.5


@dataclass(frozen=True, slots=True)
class Sparsity:
    """Zeros that lie in a pattern: ratio, the fraction of a layer's weights, in (0, 1)."""

    ratio: float
    pattern: Pattern

    def __str__(self) -> str:
        return self.pattern if self.pattern == "2:4" else f"{self.ratio:.0%} {_ADJECTIVE[self.pattern]}"


_ADJECTIVE: dict[Pattern, str] = {"unstructured": "sparse", "block": "block-sparse"}


@dataclass(frozen=True, slots=True)
class LayerPolicy:
    """One layer's decision.

    weight_bits: bits a weight is stored in (2…8), or None for float32.
    activation: "int8" runs the layer as an integer kernel; "float" as a float kernel on unpacked weights.
    sparsity: fraction of the layer's weights that are zero, in [0, 1).
    clusters: distinct levels that the layer's 8-bit weights take, one codebook for all channels; None for any.
    pattern: how the zeros lie.
    """

    weight_bits: int | None = None
    activation: Activation = "float"
    sparsity: float = 0.0
    clusters: int | None = None
    pattern: Pattern = "unstructured"

    def __post_init__(self) -> None:
        if self.weight_bits is not None and (type(self.weight_bits) is not int or self.weight_bits not in WEIGHT_BITS):
            raise UserError(f"weight_bits must be one of {WEIGHT_BITS} or null (float32), got {self.weight_bits!r}")
        if self.activation not in ("float", "int8"):
            raise UserError(f"activation must be 'float' or 'int8', got {self.activation!r}")
        if self.activation == "int8" and self.weight_bits is None:
            raise UserError("int8 activations need quantized weights: set weight_bits to 2…8")
        if (
            isinstance(self.sparsity, bool)
            or not isinstance(self.sparsity, int | float)
            or not 0.0 <= self.sparsity < 1.0  # false for NaN as well
        ):
            raise UserError(f"sparsity must be a number in [0, 1), got {self.sparsity!r}")
        self._check_clusters()
        self._check_pattern()

    def _check_clusters(self) -> None:
        if self.clusters is None:
            return
        if type(self.clusters) is not int or self.clusters not in CLUSTERS:
            raise UserError(f"clusters must be one of {CLUSTERS} or null (no codebook), got {self.clusters!r}")
        if self.weight_bits != 8 or self.activation != "int8":
            raise UserError(
                "clusters are levels of int8 weights: set weight_bits to 8 and activation to 'int8', "
                f"got {self.weight_bits!r} and {self.activation!r}"
            )

    def _check_pattern(self) -> None:
        if self.pattern not in PATTERNS:
            raise UserError(f"pattern must be one of {', '.join(map(repr, PATTERNS))}, got {self.pattern!r}")
        if self.pattern == "2:4" and self.sparsity != HALF:
            raise UserError(f"pattern '2:4' is a sparsity of {HALF}, got {self.sparsity!r}")
        if self.pattern == "block" and not self.sparsity:
            raise UserError("pattern 'block' says how zeros lie: set sparsity above 0, or leave pattern out")

    @property
    def quantized(self) -> bool:
        return self.weight_bits is not None

    @property
    def stored_bits(self) -> int | None:
        """Bits of one weight's code in a file: of its place in the codebook where there is one; None for float32."""
        return self.weight_bits if self.clusters is None else int(log2(self.clusters))

    @property
    def precision(self) -> "LayerPolicy":
        """The same decision without its zeros."""
        return replace(self, sparsity=0.0, pattern="unstructured")

    @property
    def zeros(self) -> "Zeros":
        """The part of the decision that `precision` leaves out; `with_zeros` puts it back."""
        return self.sparsity if self.pattern == "unstructured" else Sparsity(self.sparsity, self.pattern)

    def with_zeros(self, zeros: "Zeros") -> "LayerPolicy":
        if isinstance(zeros, Sparsity):
            return replace(self, sparsity=zeros.ratio, pattern=zeros.pattern)
        return replace(self, sparsity=zeros, pattern="unstructured")

    def __str__(self) -> str:
        weights = "float" if self.weight_bits is None else f"w{self.weight_bits}"
        acts = "a8" if self.activation == "int8" else ""
        codebook = f" c{self.clusters}" if self.clusters is not None else ""
        sparse = f" {Sparsity(self.sparsity, self.pattern)}" if self.sparsity else ""
        return weights + acts + codebook + sparse


#: Which weights of a layer are zero, as a search chooses it: a fraction, or one that lies in a pattern.
Zeros = float | Sparsity


FLOAT = LayerPolicy()
INT8 = LayerPolicy(weight_bits=8, activation="int8")


def clustered(levels: int) -> LayerPolicy:
    """int8 with a codebook of so many levels."""
    return replace(INT8, clusters=levels)


def _as_entry(decision: LayerPolicy) -> dict[str, Any]:
    """A decision in JSON; clusters and pattern only where they say something, so that older releases read the rest."""
    entry = asdict(decision)
    for name in ("clusters", "pattern"):
        if entry[name] == getattr(FLOAT, name):
            del entry[name]
    return entry


def _frozen(mapping: Mapping[str, T]) -> Mapping[str, T]:
    return MappingProxyType(dict(mapping))


@dataclass(frozen=True)
class Policy:
    """One decision per layer, and the channels that each coupled group keeps.

    layers: layer name → decision; a layer that is not named stays float.
    channels: channel-group name → number of channels kept; a group that is not named keeps all.
    """

    layers: Mapping[str, LayerPolicy] = field(default_factory=dict)
    channels: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _frozen(self.layers))
        object.__setattr__(self, "channels", _frozen(self.channels))
        for group, kept in self.channels.items():
            if isinstance(kept, bool) or not isinstance(kept, int) or kept < 1:
                raise UserError(f"channels kept in group {group!r} must be a whole number of at least 1, got {kept!r}")

    def __reduce__(self) -> tuple[Any, ...]:  # a mappingproxy cannot be pickled, a dict can
        return (Policy, (dict(self.layers), dict(self.channels)))

    def __hash__(self) -> int:
        return hash((frozenset(self.layers.items()), frozenset(self.channels.items())))

    def layer(self, name: str) -> LayerPolicy:
        return self.layers.get(name, FLOAT)

    def to_json(self) -> str:
        """A JSON document that `from_json` reads back to an equal policy."""
        layers = {name: _as_entry(decision) for name, decision in self.layers.items()}
        return json.dumps({"version": 1, "layers": layers, "channels": dict(self.channels)}, indent=1)

    @classmethod
    def from_json(cls, text: str, origin: str = "policy") -> "Policy":
        """Raises UserError naming `origin` and the field where the document is not a policy."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:  # the latter where brackets nest too deep
            raise UserError(f"{origin} is not JSON: {error}") from None
        if not isinstance(document, dict) or document.get("version") != 1:
            raise UserError(f"{origin}: expected an object with 'version': 1, 'layers' and 'channels'")
        unknown = set(document) - {"version", "layers", "channels"}
        if unknown:
            raise UserError(f"{origin}: unknown keys {sorted(unknown)}; known: version, layers, channels")
        layers, channels = document.get("layers", {}), document.get("channels", {})
        if not isinstance(layers, dict) or not isinstance(channels, dict):
            raise UserError(f"{origin}: 'layers' and 'channels' must be objects")
        decisions = {}
        for name, entry in layers.items():
            if not isinstance(entry, dict) or set(entry) - {f.name for f in fields(LayerPolicy)}:
                known = ", ".join(f.name for f in fields(LayerPolicy))
                raise UserError(f"{origin}: layer {name!r} must be an object of {known}")
            try:
                decisions[name] = LayerPolicy(**entry)
            except UserError as error:
                raise UserError(f"{origin}: layer {name!r}: {error}") from None
        try:
            return cls(decisions, channels)
        except UserError as error:
            raise UserError(f"{origin}: {error}") from None
