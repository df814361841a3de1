"""`autocomp verify`: every figure of a front that can be checked, checked again from the files."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from autocomp import rundir
from autocomp.bench import answers_of, default_metric
from autocomp.display import QuietDisplay
from autocomp.errors import RunError, UserError
from autocomp.export.score import Scorer, precision_faults
from autocomp.policy import Policy
from autocomp.settings import SearchSettings
from autocomp.tasks import load_task

#: Outputs of the same file on the same runtime repeat exactly; another CPU rounds differently in a few examples.
TOLERANCE = 1e-9


def verify_run(run: Path) -> list[dict[str, Any]]:
    """Re-open each file of a run's front and references in a fresh process, recount its bytes, score it again.

    Returns a row per file: id, ok, problem, size_bytes, accuracy, test_accuracy.
    """
    settings = SearchSettings.of_run(run)
    data = rundir.read_run(run)
    task = load_task(settings.request, QuietDisplay())
    rows = []
    with tempfile.TemporaryDirectory(prefix="autocomp-verify-") as folder, Scorer() as scorer:
        splits = {"accuracy": task.validation, "test_accuracy": task.test}
        inputs = {name: Path(folder, f"{name}.npy") for name in splits}
        for name, split in splits.items():
            np.save(inputs[name], split.inputs)
        labels = {name: split.labels for name, split in splits.items()}
        for name in splits:
            if labels[name] is None:
                labels[name] = answers_of(scorer.score(run / rundir.MODELS / "float.onnx", inputs[name]).outputs)
        for point in (*data.references.values(), *data.front):
            row: dict[str, Any] = {"id": point.name, "ok": True, "problem": ""}
            try:
                row |= _check(run, point, scorer, inputs, labels, task.metric, data.policies.get(point.name))
            except (RunError, UserError, OSError) as error:
                row |= {"ok": False, "problem": str(error)}
            rows.append(row)
    return rows


def _check(
    run: Path, point: rundir.Measured, scorer: Scorer, inputs: dict[str, Path], labels: dict[str, Any], metric: Any,
    policy: Policy | None,
) -> dict[str, Any]:  # fmt: skip
    path = run / point.file
    if not path.resolve().is_relative_to(run.resolve()) or not path.is_file():
        raise UserError(f"there is no file {point.file} in the run directory")
    size = path.stat().st_size
    found: dict[str, Any] = {"size_bytes": size}
    problems = [] if size == point.size_bytes else [f"{size} bytes on disk, {point.size_bytes} recorded"]
    layers = {} if policy is None else dict.fromkeys(policy.layers, "")
    for name in ("accuracy", "test_accuracy"):
        scored = scorer.score(path, inputs[name], layers)
        judge = metric or default_metric(scored.outputs, np.asarray(labels[name]))
        found[name] = float(judge(scored.outputs, labels[name]))
        claimed = getattr(point, name)
        if claimed is not None and abs(found[name] - claimed) > TOLERANCE:
            problems.append(f"{name} {found[name]:.6f} now, {claimed:.6f} recorded")
    if policy is not None:
        problems += precision_faults(policy, scored.executed)
    return found | {"ok": not problems, "problem": "; ".join(problems)}
