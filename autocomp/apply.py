"""One policy applied to a task's network, without a search."""

import json
import tempfile
from pathlib import Path

from autocomp.compress.network import QuantizedNetwork
from autocomp.compress.prune import check_policy
from autocomp.devices import Figures
from autocomp.display import QuietDisplay
from autocomp.errors import UserError
from autocomp.export.writer import OnnxWriter
from autocomp.policy import Policy
from autocomp.prepare import prepare
from autocomp.results import TestSplit
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
        with TrialRunner(prepared.bench, prepared.targets) as runner:
            reference = Path(folder, "float.onnx")
            OnnxWriter(runner.traced).write(QuantizedNetwork(runner.traced, Policy()).freeze(), reference)
            result = runner.run(policy, settings.seed, out / "model", settings.epochs)
            model = result.files[prepared.targets[0].suffix]
            held_out = TestSplit(prepared, Path(folder)).accuracy(model, runner.scorer, reference)
        made = result.primary
        found = Figures.of(prepared.cost.of_policy(policy)).settled(made)
        figures = {
            "accuracy": made.accuracy, "test_accuracy": held_out, "size_bytes": made.size_bytes,
            "latency_ms": found.latency_ms, "latency_low_ms": found.latency_low_ms,
            "latency_high_ms": found.latency_high_ms, "memory_bytes": round(found.memory_bytes),
            "provenance": prepared.provenance,
        }  # fmt: skip
        if made.compiled_bytes is not None:
            figures |= {"compiled_bytes": made.compiled_bytes, "cpu_operators": [*map(list, made.cpu_operators)]}
        (out / "figures.json").write_text(json.dumps(figures, indent=1))
        (out / "policy.json").write_text(policy.to_json())
    return out
