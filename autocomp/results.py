"""What a run leaves: references and front as files, scored on the held-out split, with their figures beside them."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocomp import rundir
from autocomp.artifact import Artifact, Target
from autocomp.budget import Budget
from autocomp.compress.finetune import outputs_of
from autocomp.devices import Device, Devices, Figures
from autocomp.errors import UserError
from autocomp.export.score import Scorer, layer_outputs
from autocomp.front import non_dominated
from autocomp.journal import Entry
from autocomp.policy import Policy
from autocomp.prepare import Prepared, plain_int8
from autocomp.schedule import Schedule, pareto_front
from autocomp.tasks.labels import Split
from autocomp.trial import TrialRunner
from autocomp.whole_file import write_whole

FLOAT_FILE = f"{rundir.MODELS}/float.onnx"
COLUMNS = (
    "id", "controller", "accuracy", "test_accuracy", "float_accuracy", "size_bytes", "latency_ms", "latency_low_ms",
    "latency_high_ms", "extrapolated_share", "memory_bytes", "provenance", "file",
)  # fmt: skip
#: Where a compiler has the last word on what the device stores.
COMPILED_COLUMNS = ("compiled_file", "compiled_bytes", "cpu_operators")


@dataclass(frozen=True)
class References:
    """What a front is compared with, by name: "float" and "int8", each in one of the two.

    failed: why there is no file, or none that can be trusted. float_accuracy: of the float network on the validation
    split, in [0, 1]: of its file, or as torch computes it where the file failed.
    """

    measured: Mapping[str, rundir.Measured]
    failed: Mapping[str, str]
    float_accuracy: float


def measure_references(prepared: Prepared, run: Path) -> References:
    """Float and plain int8, as files, measured as the front is. They are no candidates: no budget applies to them.

    The float network is an ONNX file whatever the devices take: where they have no floating point, it says how
    accurate the network was, and has no latency. One that fails does not keep the other from being measured, nor the
    search from running. UserError where the devices' files cannot express the network.
    """
    bench = prepared.bench
    test = TestSplit(prepared, Path(bench.folder))
    measured: dict[str, rundir.Measured] = {}
    failed: dict[str, str] = {}
    profiles = [device.profile for device in prepared.devices]
    for name, policy in (("float", Policy()), ("int8", plain_int8(bench.traced.spec, *profiles))):
        try:
            measured[name] = _reference(prepared, name, policy, run, test)
        except (UserError, OSError):
            raise  # a full disk will not hold candidates either
        except Exception as error:  # noqa: BLE001  (its reason is kept; whether candidates fare better is to be seen)
            failed[name] = rundir.reason_of(error)
            for path in (run / rundir.MODELS).glob(f"{name}.*"):
                path.unlink()  # nobody vouches for it
        (run / rundir.POLICIES / f"{name}.json").write_text(policy.to_json())
    rundir.write_references(run, measured.values(), failed)
    return References(measured, failed, measured["float"].accuracy if "float" in measured else _by_torch(prepared))


def _reference(prepared: Prepared, name: str, policy: Policy, run: Path, test: "TestSplit") -> rundir.Measured:
    spec = prepared.bench.traced.spec
    executable = [device for device in prepared.devices if device.profile.executes_all(spec, policy)]
    targets = [Target.of(device.profile) for device in executable] or [Target("float")]
    with TrialRunner(prepared.bench, targets) as runner:
        result = runner.run(policy, prepared.settings.seed, run / rundir.MODELS / name, epochs=0)
        figures = {device.name: _figures(device, policy, result.artifacts[device.name]) for device in executable}
        return _measured(prepared, name, policy, result.artifacts, figures, run, test, runner.scorer)


def _by_torch(prepared: Prepared) -> float:
    """Accuracy of the float network on the validation split without a file, in [0, 1]."""
    bench = prepared.bench
    outputs = outputs_of(bench.traced.graph, bench.validation_inputs)
    return bench.judge.score(outputs, np.asarray(bench.validation_labels))


def _figures(device: Device, policy: Policy, artifact: Artifact) -> Figures:
    return Figures.of(device.cost.of_policy(policy)).settled(artifact)


def _recorded(devices: Devices, entry: Entry, artifacts: Mapping[str, Artifact]) -> dict[str, Figures]:
    """What the journal says of a candidate: the tables may know more by the time that a search is resumed."""
    if devices.several:
        return {device.name: found for device, found in zip(devices, devices.recorded(entry.details), strict=True)}
    device, outcome = devices.primary, entry.outcome
    found = _figures(device, entry.policy, artifacts[device.name])
    assert outcome.latency_ms is not None and entry.latency_low_ms is not None and entry.latency_high_ms is not None
    latencies = {"latency_low_ms": entry.latency_low_ms, "latency_high_ms": entry.latency_high_ms}
    return {device.name: replace(found, latency_ms=outcome.latency_ms, **latencies)}


def _measured(
    prepared: Prepared, name: str, policy: Policy, artifacts: Mapping[str, Artifact], figures: Mapping[str, Figures],
    run: Path, test: "TestSplit", scorer: Scorer,
) -> rundir.Measured:  # fmt: skip
    """All that is known of a candidate or a reference. artifacts, figures: by device, as far as they execute it."""
    primary = prepared.devices.primary
    target = Target.of(primary.profile) if primary.name in artifacts else Target("float")
    made = artifacts.get(primary.name, next(iter(artifacts.values())))
    file = f"{rundir.MODELS}/{name}{target.suffix}"
    theirs = figures.get(primary.name)
    latency = low = high = None
    if theirs is not None:
        latency, low, high = theirs.latency_ms, theirs.latency_low_ms, theirs.latency_high_ms
    # A compiler's figure is of the whole model: nothing of it comes from the table.
    from_table = theirs is not None and made.latency_ms is None
    return rundir.Measured(
        name, made.accuracy, test.accuracy(run / file, scorer, run / FLOAT_FILE), made.size_bytes,
        latency, low, high,
        provenance=prepared.provenance, file=file,
        memory_bytes=round(theirs.memory_bytes) if theirs else None,
        extrapolated_share=round(primary.cost.extrapolated_share(policy), 4) if from_table else None,
        compiled_file="" if made.compiled_bytes is None else f"{rundir.MODELS}/{name}{target.compiled_suffix}",
        compiled_bytes=made.compiled_bytes,
        cpu_operators="; ".join(f"{operator}: {reason}" for operator, reason in made.cpu_operators),
        devices=_on_devices(prepared.devices, name, artifacts, figures),
    )  # fmt: skip


def _on_devices(
    devices: Devices, name: str, artifacts: Mapping[str, Artifact], figures: Mapping[str, Figures]
) -> dict[str, rundir.OnDevice]:
    """What a candidate or reference is on each device that executes it; empty where there is one device only."""
    found = {}
    for device in devices if devices.several else ():
        if device.name in figures:
            made, theirs, target = artifacts[device.name], figures[device.name], Target.of(device.profile)
            compiled = "" if made.compiled_bytes is None else f"{rundir.MODELS}/{name}{target.compiled_suffix}"
            found[device.name] = rundir.OnDevice(
                theirs.latency_ms, theirs.latency_low_ms, theirs.latency_high_ms, device.profile.provenance_note,
                made.accuracy, made.size_bytes, f"{rundir.MODELS}/{name}{target.suffix}", made.compiled_bytes, compiled,
            )  # fmt: skip
    return found


class TestSplit:
    """The held-out examples of a task. Nothing but the final scoring opens them."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __init__(self, prepared: Prepared, folder: Path) -> None:
        self.data = prepared.task.test
        self.judge = prepared.bench.judge
        self.path = folder / "held_out.npy"
        # A file for this machine's CPU is held to what a user's own session computes here, others to their device's.
        self.stock = prepared.profile.is_local_cpu
        self.layers = layer_outputs(prepared.bench.traced)
        self._graph = prepared.bench.traced.graph
        self._labels: NDArray[Any] | None = None
        np.save(self.path, self.data.inputs)

    def accuracy(self, model: Path, scorer: Scorer, float_file: Path) -> float:
        """Of a file, on the test split; against the float file's answers where there are no labels.

        A float file that failed is not there: then it is torch that answers.
        """
        if self._labels is None:
            if self.data.labels is None:
                self._labels = self.judge.answers(self._float_outputs(scorer, float_file))
            else:
                self._labels = self.judge.encode(Split.of(self.data, "Task.test"))
        return self.judge.score(scorer.score(model, self.path, stock=self.stock).outputs, self._labels)

    def _float_outputs(self, scorer: Scorer, float_file: Path) -> NDArray[Any]:
        if float_file.is_file():
            return scorer.score(float_file, self.path).outputs
        return outputs_of(self._graph, self.data.inputs)


def admitted(entries: Sequence[Entry], budget: Budget, float_accuracy: float) -> list[Entry]:
    """Completed entries within the bound on accuracy; the other bounds were checked when they completed.

    Every device's file has to be: what one runtime scores another may not, by a few images.
    """
    if budget.accuracy_drop is None:
        return list(entries)
    least = float_accuracy - budget.accuracy_drop - 1e-9
    return [e for e in entries if min(made["accuracy"] for made in e.details["artifacts"].values()) >= least]


def write_results(prepared: Prepared, schedule: Schedule, run: Path, references: References) -> list[Entry]:
    """Score the front on the test split and write front.csv, policies and models; drop what is not on the front.

    The front of a search for several devices is thinned to what nothing else on it dominates by the primary device's
    latency: the rows of front.csv are a front by themselves, whoever reads them.
    """
    suffixes = dict.fromkeys(suffix for target in prepared.targets for suffix in target.suffixes)
    models = run / rundir.MODELS
    complete = [e for e in schedule.complete() if all((models / f"{e.id}{suffix}").is_file() for suffix in suffixes)]
    within = admitted(complete, prepared.settings.budget, references.float_accuracy)
    front = pareto_front(schedule.joint_front(within))
    test = TestSplit(prepared, prepared.bench.folder)
    points = []
    with Scorer() as scorer:
        for entry in front:
            artifacts = {name: Artifact.from_dict(values) for name, values in entry.details["artifacts"].items()}
            figures = _recorded(prepared.devices, entry, artifacts)
            points.append(_measured(prepared, str(entry.id), entry.policy, artifacts, figures, run, test, scorer))
            (run / rundir.POLICIES / f"{entry.id}.json").write_text(entry.policy.to_json())
    kept = _by_file_bytes(points)
    _write_front(run / rundir.FRONT, [_row(point, prepared, references.float_accuracy) for point in kept], prepared)
    names = [*(point.name for point in kept), *references.measured]
    keep = {f"{name}{suffix}" for name in names for suffix in suffixes} | {Path(FLOAT_FILE).name}
    for path in models.iterdir():
        if path.name not in keep:
            path.unlink()
    return [entry for entry in front if str(entry.id) in {point.name for point in kept}]


def _by_file_bytes(points: Sequence[rundir.Measured]) -> list[rundir.Measured]:
    """Those that none dominates by accuracy, bytes of the file and latency either, as a reader of front.csv sees them.

    Only a compiler makes a difference: it may need fewer bytes for a file that is no smaller.
    """
    if not points:
        return []
    kept = non_dominated([(-point.accuracy, point.size_bytes, point.latency_ms or 0.0) for point in points])
    return [point for point, keep in zip(points, kept, strict=True) if keep]


def _row(point: rundir.Measured, prepared: Prepared, float_accuracy: float) -> dict[str, Any]:
    """A point as front.csv has it."""
    own = {"id": point.name, "controller": prepared.settings.controller, "float_accuracy": float_accuracy}
    columns = {name: value for device, on in point.devices.items() for name, value in on.to_columns(device).items()}
    return {name: value for name, value in asdict(point).items() if name not in ("name", "devices")} | own | columns


def _write_front(path: Path, rows: Sequence[dict[str, Any]], prepared: Prepared) -> None:
    devices = [device.name for device in prepared.devices] if prepared.devices.several else []
    compiled = COMPILED_COLUMNS if prepared.profile.integer_only else ()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*COLUMNS, *compiled, *rundir.device_columns(devices)], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())
