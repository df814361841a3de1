"""Hardware profiles: a device with its runtime, what it can execute, and where its latencies come from."""

import datetime
import difflib
import hashlib
import re
import reprlib
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from autocomp.errors import UserError, unknown_name
from autocomp.hardware.arithmetic import SATURATION_NOTE, saturates
from autocomp.hardware.constraints import CONSTRAINTS, reason
from autocomp.hardware.ethos_u.accelerator import Accelerator
from autocomp.hardware.runtime_version import installed_version, release, same_release
from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Precision
from autocomp.network import WEIGHT_ONLY, LayerSpec, NetworkSpec, activation_fault
from autocomp.policy import CLUSTERS, FLOAT, WEIGHT_BITS, Activation, LayerPolicy, Pattern, Policy
from autocomp.reading import parse_yaml, read_text, shortened
from autocomp.resources import data_folder, data_names

FOLDER = "hw_profiles"
#: `table` of a profile whose kernels are measured on the spot instead of read from a file.
ON_THE_SPOT = "measured-on-the-spot"
#: `version` of the runtime of such a profile: whatever is installed fills the table.
INSTALLED = "installed"
_MOST_BYTES = 100_000
_MOST_TEXT = 2_000
_LARGEST = 1e9  # of a calibration figure
_NAME = r"[a-z0-9][a-z0-9_]*"


def _readable(value: str) -> str:
    """Text is shown in terminals and hashed: no escape sequences, no half characters."""
    for character in value:
        if not character.isprintable() and character not in "\n\t":
            raise ValueError(f"holds the character U+{ord(character):04X}, which cannot be shown")
    return value


Line = Annotated[str, Field(max_length=_MOST_TEXT), AfterValidator(_readable)]
Text = Annotated[Line, Field(min_length=1)]
Operator = Literal["conv", "depthwise", "linear", "embedding", "recurrent"]


class _Strict(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Runtime(_Strict):
    """The runtime that executes the files. version: of the one that filled the table, or `INSTALLED`."""

    name: Text
    version: Text

    @field_validator("version")
    @classmethod
    def _is_version(cls, value: str) -> str:
        if value != INSTALLED and release(value) is None:
            raise ValueError(f"expected a version such as 1.32.0 or {INSTALLED!r}, got {shortened(value, 40)!r}")
        return value


class Provenance(_Strict):
    """Where the latencies come from; printed wherever they are."""

    kind: Literal["measured", "simulated", "vendor-model", "published"]
    text: Text
    date: datetime.date | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}" + (f" ({self.date.isoformat()})" if self.date else "")


class Capability(_Strict):
    """Decisions that the device has a real kernel for.

    operators: layers it holds for. weight_bits: stored bits, null for float32. activation: of the decision.
    runs_as: precision of the kernel that executes it. bytes_only: it saves bytes against float32, but no time.
    clusters: levels that a codebook may have, besides weights without one. patterns: how zeros may lie, besides
    unstructured. note: one sentence for the user.
    """

    operators: tuple[Operator, ...] = Field(min_length=1, strict=False)
    weight_bits: tuple[int | None, ...] = Field(min_length=1, strict=False)
    activation: Activation
    runs_as: Precision
    bytes_only: bool
    clusters: tuple[int, ...] = Field(default=(), strict=False)
    patterns: tuple[Pattern, ...] = Field(default=(), strict=False)
    note: Line = ""

    @field_validator("weight_bits")
    @classmethod
    def _known_bits(cls, value: tuple[int | None, ...]) -> tuple[int | None, ...]:
        for bits in value:
            if bits is not None and bits not in WEIGHT_BITS:
                raise ValueError(f"{bits} is not one of {', '.join(map(str, WEIGHT_BITS))} or null")
        return value

    @field_validator("clusters")
    @classmethod
    def _known_clusters(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for count in value:
            if count not in CLUSTERS:
                raise ValueError(f"{count} is not one of {', '.join(map(str, CLUSTERS))}")
        return value

    @model_validator(mode="after")
    def _codebooks_hold_int8(self) -> "Capability":
        if self.clusters and (self.activation != "int8" or 8 not in self.weight_bits):
            raise ValueError("clusters need 8 among weight_bits, and activation int8")
        return self

    def covers(self, operator: str, decision: LayerPolicy) -> bool:
        return (
            operator in self.operators
            and decision.weight_bits in self.weight_bits
            and decision.activation == self.activation
            and (decision.clusters is None or decision.clusters in self.clusters)
            and (decision.pattern == "unstructured" or decision.pattern in self.patterns)
        )


def operator_of(layer: LayerSpec) -> str:
    """The operator under which a profile files the layer."""
    if layer.depthwise:
        return "depthwise"
    return layer.op if layer.op in ("linear", *WEIGHT_ONLY) else "conv"


class HardwareProfile(_Strict):
    """A device, its runtime, what it executes and how well its latencies are known.

    table: CSV file beside the profile, or `ON_THE_SPOT`. unit: of that file. rows: how many it has, by which a file
    that was cut off at the end of a row is found out; None where the profile does not say. calibration: free numbers
    about how the latencies were made; `relative_error` is the half-width of the 90 % band that no estimate goes below,
    as a fraction. cuda_device: of a profile measured on the spot, what the name of the CUDA device that it is measured
    on has to hold, "" for any; None where it is measured on the CPU. channel_multiple: kept channels are rounded to it.
    unstructured_sparsity_bytes_only: zeros inside a layer save bytes, but no time. constraints: names from
    `autocomp.hardware.constraints`.
    """

    name: str = Field(pattern=f"^{_NAME}$")
    title: Text
    device: Text
    core: Text
    runtime: Runtime
    threads: int = Field(ge=1, le=1024)
    provenance: Provenance
    unit: Literal["us", "ms"]
    table: Text
    rows: int | None = Field(default=None, ge=0)
    calibration: dict[str, float]
    cuda_device: Line | None = None
    channel_multiple: int = Field(ge=1, le=1024)
    unstructured_sparsity_bytes_only: bool
    executes: tuple[Capability, ...] = Field(min_length=1, strict=False)
    constraints: tuple[str, ...] = Field(strict=False)
    accelerator: Accelerator | None = None
    _folder: Path = Path()

    @field_validator("table")
    @classmethod
    def _plain_file_name(cls, value: str) -> str:
        if value != ON_THE_SPOT and (Path(value).name != value or not value.endswith(".csv")):
            raise ValueError(
                f"expected the name of a .csv file beside the profile or {ON_THE_SPOT!r}, got {shortened(value, 60)!r}"
            )
        return value

    @field_validator("calibration", mode="before")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError("expected names with numbers")
        for name, number in value.items():
            if not isinstance(name, str) or re.fullmatch(_NAME, name) is None:
                raise ValueError(f"names are of letters, digits and _, got {reprlib.repr(name)}")
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= _LARGEST:
                raise ValueError(f"{shortened(name, 40)} must be a number from 0 to {_LARGEST:g}, got {_short(number)}")
        if not 0 <= value.get("relative_error", -1) <= 2:
            raise ValueError("relative_error is missing or not in [0, 2]")
        return {name: float(number) for name, number in value.items()}

    @field_validator("constraints")
    @classmethod
    def _known_constraints(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in CONSTRAINTS:
                raise ValueError(str(unknown_name("constraint", shortened(name, 60), CONSTRAINTS)))
        return value

    @model_validator(mode="after")
    def _version_fits_table(self) -> "HardwareProfile":
        if self.on_the_spot != (self.runtime.version == INSTALLED):
            raise ValueError(
                f"runtime.version is {INSTALLED!r} exactly where table is {ON_THE_SPOT!r}; "
                f"got {shortened(self.runtime.version, 40)!r} with {self.table!r}"
            )
        return self

    @property
    def description(self) -> str:
        return f"{self.title} ({self.provenance.kind})"

    @property
    def on_the_spot(self) -> bool:
        """Whether the kernels are measured when they are needed, instead of shipped."""
        return self.table == ON_THE_SPOT

    @property
    def integer_only(self) -> bool:
        """Whether the device has no floating point: a network's input and output are int8, and all in between."""
        return self.accelerator is not None

    @property
    def is_local_cpu(self) -> bool:
        """Whether the device is the CPU of the machine that runs the search."""
        return self.on_the_spot and self.cuda_device is None

    @property
    def unsigned_weights(self) -> bool:
        """Whether integer kernels need uint8 weights to be exact in a stock session; see `hardware.arithmetic`."""
        return self.is_local_cpu and saturates()

    @property
    def table_path(self) -> Path | None:
        """The table's file; None for a profile measured on the spot."""
        return None if self.on_the_spot else self._folder / self.table

    @cached_property
    def latencies(self) -> LatencyTable:
        """The shipped table; an empty one for a profile measured on the spot. UserError if the file is not a table."""
        if self.table_path is None:
            return LatencyTable({})
        table = LatencyTable.read(self.table_path, self.unit)
        if self.rows is not None and len(table) != self.rows:
            raise UserError(
                f"latency table {self.table_path}: has {len(table):,} rows where {self.name}.yaml says {self.rows:,}: "
                "cut off? restore the file"
            )
        return table

    @property
    def staleness(self) -> str | None:
        """One sentence where the table was filled with another release of the runtime than the one installed here."""
        installed = installed_version(self.runtime.name)
        if self.on_the_spot or installed is None or same_release(self.runtime.version, installed):
            return None
        return (
            f"the latencies of {self.name} are stale: filled with {self.runtime.name} {self.runtime.version}, "
            f"and {installed} is installed; fill the table anew with autocomp profile"
        )

    @property
    def provenance_note(self) -> str:
        """The provenance as it is printed beside a latency: with a word of warning where the table is stale."""
        note = str(self.provenance)
        if self.unsigned_weights:
            note += f"; {SATURATION_NOTE}"
        return note if self.staleness is None else f"{note}; STALE: {self.staleness}"

    def capability(self, layer: LayerSpec, decision: LayerPolicy) -> Capability | None:
        """The kernel that executes `layer` under `decision`; None if the device has none."""
        operator = operator_of(layer)
        return next((c for c in self.executes if c.covers(operator, decision)), None)

    def veto(self, layer: LayerSpec, decision: LayerPolicy) -> str | None:
        """Why the device cannot execute `layer` under `decision`; None if it can. Fits `autocomp.space.Veto`."""
        if layer.op in WEIGHT_ONLY and decision == FLOAT and not self.integer_only:
            return None  # what runs in float is up to the runtime
        if self.capability(layer, decision) is None:
            return activation_fault(layer, decision) or self._missing(layer, decision)
        for name in self.constraints:
            if not CONSTRAINTS[name](layer, decision):
                return reason(CONSTRAINTS[name])
        return None

    def _missing(self, layer: LayerSpec, decision: LayerPolicy) -> str:
        """Why there is no capability for `decision`: its precision, or what is asked of it besides."""
        executes = f"{self.title} with {self.runtime.name}"
        plain = replace(decision.precision, clusters=None)
        if self.capability(layer, plain) is None:
            return f"{executes} has no {operator_of(layer)} kernel for {plain}."
        if self.capability(layer, decision.precision) is None:
            return f"{executes} gains nothing from weights in clusters: use fewer weight_bits instead."
        return f"{executes} gains nothing from zeros in the pattern {decision.pattern}: use unstructured ones."

    def executes_all(self, network: NetworkSpec, policy: Policy) -> bool:
        """Whether the device can execute every layer under `policy`."""
        return all(self.veto(layer, policy.layer(layer.name)) is None for layer in network.layers)

    def check_executable(self, network: NetworkSpec, policy: Policy, origin: str) -> None:
        """UserError naming the first layer that the device cannot execute under `policy`, which came from `origin`."""
        for layer in network.layers:
            decision = policy.layer(layer.name)
            refusal = self.veto(layer, decision)
            if refusal is not None:
                raise UserError(f"{origin}: layer {layer.name}: {decision}: {refusal}")

    def digest(self) -> str:
        """SHA-256 of the profile and its table: two runs with the same digest saw the same device."""
        content = self.model_dump_json() + self.latencies.digest
        return hashlib.sha256(content.encode()).hexdigest()

    @classmethod
    def read(cls, path: Path) -> "HardwareProfile":
        """The profile in a YAML file. UserError naming the file and the key for anything that is not a profile."""
        profile = cls.parse(read_text(path, "hardware profile", _MOST_BYTES), str(path))
        profile._folder = path.parent
        return profile

    @classmethod
    def parse(cls, text: str, origin: str = "hardware profile") -> "HardwareProfile":
        """The profile in YAML `text`; `origin` names it in errors."""
        document = parse_yaml(text, origin)
        try:
            return cls.model_validate(document)
        except pydantic.ValidationError as error:
            raise UserError(f"{origin}: {_first_fault(error, cls)}") from None


def _model_at(model: type[pydantic.BaseModel], path: tuple[int | str, ...]) -> type[pydantic.BaseModel]:
    """The part of the profile in which the key at `path` stands."""
    for step in path[:-1]:
        if isinstance(step, str) and step in model.model_fields:
            annotation = model.model_fields[step].annotation
            inner = annotation.__args__[0] if step == "executes" and annotation is not None else annotation
            if isinstance(inner, type) and issubclass(inner, pydantic.BaseModel):
                model = inner
    return model


def _first_fault(error: pydantic.ValidationError, model: type[pydantic.BaseModel]) -> str:
    """One line about the first fault; an unknown key comes first, since a misspelt key also counts as missing."""
    faults = error.errors()
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    where = shortened(".".join(map(str, fault["loc"])), 80)
    if fault["type"] == "extra_forbidden":
        known = list(_model_at(model, fault["loc"]).model_fields)
        near = difflib.get_close_matches(str(fault["loc"][-1])[:60], known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown key {where!r}: {hint}known: {', '.join(known)}"
    if fault["type"] == "missing":
        return f"the key {where!r} is missing"
    message = re.sub(r"^Value error, ", "", fault["msg"])
    came = "" if fault["type"] == "value_error" else f", got {_short(fault['input'])}"
    text = shortened(f"{message[:1].lower()}{message[1:]}{came}", 400)
    return f"{where}: {text}" if where else text


def _short(value: Any) -> str:
    """`value` as Python writes it, cut; an int too long for that by its size."""
    try:
        return shortened(reprlib.repr(value), 80)
    except ValueError:  # more digits than Python converts
        return "a number of thousands of digits"


def profile_names() -> list[str]:
    """Names of the profiles that ship, sorted."""
    return data_names(FOLDER)


def find_profile(name: str) -> HardwareProfile:
    """The profile of that name, or the one in a file if `name` ends in .yaml or .yml. UserError if there is none."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(
                f"hardware profile {name} does not exist; expected a file or one of {', '.join(profile_names())}"
            )
        return HardwareProfile.read(path)
    if name not in profile_names():
        raise unknown_name("hardware profile", name, profile_names())
    profile = HardwareProfile.read(data_folder(FOLDER) / f"{name}.yaml")
    if profile.name != name:
        raise UserError(f"hardware profile {name}.yaml calls itself {profile.name!r}; name and file must agree")
    return profile
