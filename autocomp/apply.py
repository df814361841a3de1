"""One policy applied to a task's network, without a search."""

import json
import tempfile
from pathlib import Path
from typing import Any

from autocomp.compress.network import QuantizedNetwork
from autocomp.compress.prune import check_policy
from autocomp.display import QuietDisplay
from autocomp.errors import UserError
from autocomp.policy import Policy
from autocomp.prepare import prepare
from autocomp.results import TestSplit, memory_bytes, milliseconds
from autocomp.run_folder import task_label
from autocomp.settings import SearchSettings
from autocomp.trial import TrialRunner


def compress(policy_path: Path, settings: SearchSettings) -> Path:
    """Apply one policy file: prune, quantize, finetune, export, verify. Returns the folder with model and figures."""
    policy = Policy.from_json(policy_path.read_text(encoding="utf-8"), str(policy_path))
    out = settings.out if settings.out is not None else Path(f"{policy_path.stem}-{task_label(settings.task)}")
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
        latency, low, high = milliseconds(cost)
        figures = {
            "accuracy": result.accuracy, "test_accuracy": held_out, "size_bytes": result.size_bytes,
            "latency_ms": latency, "latency_low_ms": low, "latency_high_ms": high, "memory_bytes": memory_bytes(cost),
            "provenance": prepared.provenance,
        }  # fmt: skip
        (out / "figures.json").write_text(json.dumps(figures, indent=1))
        (out / "policy.json").write_text(policy.to_json())
    return out


def _frozen_float(runner: TrialRunner) -> Any:
    return QuantizedNetwork(runner.traced, Policy()).freeze()
