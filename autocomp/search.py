"""The main job: from settings to a run directory whose front is a set of verified files."""

import csv
import json
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from autocomp import __version__, rundir
from autocomp.bench import Bench, answers_of
from autocomp.budget import Budget
from autocomp.compress.trace import trace
from autocomp.controllers import CostFunction, Costs, create
from autocomp.controllers.repair import nearest_fit, smallest_reachable
from autocomp.display import Display
from autocomp.errors import RunError, UserError
from autocomp.export.score import Scorer, layer_outputs
from autocomp.export.size import FileSizes
from autocomp.export.writer import OnnxWriter
from autocomp.hardware.choices import choosable_kernels
from autocomp.hardware.cost import Cost, CostModel, network_kernels
from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.latencies import known_latencies, latencies_for
from autocomp.hardware.profile import HardwareProfile, find_profile
from autocomp.hardware.strict import within_measured_range
from autocomp.journal import Entry, Journal
from autocomp.network import NetworkSpec
from autocomp.outcome import Status
from autocomp.policy import INT8, Policy
from autocomp.schedule import Report, Schedule, pareto_front
from autocomp.space import SearchSpace
from autocomp.tasks import Task, TaskRequest, load_task
from autocomp.tasks.spaces import load_space
from autocomp.trial import TrialRunner

COLUMNS = (
    "id", "controller", "accuracy", "test_accuracy", "float_accuracy", "size_bytes", "latency_ms", "latency_low_ms",
    "latency_high_ms", "extrapolated_share", "memory_bytes", "provenance", "file",
)  # fmt: skip


@dataclass(frozen=True)
class SearchSettings:
    """What the command line says; None means that the task's own default holds."""

    hw: str
    task: str = "mnist"
    network: str | None = None
    data: Path | None = None
    test_data: Path | None = None
    budget: Budget = field(default_factory=Budget)
    controller: str = "tpe"
    space: str | None = None
    trials: int | None = None
    minutes: float | None = None
    seed: int = 0
    workers: int | None = None
    address: str | None = None
    out: Path | None = None
    epochs: float | None = None
    strict: bool = False

    @property
    def request(self) -> TaskRequest:
        return TaskRequest(self.task, self.network, self.data, self.test_data, self.space)

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        for name in ("data", "test_data"):
            values[name] = None if values[name] is None else str(Path(values[name]).resolve())
        if ":" in self.task:
            path, _, function = self.task.rpartition(":")
            values["task"] = f"{Path(path).resolve()}:{function}"
        values["out"] = None if self.out is None else str(self.out)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str) -> "SearchSettings":
        try:
            paths = {n: None if values[n] is None else Path(values[n]) for n in ("data", "test_data", "out")}
            return cls(**{**values, **paths, "budget": Budget(**values["budget"])})
        except (KeyError, TypeError) as error:
            raise UserError(f"{origin} does not hold the settings of a run: {error}") from None

    @classmethod
    def of_run(cls, run: Path) -> "SearchSettings":
        """The settings that a run directory records. UserError where it records none."""
        path = run / rundir.SETTINGS
        recorded = yaml.safe_load(path.read_text(encoding="utf-8"))
        return cls.from_dict((recorded or {}).get("settings", {}), str(path))


@dataclass
class Prepared:
    """A task ready to be searched: traced, its space and its costs known."""

    settings: SearchSettings
    task: Task
    bench: Bench
    profile: HardwareProfile
    space: SearchSpace
    cost: CostModel

    @property
    def provenance(self) -> str:
        return self.profile.provenance_note


def prepare(settings: SearchSettings, display: Display, folder: Path) -> Prepared:
    """Load and trace the task, fill or read the latency table, build space and costs; the bench goes to `folder`."""
    profile = find_profile(settings.hw)
    if not profile.on_the_spot:
        _ = profile.latencies  # a fault in the table is worth knowing before a network is trained
    if profile.staleness is not None:
        display.note(f"warning: {profile.staleness}")
    task = _load_task(settings, display)
    display.phase("tracing the network", detail=task.name)
    bench = Bench.make(task, folder)
    traced = bench.traced
    options = replace(task.space, channel_multiple=profile.channel_multiple)
    space = SearchSpace.build(traced.spec, options, profile.veto)
    latency = _latency_model(profile, traced.spec, space, display)
    if settings.strict:
        space = within_measured_range(space, latency, known_latencies(profile))
    display.phase("tabulating costs", detail=f"{len(space)} decisions")
    cost = CostModel(space, latency, FileSizes(OnnxWriter(traced)))
    if cost.beyond_table > 0:
        display.note(
            f"{math.ceil(100 * cost.beyond_table)} % of the kernels that candidates may need lie outside the measured "
            "range of the table: their latency is extrapolated, with a wide band; --strict leaves such choices out"
        )
    return Prepared(settings, task, bench, profile, space, cost)


def trace_task(settings: SearchSettings, display: Display, folder: Path) -> NetworkSpec:
    """The network that `settings` name; what `prepare` does of it, without what only a search needs."""
    task = _load_task(settings, display)
    display.phase("tracing the network", detail=task.name)
    return trace(task.network, task.example, task.name, folder).spec


def _load_task(settings: SearchSettings, display: Display) -> Task:
    torch.set_num_threads(1)  # two threads spin against whatever else runs, and cost reproducibility
    task = load_task(settings.request, display)
    if settings.space is not None and ":" in settings.task:
        task.space, task.space_name = load_space(settings.space).options, settings.space
    return task


def _latency_model(
    profile: HardwareProfile, network: NetworkSpec, space: SearchSpace, display: Display
) -> LatencyModel:
    if not profile.on_the_spot:
        return LatencyModel.from_table(profile.latencies, profile.calibration)
    # The kernels of whole networks come first: the estimator then interpolates between them and what is pruned.
    first = [k for policy in (Policy(), plain_int8(network, profile)) for k, _ in network_kernels(network, policy)]
    kernels = list(dict.fromkeys([*first, *choosable_kernels(network, space)]))
    display.phase("measuring this machine's kernels", total=len(kernels), detail="cached for the next run")
    table = latencies_for(profile, kernels, lambda done, total, left: display.advance(done))
    return LatencyModel.from_table(table, profile.calibration)


def plain_int8(network: NetworkSpec, profile: HardwareProfile) -> Policy:
    """Everything int8 that the device can execute as such."""
    return Policy({layer.name: INT8 for layer in network.layers if profile.veto(layer, INT8) is None})


def controller_cost(model: CostModel) -> CostFunction:
    """What a controller may know of the costs: bytes, milliseconds and memory, without bands."""

    def cost(genes: Any) -> Costs:
        full = model(genes)
        return Costs(full.size_bytes, full.latency_ms, full.memory_bytes)

    return cost


def check_reachable(prepared: Prepared) -> None:
    """UserError where nothing in the space fits the budget: nearest candidate, binding constraint, smallest budget."""
    budget, space, cost = prepared.settings.budget, prepared.space, controller_cost(prepared.cost)
    size, latency, memory = (float(values[0]) for values in cost(nearest_fit(space, cost, budget)[None]))
    if budget.admits(size, latency, memory):
        return
    least = (float(values.min()) for values in cost(np.stack(smallest_reachable(space, cost))))
    raise UserError(
        f"nothing in the space fits the budget of {budget}: the nearest candidate takes "
        f"{_spelled(budget, size, latency, memory)}, and {budget.binding(size, latency, memory)} binds; "
        f"the smallest reachable are {_spelled(budget, *least)}: "
        "raise the budget to that or offer stronger compression with --space"
    )


def _spelled(budget: Budget, size_bytes: float, latency_ms: float, memory_bytes: float) -> str:
    """Costs as text; memory only where it is bounded."""
    text = f"{size_bytes:,.0f} bytes and {latency_ms:.4g} ms"
    return text if budget.memory_bytes is None else f"{text} and {memory_bytes:,.0f} bytes of memory"


def run_search(settings: SearchSettings, display: Display) -> Path:
    """Search from scratch; returns the run directory. See the module docstring for what is in it."""
    run = _new_run(settings)
    try:
        return _search(settings, run, display, known={})
    except UserError:
        _discard_if_empty(run)
        raise


def resume_search(run: Path, display: Display) -> Path:
    """Go on with an interrupted run: the same sequence of candidates, and what is journaled is not run again."""
    settings = SearchSettings.of_run(run)
    with Journal(run, read_only=True) as journal:
        known = {entry.id: entry for entry in journal}
    return _search(settings, run, display, known)


def _search(settings: SearchSettings, run: Path, display: Display, known: dict[int, Entry]) -> Path:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="autocomp-bench-") as folder:
        prepared = prepare(settings, display, Path(folder))
        check_reachable(prepared)
        seconds = 60 * (settings.minutes if settings.minutes is not None else prepared.task.minutes)
        if settings.trials is not None and settings.minutes is None:
            seconds = None  # type: ignore[assignment]  # whoever counts trials wants them all
        facts = _facts(prepared, run)
        _write_settings(run, facts, "running")
        rundir.write_network(run, prepared.bench.traced.spec)
        (run / rundir.MODELS).mkdir(exist_ok=True)
        (run / rundir.POLICIES).mkdir(exist_ok=True)
        display.phase("scoring the float network and its plain int8 version")
        references = _references(prepared, run)
        with Journal(run) as journal:
            schedule = _make_schedule(prepared, journal, references, seconds, known, display)
            interrupted = False
            try:
                display.phase(
                    "searching", total=settings.trials, detail=f"{settings.controller} on {prepared.profile.title}"
                )
                _run_trials(prepared, schedule, run, references)
            except KeyboardInterrupt:
                interrupted = True
            display.phase("scoring the front on the test split")
            front = _finish(prepared, schedule, run, references)
        facts |= {
            "seconds": round(time.monotonic() - started, 1),
            "search_seconds": round(schedule.clock() - schedule.started, 1),
            "counts": {str(s): sum(e.outcome.status is s for e in schedule.entries.values()) for s in Status},
            "float_accuracy": references["float"].accuracy,
            "front": len(front),
        }
        _write_settings(run, facts, "interrupted" if interrupted else "done")
        if interrupted:
            display.note(f"interrupted; everything so far is saved. To go on: autocomp resume {run}")
        elif not front:
            raise RunError(f"no trial completed within the budget; `autocomp report {run}` lists the reasons")
    return run


def _make_schedule(
    prepared: Prepared, journal: Journal, references: dict[str, rundir.Measured], seconds: float | None,
    known: dict[int, Entry], display: Display,
) -> Schedule:  # fmt: skip
    settings = prepared.settings
    cost = controller_cost(prepared.cost)
    controller = create(settings.controller, prepared.space, cost, settings.budget, settings.seed)
    workers = workers_of(settings)
    return Schedule(
        controller, prepared.cost, settings.budget, journal, lag=2 * workers, trials=settings.trials, seconds=seconds,
        known=known, on_entry=display.trial,
    )  # fmt: skip


def workers_of(settings: SearchSettings) -> int:
    return settings.workers or os.cpu_count() or 1


def _run_trials(prepared: Prepared, schedule: Schedule, run: Path, references: dict[str, rundir.Measured]) -> None:
    from autocomp.ray_tune import run_trials

    def on_result(candidate: int, report: Report, content: bytes) -> None:
        if content:
            # The file lies there before the journal says so: a kill in between costs one trial, never a point.
            write_whole(run / rundir.MODELS / f"{candidate}.onnx", content)
        entry = schedule.finished(candidate, report)
        if entry not in schedule.front():
            (run / rundir.MODELS / f"{candidate}.onnx").unlink(missing_ok=True)

    settings = prepared.settings
    run_trials(
        schedule, prepared.bench, on_result, seed=settings.seed, workers=workers_of(settings), address=settings.address,
        epochs=settings.epochs,
    )  # fmt: skip


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def _references(prepared: Prepared, run: Path) -> dict[str, rundir.Measured]:
    """Float and plain int8, as files, measured as the front is. They are no candidates: no budget applies to them."""
    runner = TrialRunner(prepared.bench)
    test = TestSplit(prepared, Path(prepared.bench.folder))
    found: dict[str, rundir.Measured] = {}
    try:
        for name, policy in (("float", Policy()), ("int8", plain_int8(prepared.bench.traced.spec, prepared.profile))):
            file = f"{rundir.MODELS}/{name}.onnx"
            result = runner.run(policy, prepared.settings.seed, run / file, epochs=0)
            cost = prepared.cost.of_policy(policy)
            found[name] = rundir.Measured(
                name, result.accuracy, test.accuracy(run / file, runner.scorer, run / rundir.MODELS / "float.onnx"),
                result.size_bytes, *_milliseconds(cost), memory_bytes=_memory(cost),
                extrapolated_share=round(prepared.cost.extrapolated_share(policy), 4),
                provenance=prepared.provenance, file=file,
            )  # fmt: skip
            (run / rundir.POLICIES / f"{name}.json").write_text(policy.to_json())
    finally:
        runner.close()
    (run / rundir.REFERENCES).write_text(json.dumps([asdict(m) for m in found.values()], indent=1))
    return found


def _milliseconds(cost: Cost) -> tuple[float, float, float]:
    return float(cost.latency_ms[0]), float(cost.latency_low_ms[0]), float(cost.latency_high_ms[0])


def _memory(cost: Cost) -> int:
    return round(float(cost.memory_bytes[0]))


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


def _finish(prepared: Prepared, schedule: Schedule, run: Path, references: dict[str, rundir.Measured]) -> list[Entry]:
    """Score the front on the test split and write front.csv, policies and models; drop what is not on the front."""
    complete = [e for e in schedule.complete() if (run / rundir.MODELS / f"{e.id}.onnx").is_file()]
    front = pareto_front(admitted(complete, prepared.settings.budget, references["float"].accuracy))
    test = TestSplit(prepared, prepared.bench.folder)
    rows = []
    with Scorer() as scorer:
        for entry in front:
            file = f"{rundir.MODELS}/{entry.id}.onnx"
            rows.append({
                "id": entry.id, "controller": prepared.settings.controller, "accuracy": entry.outcome.accuracy,
                "test_accuracy": test.accuracy(run / file, scorer, run / rundir.MODELS / "float.onnx"),
                "float_accuracy": references["float"].accuracy, "size_bytes": (run / file).stat().st_size,
                "latency_ms": entry.outcome.latency_ms, "latency_low_ms": entry.latency_low_ms,
                "latency_high_ms": entry.latency_high_ms,
                "extrapolated_share": round(prepared.cost.extrapolated_share(entry.policy), 4),
                "memory_bytes": _memory(prepared.cost.of_policy(entry.policy)),
                "provenance": prepared.provenance, "file": file,
            })  # fmt: skip
            (run / rundir.POLICIES / f"{entry.id}.json").write_text(entry.policy.to_json())
    _write_front(run / rundir.FRONT, rows)
    keep = {f"{e.id}.onnx" for e in front} | {"float.onnx", "int8.onnx"}
    for path in (run / rundir.MODELS).iterdir():
        if path.name not in keep:
            path.unlink()
    return front


def _write_front(path: Path, rows: list[dict[str, Any]]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def _new_run(settings: SearchSettings) -> Path:
    """The run directory, made; `runs/latest` points to it. UserError if it holds another run or cannot be made."""
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{_task_label(settings.task)}-{Path(settings.hw).stem}"
    run = settings.out if settings.out is not None else Path("runs") / name
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(
            f"--out {run} already holds something: choose another folder"
            + (f", or go on with its run: autocomp resume {run}" if (run / rundir.SETTINGS).is_file() else "")
        )
    try:
        run.mkdir(parents=True, exist_ok=True)
        probe = run / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out: cannot write to {run}: {error.strerror}; choose another folder") from None
    latest = Path("runs") / "latest"
    if settings.out is None or run.parent.resolve() == latest.parent.resolve():
        latest.unlink(missing_ok=True)
        latest.symlink_to(run.name, target_is_directory=True)
    else:
        _point_latest(run, latest)
    return run


def _point_latest(run: Path, latest: Path) -> None:
    """`runs/latest` points to the newest run wherever it lies; without permission it stays as it is."""
    try:
        latest.parent.mkdir(exist_ok=True)
        latest.unlink(missing_ok=True)
        latest.symlink_to(run.resolve(), target_is_directory=True)
    except OSError:
        pass


def _task_label(task: str) -> str:
    return Path(task.rpartition(":")[0]).stem if ":" in task else task


def _discard_if_empty(run: Path) -> None:
    """A search that was refused leaves no folder behind."""
    if (run / rundir.SETTINGS).is_file():
        return
    shutil.rmtree(run, ignore_errors=True)
    latest = Path("runs") / "latest"
    if latest.is_symlink() and not latest.exists():
        latest.unlink()
        others = sorted(
            (p for p in latest.parent.iterdir() if (p / rundir.SETTINGS).is_file()), key=lambda p: p.stat().st_mtime
        )
        if others:
            latest.symlink_to(others[-1].name, target_is_directory=True)


def _facts(prepared: Prepared, run: Path) -> dict[str, Any]:
    settings, spec = prepared.settings, prepared.bench.traced.spec
    return {
        "autocomp": __version__,
        "task": settings.task,
        "network": spec.name if settings.network is None else settings.network,
        "hw": settings.hw,
        "hw_title": prepared.profile.title,
        "budget": asdict(settings.budget),
        "controller": settings.controller,
        "seed": settings.seed,
        "trials": settings.trials,
        "minutes": settings.minutes if settings.minutes is not None else prepared.task.minutes,
        "workers": workers_of(settings),
        "space": prepared.task.space_name,
        "decisions": len(prepared.space),
        "provenance": prepared.provenance,
        "profile_digest": prepared.profile.digest(),
        "bench_digest": prepared.bench.digest,
        "examples": {
            "train": len(prepared.task.train), "validation": len(prepared.task.validation),
            "test": len(prepared.task.test),
        },
        "versions": _versions(),
        "started_at": datetime.now().astimezone().isoformat(timespec="seconds"),
        "left_alone": [asdict(item) for item in spec.left_alone],
        "removed_choices": _summarize(prepared.space.removed),
        "settings": settings.to_dict(),
    }  # fmt: skip


def _summarize(removed: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Refused choices, one line a layer and reason."""
    merged: dict[tuple[str, str], list[str]] = {}
    for choice, reason in removed:
        layer, _, decision = choice.rpartition(": ")
        merged.setdefault((layer, reason), []).append(decision)
    return [[f"{layer}: {', '.join(decisions)}", reason] for (layer, reason), decisions in merged.items()]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("torch", "onnxruntime", "onnx", "optuna", "ray", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def _write_settings(run: Path, facts: dict[str, Any], status: str) -> None:
    text = yaml.safe_dump({**facts, "status": status}, sort_keys=False, allow_unicode=True, width=120)
    write_whole(run / rundir.SETTINGS, text.encode())


def compress(policy_path: Path, settings: SearchSettings) -> Path:
    """Apply one policy file: prune, quantize, finetune, export, verify. Returns the folder with model and figures."""
    from autocomp.compress.prune import check_policy
    from autocomp.display import QuietDisplay

    policy = Policy.from_json(policy_path.read_text(encoding="utf-8"), str(policy_path))
    out = settings.out if settings.out is not None else Path(f"{policy_path.stem}-{_task_label(settings.task)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} already holds something: choose another folder")
    with tempfile.TemporaryDirectory(prefix="autocomp-bench-") as folder:
        prepared = prepare(settings, QuietDisplay(), Path(folder))
        spec = prepared.bench.traced.spec
        check_policy(spec, policy)
        prepared.profile.check_executable(spec, policy, str(policy_path))
        out.mkdir(parents=True, exist_ok=True)
        runner = TrialRunner(prepared.bench)
        try:
            reference = Path(folder, "float.onnx")
            runner.writer.write(_frozen_float(runner), reference)
            result = runner.run(policy, settings.seed, out / "model.onnx", settings.epochs)
            held_out = TestSplit(prepared, Path(folder)).accuracy(out / "model.onnx", runner.scorer, reference)
        finally:
            runner.close()
        cost = prepared.cost.of_policy(policy)
        latency, low, high = _milliseconds(cost)
        figures = {
            "accuracy": result.accuracy, "test_accuracy": held_out, "size_bytes": result.size_bytes,
            "latency_ms": latency, "latency_low_ms": low, "latency_high_ms": high, "memory_bytes": _memory(cost),
            "provenance": prepared.provenance,
        }  # fmt: skip
        (out / "figures.json").write_text(json.dumps(figures, indent=1))
        (out / "policy.json").write_text(policy.to_json())
    return out


def _frozen_float(runner: TrialRunner) -> Any:
    from autocomp.compress.network import QuantizedNetwork

    return QuantizedNetwork(runner.traced, Policy()).freeze()
