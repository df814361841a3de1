"""Hardware profiles: a device with its runtime, what it can execute, and where its latencies come from."""

import datetime
import difflib
import hashlib
import re
import reprlib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import ConfigDict, Field, field_validator

from autocomp.errors import UserError, unknown_name
from autocomp.hardware.constraints import CONSTRAINTS, reason
from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Precision
from autocomp.network import LayerSpec
from autocomp.policy import WEIGHT_BITS, Activation, LayerPolicy
from autocomp.resources import data_folder, data_names

FOLDER = "hw_profiles"
#: `table` of a profile whose kernels are measured on the spot instead of read from a file.
ON_THE_SPOT = "measured-on-the-spot"
_MAX_BYTES = 1_000_000
_NAME = r"[a-z0-9][a-z0-9_]*"

Text = Annotated[str, Field(min_length=1)]
Operator = Literal["conv", "depthwise", "linear"]


class _Strict(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Runtime(_Strict):
    """The runtime that executes the files, and the version that the table was filled with."""

    name: Text
    version: Text


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
    note: one sentence for the user.
    """

    operators: tuple[Operator, ...] = Field(min_length=1, strict=False)
    weight_bits: tuple[int | None, ...] = Field(min_length=1, strict=False)
    activation: Activation
    runs_as: Precision
    bytes_only: bool
    note: str = ""

    @field_validator("weight_bits")
    @classmethod
    def _known_bits(cls, value: tuple[int | None, ...]) -> tuple[int | None, ...]:
        for bits in value:
            if bits is not None and bits not in WEIGHT_BITS:
                raise ValueError(f"{bits} is not one of {', '.join(map(str, WEIGHT_BITS))} or null")
        return value

    def covers(self, operator: str, decision: LayerPolicy) -> bool:
        return (
            operator in self.operators
            and decision.weight_bits in self.weight_bits
            and decision.activation == self.activation
        )


def operator_of(layer: LayerSpec) -> str:
    """The operator under which a profile files the layer."""
    if layer.depthwise:
        return "depthwise"
    return "linear" if layer.op == "linear" else "conv"


class HardwareProfile(_Strict):
    """A device, its runtime, what it executes and how well its latencies are known.

    table: CSV file beside the profile, or `ON_THE_SPOT`. unit: of that file. calibration: free numbers about how the
    latencies were made; `relative_error` is the half-width of the 90 % band that no estimate goes below, as a
    fraction. channel_multiple: kept channels are rounded to it. unstructured_sparsity_bytes_only: zeros inside a
    layer save bytes, but no time. constraints: names from `autocomp.hardware.constraints`.
    """

    name: str = Field(pattern=f"^{_NAME}$")
    title: Text
    device: Text
    core: Text
    runtime: Runtime
    threads: int = Field(ge=1)
    provenance: Provenance
    unit: Literal["us", "ms"]
    table: Text
    calibration: dict[str, float]
    channel_multiple: int = Field(ge=1)
    unstructured_sparsity_bytes_only: bool
    executes: tuple[Capability, ...] = Field(min_length=1, strict=False)
    constraints: tuple[str, ...] = Field(strict=False)
    _folder: Path = Path()

    @field_validator("table")
    @classmethod
    def _plain_file_name(cls, value: str) -> str:
        if value != ON_THE_SPOT and (Path(value).name != value or not value.endswith(".csv")):
            raise ValueError(f"expected the name of a .csv file beside the profile or {ON_THE_SPOT!r}, got {value!r}")
        return value

    @field_validator("calibration", mode="before")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError("expected names with numbers")
        for name, number in value.items():
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < float("inf"):
                raise ValueError(f"{name} must be a number of at least 0, got {number!r}")
        if not 0 <= value.get("relative_error", -1) <= 2:
            raise ValueError("relative_error is missing or not in [0, 2]")
        return {str(name): float(number) for name, number in value.items()}

    @field_validator("constraints")
    @classmethod
    def _known_constraints(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in CONSTRAINTS:
                raise ValueError(str(unknown_name("constraint", name, CONSTRAINTS)))
        return value

    @property
    def description(self) -> str:
        return f"{self.title} ({self.provenance.kind})"

    @property
    def on_the_spot(self) -> bool:
        """Whether the kernels are measured when they are needed, instead of shipped."""
        return self.table == ON_THE_SPOT

    @property
    def table_path(self) -> Path | None:
        """The table's file; None for a profile measured on the spot."""
        return None if self.on_the_spot else self._folder / self.table

    @cached_property
    def latencies(self) -> LatencyTable:
        """The shipped table; an empty one for a profile measured on the spot. UserError if the file is not a table."""
        return LatencyTable({}) if self.table_path is None else LatencyTable.read(self.table_path, self.unit)

    def capability(self, layer: LayerSpec, decision: LayerPolicy) -> Capability | None:
        """The kernel that executes `layer` under `decision`; None if the device has none."""
        operator = operator_of(layer)
        return next((c for c in self.executes if c.covers(operator, decision)), None)

    def veto(self, layer: LayerSpec, decision: LayerPolicy) -> str | None:
        """Why the device cannot execute `layer` under `decision`; None if it can. Fits `autocomp.space.Veto`."""
        if self.capability(layer, decision) is None:
            dense = LayerPolicy(decision.weight_bits, decision.activation)
            return f"{self.title} with {self.runtime.name} has no {operator_of(layer)} kernel for {dense}."
        for name in self.constraints:
            if not CONSTRAINTS[name](layer, decision):
                return reason(CONSTRAINTS[name])
        return None

    def digest(self) -> str:
        """SHA-256 of the profile and its table: two runs with the same digest saw the same device."""
        content = self.model_dump_json() + self.latencies.digest
        return hashlib.sha256(content.encode()).hexdigest()

    @classmethod
    def read(cls, path: Path) -> "HardwareProfile":
        """The profile in a YAML file. UserError naming the file and the key for anything that is not a profile."""
        profile = cls.parse(_text(path), str(path))
        profile._folder = path.parent
        return profile

    @classmethod
    def parse(cls, text: str, origin: str = "hardware profile") -> "HardwareProfile":
        """The profile in YAML `text`; `origin` names it in errors."""
        try:
            twice = _repeated_key(yaml.compose(text, Loader=yaml.SafeLoader))
            document = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{origin} is not YAML: {error}") from None
        if twice is not None:
            raise UserError(f"{origin}: the key {twice!r} stands twice; keep one of them")
        if not isinstance(document, dict):
            raise UserError(f"{origin}: expected keys with values, got {type(document).__name__}")
        try:
            return cls.model_validate(document)
        except pydantic.ValidationError as error:
            raise UserError(f"{origin}: {_first_fault(error, cls)}") from None


def _repeated_key(root: Any) -> str | None:
    """A key that stands twice in one mapping; YAML's own reader keeps the last and says nothing."""
    waiting, seen = [root], {id(root)}
    while waiting:
        node = waiting.pop()
        children = []
        if isinstance(node, yaml.MappingNode):
            keys = [str(key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key in keys:
                if keys.count(key) > 1:
                    return key
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = list(node.value)
        for child in children:
            if id(child) not in seen:  # anchors make it a graph, which may have more paths than can be walked
                seen.add(id(child))
                waiting.append(child)
    return None


def _text(path: Path) -> str:
    if not path.resolve().is_relative_to(path.parent.resolve()):
        raise UserError(f"hardware profile {path}: leads out of its folder through a symbolic link; copy it there")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"hardware profile {path}: is larger than {_MAX_BYTES:,} bytes; is it a profile?")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"hardware profile {path}: expected UTF-8 text") from None
    except OSError as error:
        raise UserError(f"hardware profile {path} cannot be read: {error.strerror}") from None


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
    where = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        known = list(_model_at(model, fault["loc"]).model_fields)
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown key {where!r}: {hint}known: {', '.join(known)}"
    if fault["type"] == "missing":
        return f"the key {where!r} is missing"
    message = re.sub(r"^Value error, ", "", fault["msg"])
    came = "" if fault["type"] == "value_error" else f", got {reprlib.repr(fault['input'])}"
    return f"{where}: {message[:1].lower()}{message[1:]}{came}"


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
