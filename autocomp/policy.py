"""What may be decided for each layer, and a whole network's worth of such decisions."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from autocomp.errors import UserError

T = TypeVar("T")
Activation = Literal["float", "int8"]
WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class LayerPolicy:
    """One layer's decision.

    weight_bits: bits a weight is stored in (2…8), or None for float32.
    activation: "int8" runs the layer as an integer kernel; "float" as a float kernel on unpacked weights.
    sparsity: fraction of the layer's weights that are zero, in [0, 1).
    """

    weight_bits: int | None = None
    activation: Activation = "float"
    sparsity: float = 0.0

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

    @property
    def quantized(self) -> bool:
        return self.weight_bits is not None

    def __str__(self) -> str:
        weights = "float" if self.weight_bits is None else f"w{self.weight_bits}"
        acts = "a8" if self.activation == "int8" else ""
        sparse = f" {self.sparsity:.0%} sparse" if self.sparsity else ""
        return weights + acts + sparse


FLOAT = LayerPolicy()
INT8 = LayerPolicy(weight_bits=8, activation="int8")


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
        layers = {
            name: {"weight_bits": p.weight_bits, "activation": p.activation, "sparsity": p.sparsity}
            for name, p in self.layers.items()
        }
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
            if not isinstance(entry, dict) or set(entry) - {"weight_bits", "activation", "sparsity"}:
                raise UserError(f"{origin}: layer {name!r} must be an object of weight_bits, activation, sparsity")
            try:
                decisions[name] = LayerPolicy(**entry)
            except UserError as error:
                raise UserError(f"{origin}: layer {name!r}: {error}") from None
        try:
            return cls(decisions, channels)
        except UserError as error:
            raise UserError(f"{origin}: {error}") from None
