"""What a run leaves: references and front as files, scored on the held-out split, with their figures beside them."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocomp import rundir
from autocomp.bench import answers_of
from autocomp.budget import Budget
from autocomp.devices import Devices, Figures
from autocomp.export.score import Scorer, layer_outputs
from autocomp.hardware.cost import Cost
from autocomp.journal import Entry
from autocomp.policy import Policy
from autocomp.prepare import Prepared, plain_int8
from autocomp.schedule import Schedule, pareto_front
from autocomp.trial import TrialRunner

COLUMNS = (
    "id", "controller", "accuracy", "test_accuracy", "float_accuracy", "size_bytes", "latency_ms", "latency_low_ms",
    "latency_high_ms", "extrapolated_share", "memory_bytes", "provenance", "file",
)  # fmt: skip


def measure_references(prepared: Prepared, run: Path) -> dict[str, rundir.Measured]:
    """Float and plain int8, as files, measured as the front is. They are no candidates: no budget applies to them."""
    runner = TrialRunner(prepared.bench)
    test = TestSplit(prepared, Path(prepared.bench.folder))
    found: dict[str, rundir.Measured] = {}
    int8 = plain_int8(prepared.bench.traced.spec, *(device.profile for device in prepared.devices))
    try:
        for name, policy in (("float", Policy()), ("int8", int8)):
            file = f"{rundir.MODELS}/{name}.onnx"
            result = runner.run(policy, prepared.settings.seed, run / file, epochs=0)
            cost = prepared.cost.of_policy(policy)
            found[name] = rundir.Measured(
                name, result.accuracy, test.accuracy(run / file, runner.scorer, run / rundir.MODELS / "float.onnx"),
                result.size_bytes, *milliseconds(cost), memory_bytes=memory_bytes(cost),
                extrapolated_share=round(prepared.cost.extrapolated_share(policy), 4),
                provenance=prepared.provenance, file=file,
                devices=_on_devices(prepared.devices, prepared.devices.figures_of_policy(policy)),
            )  # fmt: skip
            (run / rundir.POLICIES / f"{name}.json").write_text(policy.to_json())
    finally:
        runner.close()
    (run / rundir.REFERENCES).write_text(json.dumps([asdict(m) for m in found.values()], indent=1))
    return found


def milliseconds(cost: Cost) -> tuple[float, float, float]:
    return float(cost.latency_ms[0]), float(cost.latency_low_ms[0]), float(cost.latency_high_ms[0])


def memory_bytes(cost: Cost) -> int:
    return round(float(cost.memory_bytes[0]))


def _on_devices(devices: Devices, figures: Sequence[Figures]) -> dict[str, rundir.OnDevice]:
    """Figures of one policy by device; empty where there is one device only."""
    if not devices.several:
        return {}
    return {
        device.name: rundir.OnDevice(
            found.latency_ms, found.latency_low_ms, found.latency_high_ms, device.profile.provenance_note
        )
        for device, found in zip(devices, figures, strict=True)
    }


class TestSplit:
    """The held-out examples of a task. Nothing but the final scoring opens them."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __init__(self, prepared: Prepared, folder: Path) -> None:
        self.data = prepared.task.test
        self.metric = prepared.bench.metric
        self.path = folder / "held_out.npy"
        self.layers = layer_outputs(prepared.bench.traced)
        self._labels: NDArray[Any] | None = self.data.labels
        np.save(self.path, self.data.inputs)

    def accuracy(self, model: Path, scorer: Scorer, float_file: Path) -> float:
        """Of a file, on the test split; against the float file's answers where there are no labels."""
        if self._labels is None:
            self._labels = answers_of(scorer.score(float_file, self.path).outputs)
        return float(self.metric(scorer.score(model, self.path).outputs, self._labels))


def admitted(entries: Sequence[Entry], budget: Budget, float_accuracy: float) -> list[Entry]:
    """Completed entries within the bound on accuracy; the other bounds were checked when they completed."""
    if budget.accuracy_drop is None:
        return list(entries)
    least = float_accuracy - budget.accuracy_drop - 1e-9
    return [e for e in entries if e.outcome.accuracy is not None and e.outcome.accuracy >= least]


def write_results(
    prepared: Prepared, schedule: Schedule, run: Path, references: dict[str, rundir.Measured]
) -> list[Entry]:
    """Score the front on the test split and write front.csv, policies and models; drop what is not on the front.

    The front of a search for several devices is thinned to what nothing else on it dominates by the primary device's
    latency: the rows of front.csv are a front by themselves, whoever reads them.
    """
    complete = [e for e in schedule.complete() if (run / rundir.MODELS / f"{e.id}.onnx").is_file()]
    within = admitted(complete, prepared.settings.budget, references["float"].accuracy)
    front = pareto_front(schedule.joint_front(within))
    test = TestSplit(prepared, prepared.bench.folder)
    rows = []
    with Scorer() as scorer:
        for entry in front:
            file = f"{rundir.MODELS}/{entry.id}.onnx"
            on_devices = _on_devices(prepared.devices, prepared.devices.recorded(entry.details))
            rows.append({
                "id": entry.id, "controller": prepared.settings.controller, "accuracy": entry.outcome.accuracy,
                "test_accuracy": test.accuracy(run / file, scorer, run / rundir.MODELS / "float.onnx"),
                "float_accuracy": references["float"].accuracy, "size_bytes": (run / file).stat().st_size,
                "latency_ms": entry.outcome.latency_ms, "latency_low_ms": entry.latency_low_ms,
                "latency_high_ms": entry.latency_high_ms,
                "extrapolated_share": round(prepared.cost.extrapolated_share(entry.policy), 4),
                "memory_bytes": memory_bytes(prepared.cost.of_policy(entry.policy)),
                "provenance": prepared.provenance, "file": file,
                **{column: value for name, on in on_devices.items() for column, value in on.to_columns(name).items()},
            })  # fmt: skip
            (run / rundir.POLICIES / f"{entry.id}.json").write_text(entry.policy.to_json())
    names = [device.name for device in prepared.devices] if prepared.devices.several else []
    _write_front(run / rundir.FRONT, rows, [*COLUMNS, *rundir.device_columns(names)])
    keep = {f"{e.id}.onnx" for e in front} | {"float.onnx", "int8.onnx"}
    for path in (run / rundir.MODELS).iterdir():
        if path.name not in keep:
            path.unlink()
    return front


def _write_front(path: Path, rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)
