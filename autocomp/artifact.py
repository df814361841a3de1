"""What each device is given: the file that its runtime takes, and what a compiler makes of that for an NPU."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from autocomp.budget import Budget
from autocomp.hardware.ethos_u.accelerator import Accelerator
from autocomp.hardware.profile import HardwareProfile

#: Of a file; also the ending of its name.
Format = Literal["onnx", "tflite"]


@dataclass(frozen=True, slots=True)
class Target:
    """A device as one that files are made for. Plain values: workers on other machines are sent it.

    accelerator: what its files are compiled for; None where the runtime takes them as they are. budget: what a
    candidate may take there; a reference has no bound. unsigned_weights: its processor saturates products of uint8 and
    int8, so that an ONNX file must hand over uint8 weights.
    """

    device: str
    format: Format = "onnx"
    accelerator: Accelerator | None = None
    budget: Budget = field(default_factory=Budget)
    unsigned_weights: bool = False

    @classmethod
    def of(cls, profile: HardwareProfile, budget: Budget | None = None) -> "Target":
        return cls(
            profile.name, "tflite" if profile.integer_only else "onnx", profile.accelerator, budget or Budget(),
            profile.unsigned_weights,
        )  # fmt: skip

    @property
    def suffix(self) -> str:
        """What follows a candidate's id in the name of its file."""
        return f".{self.format}"

    @property
    def compiled_suffix(self) -> str:
        """The same for the compiled file: of one file, two accelerators are given two."""
        return f".{self.device}.{self.format}"

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of all files that are made for the device."""
        return (self.suffix,) if self.accelerator is None else (self.suffix, self.compiled_suffix)

    @property
    def integer_only(self) -> bool:
        """Whether the device has no floating point."""
        return self.accelerator is not None


@dataclass(frozen=True, slots=True)
class Draft:
    """What a device's compiler makes of a candidate that was not trained: bytes, estimate, peak memory."""

    stored_bytes: int
    latency_ms: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """What was made for one device.

    accuracy: of the file on the validation split, scored by its runtime. size_bytes: of the file. The others are the
    compiler's, None or empty without one: compiled_bytes of what it made of the file; latency_ms and memory_bytes by
    its estimate for the whole model; cpu_operators that it leaves to the CPU, each with its reason.
    """

    accuracy: float
    size_bytes: int
    compiled_bytes: int | None = None
    latency_ms: float | None = None
    memory_bytes: int | None = None
    cpu_operators: tuple[tuple[str, str], ...] = ()

    @property
    def stored_bytes(self) -> int:
        """Bytes that the device stores: there the budget applies."""
        return self.size_bytes if self.compiled_bytes is None else self.compiled_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the journal."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Artifact":
        operators = tuple((str(name), str(reason)) for name, reason in values["cpu_operators"])
        return cls(**{**values, "cpu_operators": operators})
