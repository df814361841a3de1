"""`autocomp verify`: every figure of a front that can be checked, checked again from the files."""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocomp import rundir
from autocomp.compress.finetune import outputs_of
from autocomp.compress.plain_form import plain_form
from autocomp.display import QuietDisplay
from autocomp.errors import RunError, UserError
from autocomp.export.limits import has_limit
from autocomp.export.score import Scorer, precision_faults
from autocomp.hardware.ethos_u.accelerator import Accelerator
from autocomp.hardware.ethos_u.compiler import PACKAGE, compile_tflite, vela_version
from autocomp.hardware.profile import find_profile
from autocomp.policy import Policy
from autocomp.settings import SearchSettings
from autocomp.tasks import load_task
from autocomp.tasks.check import judge_of
from autocomp.tasks.judge import Judge, recorded_scale
from autocomp.tasks.labels import Split
from autocomp.tasks.task import Task

#: Outputs of the same file on the same runtime repeat exactly; another CPU rounds differently in a few examples.
TOLERANCE = 1e-9


def verify_run(run: Path, *, as_shipped: bool = False) -> list[dict[str, Any]]:
    """Re-open each file of a run's front and references in a fresh process, recount its bytes, score it again.

    Files are scored with the arithmetic of their device; those for this machine's CPU by a session with default
    options. What was compiled for an NPU is compiled again, if the release of the compiler is the one that the run had.
    as_shipped: also score each ONNX file by such a session here, whatever its device.
    Returns a row per file: id, ok, problem, file, size_bytes, accuracy, test_accuracy, limited: whether the file says
    that x86 without VNNI needs a session option to compute it exactly; with `as_shipped` the accuracies by split that a
    stock session gives. A reference that failed in the run has no file: its row is ok, with the reason as its `note`.
    """
    settings = SearchSettings.of_run(run)
    data = rundir.read_run(run)
    task = load_task(settings.request, QuietDisplay())
    profiles = [find_profile(name) for name in settings.profiles]
    accelerators = {profile.name: profile.accelerator for profile in profiles}
    compiler = (data.settings.get("versions") or {}).get(PACKAGE, "")
    rows = []
    with tempfile.TemporaryDirectory(prefix="autocomp-verify-") as folder, Scorer() as scorer:
        splits = {"accuracy": task.validation, "test_accuracy": task.test}
        inputs = {name: Path(folder, f"{name}.npy") for name in splits}
        for name, split in splits.items():
            np.save(inputs[name], split.inputs)
        own = {name: _float_outputs(task, run / rundir.MODELS / "float.onnx", inputs[name], scorer) for name in splits}
        judge = judge_of(task, own["accuracy"], recorded_scale(data.settings.get("judge")))
        labels = {name: judge.labels_of(Split.of(split, name), own[name]) for name, split in splits.items()}
        checker = _Checker(run, Path(folder), scorer, inputs, labels, judge, compiler, as_shipped)
        local = {profile.name for profile in profiles if profile.is_local_cpu}
        for point in (*data.references.values(), *data.front):
            for claim in _claims(point, profiles[0].name, accelerators, local):
                row: dict[str, Any] = {"id": claim.name, "ok": True, "problem": "", "file": claim.file}
                try:
                    row |= checker.check(claim, data.policies.get(point.name))
                except (RunError, UserError, OSError) as error:
                    row |= {"ok": False, "problem": str(error)}
                rows.append(row)
    failed = data.failed.items()
    return [{"id": name, "ok": True, "problem": "", "note": f"failed: {reason}"} for name, reason in failed] + rows


def _float_outputs(task: Task, float_file: Path, inputs: Path, scorer: Scorer) -> NDArray[Any]:
    """Of the float file, or of the network itself where the run could not score that."""
    if float_file.is_file():
        return scorer.score(float_file, inputs).outputs
    network = plain_form(task.network, task.example, task.output)
    return outputs_of(network.module, np.load(inputs))


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a run says of a file, and of what was compiled from it.

    accuracies: by split, None for one not recorded. local: it is for this machine's CPU.
    """

    name: str
    file: str
    size_bytes: int
    accuracies: Mapping[str, float | None]
    compiled_file: str = ""
    compiled_bytes: int | None = None
    latency_ms: float | None = None
    accelerator: Accelerator | None = None
    local: bool = False


def _claims(
    point: rundir.Measured, primary: str, accelerators: Mapping[str, Accelerator | None], local: Collection[str]
) -> Iterator[_Claim]:
    """The file of the primary device, then those of the others that are files of their own."""
    yield _Claim(
        point.name, point.file, point.size_bytes,
        {"accuracy": point.accuracy, "test_accuracy": point.test_accuracy}, point.compiled_file, point.compiled_bytes,
        point.latency_ms, accelerators[primary], primary in local,
    )  # fmt: skip
    seen = {point.file}
    for device, on in point.devices.items():
        if device != primary and (on.file not in seen or on.compiled_file):
            seen.add(on.file)
            yield _Claim(
                f"{point.name} on {device}", on.file, on.size_bytes, {"accuracy": on.accuracy}, on.compiled_file,
                on.compiled_bytes, on.latency_ms, accelerators[device], device in local,
            )  # fmt: skip


@dataclass(frozen=True)
class _Checker:
    """Holds files against claims. inputs, labels: by split. compiler: release that compiled the run's files."""

    run: Path
    scratch: Path
    scorer: Scorer
    inputs: Mapping[str, Path]
    labels: Mapping[str, NDArray[Any]]
    judge: Judge
    compiler: str
    as_shipped: bool = False

    def check(self, claim: _Claim, policy: Policy | None) -> dict[str, Any]:
        path = self._path(claim.file)
        size = path.stat().st_size
        limited = has_limit(path)
        found: dict[str, Any] = {"size_bytes": size, "limited": limited}
        problems = [] if size == claim.size_bytes else [f"{size} bytes on disk, {claim.size_bytes} recorded"]
        layers = {} if policy is None else dict.fromkeys(policy.layers, "")
        for name, claimed in claim.accuracies.items():
            scored = self.scorer.score(path, self.inputs[name], layers, stock=claim.local and not limited)
            found[name] = self.judge.score(scored.outputs, self.labels[name])
            if self.as_shipped and path.suffix == ".onnx":
                stock = self.scorer.score(path, self.inputs[name], stock=True)
                found.setdefault("as_shipped", {})[name] = self.judge.score(stock.outputs, self.labels[name])
            if claimed is not None and abs(found[name] - claimed) > TOLERANCE:
                problems.append(f"{name} {found[name]:.6f} now, {claimed:.6f} recorded")
        if policy is not None:
            problems += precision_faults(policy, scored.executed)
        if claim.compiled_file:
            problems += self._compiled_faults(claim, path)
        return found | {"ok": not problems, "problem": "; ".join(problems)}

    def _path(self, file: str) -> Path:
        path = self.run / file
        if not path.resolve().is_relative_to(self.run.resolve()) or not path.is_file():
            raise UserError(f"there is no file {file} in the run directory")
        return path

    def _compiled_faults(self, claim: _Claim, source: Path) -> list[str]:
        path = self._path(claim.compiled_file)
        size = path.stat().st_size
        if size != claim.compiled_bytes:
            return [f"{path.name}: {size} bytes on disk, {claim.compiled_bytes} recorded"]
        if claim.accelerator is None or vela_version() != self.compiler:
            return []
        again = compile_tflite(source, self.scratch, claim.accelerator)
        problems = []
        if again.path.read_bytes() != path.read_bytes():
            problems.append(f"{path.name} is not what {PACKAGE} {self.compiler} makes of {source.name}")
        if again.latency_ms != claim.latency_ms:
            problems.append(f"{again.latency_ms} ms now, {claim.latency_ms} recorded")
        return problems
