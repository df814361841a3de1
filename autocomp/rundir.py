"""A run directory as others read it: the report, the table and `verify`. Standard library and values only.

run.yaml          resolved settings, versions, counts, what was left alone
network.json      layers and channel groups of the traced network, for whoever explains a policy
journal.sqlite    every outcome
references.json   the float network and its plain int8 version, measured as the front is; of one that failed, why
front.csv         the front, one row a file
models/, policies/, report.html
"""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from autocomp.errors import RunError, UserError
from autocomp.journal import Entry, Journal
from autocomp.network import NetworkSpec
from autocomp.policy import Policy

SETTINGS, NETWORK, FRONT, REFERENCES = "run.yaml", "network.json", "front.csv", "references.json"
MODELS, POLICIES, REPORT = "models", "policies", "report.html"
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class OnDevice:
    """What a candidate is on one of a run's devices. Milliseconds; provenance: where they come from.

    accuracy, size_bytes, file: of the file that the device's runtime takes. compiled_file, compiled_bytes: what a
    compiler made of it for the device; "" and None without one.
    """

    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    provenance: str
    accuracy: float
    size_bytes: int
    file: str
    compiled_bytes: int | None = None
    compiled_file: str = ""

    def to_columns(self, device: str) -> dict[str, Any]:
        """As front.csv names them: "latency_ms:mobile_arm", …"""
        return {f"{name}:{device}": value for name, value in asdict(self).items()}

    @classmethod
    def from_columns(cls, row: Mapping[str, Any], device: str) -> "OnDevice":
        low, high = float(row[f"latency_low_ms:{device}"]), float(row[f"latency_high_ms:{device}"])
        return cls(
            float(row[f"latency_ms:{device}"]), low, high, str(row.get(f"provenance:{device}") or ""),
            float(row[f"accuracy:{device}"]), int(row[f"size_bytes:{device}"]), str(row[f"file:{device}"]),
            _optional(row.get(f"compiled_bytes:{device}"), int), str(row.get(f"compiled_file:{device}") or ""),
        )  # fmt: skip


def device_columns(devices: Sequence[str]) -> list[str]:
    """The columns of front.csv that only a run for several devices has."""
    return [f"{item.name}:{device}" for device in devices for item in fields(OnDevice)]


@dataclass(frozen=True, slots=True)
class Measured:
    """A file's figures. name: the candidate's id, or "float" / "int8" for a reference.

    accuracy: on the validation split; test_accuracy: on the test split, None before it was scored. Both in [0, 1].
    latency_low_ms, latency_high_ms: the table's band. All three are None for a reference that the device does not
    execute. file: path inside the run directory, "" for none. memory_bytes: predicted peak of activations.
    extrapolated_share: of the latency, what the table does not reach, a fraction. Both None in runs of releases that
    did not predict them. compiled_file, compiled_bytes: what the device's compiler made of the file; cpu_operators:
    what it leaves to the CPU, with its reasons. devices: by name, in a run for several; the figures above are those of
    the first, the primary one.
    """

    name: str
    accuracy: float
    test_accuracy: float | None
    size_bytes: int
    latency_ms: float | None
    latency_low_ms: float | None
    latency_high_ms: float | None
    provenance: str = ""
    file: str = ""
    memory_bytes: int | None = None
    extrapolated_share: float | None = None
    compiled_file: str = ""
    compiled_bytes: int | None = None
    cpu_operators: str = ""
    devices: Mapping[str, OnDevice] = field(default_factory=dict)

    @property
    def stored_bytes(self) -> int:
        """Bytes that the device stores."""
        return self.size_bytes if self.compiled_bytes is None else self.compiled_bytes

    def latency_on(self, device: str = "") -> float | None:
        """Milliseconds on a device of a run for several, or on the only one; None where it does not execute this."""
        if not device:
            return self.latency_ms
        return self.devices[device].latency_ms if device in self.devices else None


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What is needed to explain a layer's decision.

    weights: unpruned count. group: the channel group of its output, "" where it belongs to none that can be pruned.
    channels: unpruned output channels.
    """

    name: str
    op: str
    weights: int
    channels: int
    group: str


@dataclass(frozen=True)
class RunData:
    """All of a run that a report shows.

    front: sorted from the fewest bytes to the most. references: by name. policies: by front name, for the points
    whose policy is known. layers: in the network's order, empty for a run without network.json. failed: why a
    reference is not among them, by name.
    """

    path: Path
    settings: Mapping[str, Any]
    front: tuple[Measured, ...]
    references: Mapping[str, Measured]
    policies: Mapping[str, Policy]
    entries: tuple[Entry, ...]
    layers: tuple[LayerFacts, ...]
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def float_reference(self) -> Measured | None:
        return self.references.get("float")

    @property
    def baseline(self) -> Measured | None:
        """What bytes and latencies are compared with: float, or plain int8 where a device has no floating point.

        Plain int8 stands in for a float file that failed too; None where there is neither.
        """
        return self.baseline_on(self.devices[0] if self.devices else "")

    def baseline_on(self, device: str) -> Measured | None:
        """The same for one of several devices."""
        reference = self.float_reference
        if reference is not None and reference.latency_on(device) is not None:
            return reference
        return self.references.get("int8")

    def smaller(self, measured: Measured) -> float | None:
        """How many times smaller than the baseline; None for what cannot be compared."""
        baseline = self.baseline
        if baseline is None or measured in (baseline, self.float_reference):
            return None
        return baseline.stored_bytes / measured.stored_bytes

    def faster(self, measured: Measured, device: str = "") -> float | None:
        """How many times faster than the baseline, on one of several devices or on the only one; None as above."""
        baseline = self.baseline_on(device)
        latency = measured.latency_on(device)
        compared = None if baseline is None or measured is baseline else baseline.latency_on(device)
        return None if compared is None or latency is None else compared / latency

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices, the primary one first; empty for a run for one device."""
        # Each point is executed by all of them, the float network perhaps by some.
        return max((tuple(m.devices) for m in (*self.front, *self.references.values())), key=len, default=())


def write_network(run: Path, network: NetworkSpec) -> None:
    """Write `network.json`: the layers in order, each with its unpruned size and the group of its output channels."""
    prunable = {group.name for group in network.groups if group.prunable}
    layers = []
    for layer in network.layers:
        groups = [group for group in layer.out_channels.groups if group in prunable]
        layers.append({
            "name": layer.name, "op": "depthwise" if layer.depthwise else layer.op, "weights": layer.weights(),
            "channels": layer.out_channels.count(), "group": groups[0] if len(groups) == 1 else "",
        })  # fmt: skip
    (run / NETWORK).write_text(json.dumps({"name": network.name, "layers": layers}, indent=1))


def write_references(run: Path, measured: Iterable[Measured], failed: Mapping[str, str]) -> None:
    """Write `references.json`. failed: of those that failed, why, by name."""
    rows = [*map(asdict, measured), *({"name": name, "reason": reason} for name, reason in failed.items())]
    (run / REFERENCES).write_text(json.dumps(rows, indent=1), encoding="utf-8")


def reason_of(error: Exception) -> str:
    """An exception as one line; what it is called stands before what it says, unless it is one of ours."""
    text = " ".join(str(error).split())[:300]
    return text if text and isinstance(error, UserError | RunError) else f"{type(error).__name__}: {text}"


def find_run(run: Path) -> Path:
    """`run` itself if it is a run directory; UserError naming what to do otherwise."""
    if not run.exists():
        raise UserError(f"there is no run at {run}: `ls runs` shows the runs here, runs/latest is the newest")
    if not (run / SETTINGS).is_file():
        raise UserError(f"{run} is not a run directory: it has no {SETTINGS}; name one that `autocomp search` wrote")
    return run


def read_run(run: Path) -> RunData:
    """Everything a report needs. UserError naming the file and the fault where something cannot be read."""
    find_run(run)
    try:
        settings = yaml.safe_load((run / SETTINGS).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{run / SETTINGS} is not YAML: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{run / SETTINGS}: expected the settings of a run, one key a line")
    entries: tuple[Entry, ...] = ()
    with Journal(run, read_only=True) as journal:
        entries = tuple(journal)
    references, failed = _read_references(run / REFERENCES)
    front = tuple(sorted(_read_front(run / FRONT), key=lambda point: (point.size_bytes, point.latency_ms)))
    return RunData(
        path=run,
        settings=settings,
        front=front,
        references=references,
        policies=_read_policies(run, front, entries),
        entries=entries,
        layers=_read_layers(run / NETWORK),
        failed=failed,
    )


def _read_front(path: Path) -> list[Measured]:
    if not path.is_file():
        return []  # a run that was interrupted before its first file
    points = []
    with path.open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            try:
                devices = [name.removeprefix("latency_ms:") for name in row if name and name.startswith("latency_ms:")]
                found = {name: OnDevice.from_columns(row, name) for name in devices}
                points.append(_measured({**row, "name": row.get("id")}, found))
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path}, point {row.get('id')}: {_fault(error)}") from None
    return points


def _read_references(path: Path) -> tuple[dict[str, Measured], dict[str, str]]:
    """Those that were measured, and why the others failed, by name."""
    measured: dict[str, Measured] = {}
    failed: dict[str, str] = {}
    if not path.is_file():
        return measured, failed
    try:
        for row in json.loads(path.read_text(encoding="utf-8")):
            if row.get("reason"):
                failed[str(row["name"])] = str(row["reason"])
            else:
                devices = {name: OnDevice(**figures) for name, figures in row.get("devices", {}).items()}
                measured[str(row["name"])] = _measured(row, devices)
        return measured, failed
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {_fault(error)}") from None


def _read_layers(path: Path) -> tuple[LayerFacts, ...]:
    if not path.is_file():
        return ()
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["layers"]
        return tuple(LayerFacts(r["name"], r["op"], int(r["weights"]), int(r["channels"]), r["group"]) for r in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {_fault(error)}") from None


def _read_policies(run: Path, front: tuple[Measured, ...], entries: tuple[Entry, ...]) -> dict[str, Policy]:
    """The policy files come first: they are what `compress` applies. The journal answers where one is missing."""
    recorded = {str(entry.id): entry.policy for entry in entries}
    policies = {}
    for point in front:
        path = run / POLICIES / f"{point.name}.json"
        if path.is_file():
            policies[point.name] = Policy.from_json(path.read_text(encoding="utf-8"), str(path))
        elif point.name in recorded:
            policies[point.name] = recorded[point.name]
    return policies


def _measured(row: Mapping[str, Any], devices: Mapping[str, OnDevice]) -> Measured:
    return Measured(
        name=str(row["name"]),
        accuracy=float(row["accuracy"]),
        test_accuracy=_optional(row.get("test_accuracy"), float),
        size_bytes=int(float(row["size_bytes"])),
        latency_ms=_optional(row["latency_ms"], float),
        latency_low_ms=_optional(row["latency_low_ms"], float),
        latency_high_ms=_optional(row["latency_high_ms"], float),
        provenance=str(row.get("provenance") or ""),
        file=str(row.get("file") or ""),
        memory_bytes=_optional(row.get("memory_bytes"), int),
        extrapolated_share=_optional(row.get("extrapolated_share"), float),
        compiled_file=str(row.get("compiled_file") or ""),
        compiled_bytes=_optional(row.get("compiled_bytes"), int),
        cpu_operators=str(row.get("cpu_operators") or ""),
        devices=devices,
    )


def _optional(value: Any, kind: Callable[[float], Number]) -> Number | None:
    """A number, None for an empty cell or a missing one."""
    return None if value in (None, "") else kind(float(value))


def _fault(error: Exception) -> str:
    return f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
