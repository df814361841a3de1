"""Budgets: how many bytes on disk and in memory, how many milliseconds, how much accuracy may be lost."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

from autocomp.errors import UserError

if TYPE_CHECKING:  # the command line reads budgets, and must not wait for numpy
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
#: One candidate's figure, or those of many.
Figure = TypeVar("Figure", float, "NDArray[np.floating[Any]]")

_BYTES = {
    "": 1, "b": 1, "byte": 1, "bytes": 1,
    "kb": 1000, "k": 1000, "mb": 1000**2, "m": 1000**2, "gb": 1000**3, "g": 1000**3,
    "kib": 1024, "mib": 1024**2, "gib": 1024**3,
}  # fmt: skip
_MILLISECONDS: dict[str, Fraction | int] = {"us": Fraction(1, 1000), "µs": Fraction(1, 1000), "ms": 1, "": 1, "s": 1000}
_QUANTITY = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([a-zµ%]*)\s*", re.IGNORECASE)


def _parse(text: str, units: Mapping[str, Fraction | int], what: str, examples: str) -> Fraction:
    """The exact value: in binary floating point 1.001kB would be 1000 bytes."""
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2].lower() not in units:
        raise UserError(f"{what}: expected a number with a unit such as {examples}, got {text!r}")
    unit = units[match[2].lower()]
    # The float comes first: an exact 1e999999999 would fill the memory.
    if not math.isfinite(float(match[1]) * float(unit)) or float(match[1]) <= 0:
        raise UserError(f"{what}: must be greater than 0, got {text!r}; try {examples}")
    return Fraction(match[1]) * unit


def parse_bytes(text: str, option: str = "--budget") -> int:
    """`4MB` is 4,000,000 bytes, `4MiB` is 4,194,304. A fraction of a byte is rounded down."""
    value = _parse(text, _BYTES, option, "4MB, 500kB or 4MiB")
    if value < 1:
        raise UserError(f"{option}: must be at least 1 byte, got {text!r}; try 4MB")
    return int(value)


def parse_per_device(text: str, option: str, devices: Sequence[str], parse: Callable[[str], T]) -> dict[str, T]:
    """`4MB`, which holds for each device, or bounds by name such as `mobile_arm=4MB,host_cpu=500kB`.

    A bound without a name holds for the devices that are not named; where none is, those have no bound. Returns
    device → bound, without the devices that have none.
    """
    if "=" not in text:
        return dict.fromkeys(devices, parse(text))
    named: dict[str, T] = {}
    for item in text.split(","):
        name, given, value = (part.strip() for part in item.rpartition("="))
        if given and name not in devices:
            raise UserError(f"{option}: {name or repr(item)} is not searched for; expected one of {', '.join(devices)}")
        if name in named:
            which = f"one bound for {name}" if name else "one bound without a device's name"
            raise UserError(f"{option}: expected {which}, got two in {text!r}")
        named[name] = parse(value)
    rest = {device: named[""] for device in devices if "" in named}
    return {device: bound for device, bound in {**rest, **named}.items() if device}


def parse_milliseconds(text: str) -> float:
    """`2ms`, `500us`, `0.01s`; a bare number is milliseconds."""
    return float(_parse(text, _MILLISECONDS, "--max-latency", "2ms or 500us"))


def parse_accuracy_drop(text: str) -> float:
    """Percentage points, as a fraction: `0.5` and `0.5%` are 0.005. Zero is allowed."""
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in ("", "%"):
        raise UserError(f"--max-accuracy-drop: expected percentage points such as 0.5, got {text!r}")
    value = float(match[1]) / 100
    if not 0 <= value <= 1:
        raise UserError(f"--max-accuracy-drop: must be between 0 and 100 percentage points, got {text!r}")
    return value


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper bounds; None means unbounded.

    size_bytes: bytes of the file on disk, everything counted.
    latency_ms: milliseconds by the profile's table, one inference at batch size 1.
    accuracy_drop: largest loss against the float network on the validation split, as a fraction.
    memory_bytes: peak memory of activations in one inference, weights not counted; see `hardware.memory`.
    """

    size_bytes: int | None = None
    latency_ms: float | None = None
    accuracy_drop: float | None = None
    memory_bytes: int | None = None

    def shares(self, size_bytes: Figure, latency_ms: Figure, memory_bytes: Figure) -> dict[str, Figure]:
        """Each bounded cost as a share of its bound, by the constraint's name; above 1 breaks it."""
        costs = {"size": size_bytes, "latency": latency_ms, "memory": memory_bytes}
        bounds = {"size": self.size_bytes, "latency": self.latency_ms, "memory": self.memory_bytes}
        return {name: costs[name] / bound for name, bound in bounds.items() if bound is not None}

    def excess(self, size_bytes: float, latency_ms: float, memory_bytes: float) -> float:
        """How far the worst of size, latency and memory is over its bound, relative to the bound; ≤ 0 fits."""
        return max(self.shares(size_bytes, latency_ms, memory_bytes).values(), default=0.0) - 1

    def scaled(self, factor: float) -> "Budget":
        """Every bound on a cost multiplied by `factor`, at most 1; the bound on accuracy stays."""
        size, memory = (None if b is None else int(b * factor) for b in (self.size_bytes, self.memory_bytes))
        return Budget(size, None if self.latency_ms is None else self.latency_ms * factor, self.accuracy_drop, memory)

    @property
    def bounds_costs(self) -> bool:
        """Whether anything but accuracy is bounded."""
        return (self.size_bytes, self.latency_ms, self.memory_bytes) != (None, None, None)

    def admits(self, size_bytes: float, latency_ms: float, memory_bytes: float) -> bool:
        return self.excess(size_bytes, latency_ms, memory_bytes) <= 0

    def binding(self, size_bytes: float, latency_ms: float, memory_bytes: float) -> str:
        """The constraint that a candidate of this cost breaks most: "size", "latency", "memory", or "" for none."""
        shares = self.shares(size_bytes, latency_ms, memory_bytes)
        worst = max(shares, key=lambda name: shares[name], default="")
        return worst if worst and shares[worst] > 1 else ""

    def __str__(self) -> str:
        parts = []
        if self.size_bytes is not None:
            parts.append(f"{self.size_bytes:,} bytes")
        if self.latency_ms is not None:
            parts.append(f"{self.latency_ms:g} ms")
        if self.memory_bytes is not None:
            parts.append(f"{self.memory_bytes:,} bytes of memory")
        if self.accuracy_drop is not None:
            parts.append(f"{self.accuracy_drop * 100:g} points of accuracy lost")
        return " and ".join(parts) if parts else "no bound"
