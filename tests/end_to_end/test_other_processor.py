"""The built-in network on a processor without VNNI, emulated: the same scores, and exact files in a stock session."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from needs import needs_tool

from autocomp.artifact import Target
from autocomp.bench import Bench
from autocomp.display import QuietDisplay
from autocomp.export.limits import has_limit
from autocomp.hardware.profile import find_profile
from autocomp.policy import INT8, Policy
from autocomp.tasks import TaskRequest, load_task
from autocomp.trial import TrialRunner

IMAGES = 64


def score(files: dict[str, tuple[Path, bool]], inputs: Path, folder: Path, *runner: str) -> dict[str, np.ndarray]:
    """Outputs of each (file, whether in a stock session) by a scoring process that `runner` starts."""
    requests = [
        {"model": str(path), "inputs": str(inputs), "outputs": str(folder / f"{name}.npy"), "stock": stock}
        for name, (path, stock) in files.items()
    ]
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    process = subprocess.run(
        [*runner, sys.executable, "-m", "autocomp.export.scorer"], input=lines, text=True,
        capture_output=True, check=True, env=dict(os.environ, OMP_NUM_THREADS="1"), timeout=500,
    )  # fmt: skip
    assert all(json.loads(line)["ok"] for line in process.stdout.splitlines()), process.stdout
    return {name: np.load(folder / f"{name}.npy") for name in files}


@pytest.mark.end_to_end
def test_the_int8_reference_scores_the_same_and_a_host_file_is_exact(tmp_path):
    emulator = needs_tool("qemu-x86_64", "qemu-user")
    bench = Bench.make(load_task(TaskRequest("mnist"), QuietDisplay()), tmp_path)
    policy = Policy({layer.name: INT8 for layer in bench.traced.spec.layers})
    files = {}
    for name, unsigned in (("arm", False), ("host", True)):
        target = Target(name, unsigned_weights=unsigned)
        with TrialRunner(bench, [target]) as runner:
            files[name] = runner.run(policy, 0, tmp_path / name, epochs=0).files[".onnx"]
    assert has_limit(files["arm"])
    assert not has_limit(files["host"])
    np.save(tmp_path / "few.npy", bench.validation_inputs[:IMAGES])
    both = {f"{name}-{stock}": (path, stock) for name, path in files.items() for stock in (False, True)}
    native = score(both, tmp_path / "few.npy", tmp_path)
    other = score(both, tmp_path / "few.npy", tmp_path, emulator, "-cpu", "Haswell")
    labels = np.asarray(bench.validation_labels[:IMAGES])
    exact = bench.judge.score(native["arm-False"], labels)
    assert bench.judge.score(other["arm-False"], labels) == exact
    np.testing.assert_array_equal(other["host-True"], other["host-False"])
    assert bench.judge.score(other["host-True"], labels) == bench.judge.score(native["host-True"], labels) == exact
    # What a user would meet without the option that the file asks for: other outputs.
    assert np.abs(other["arm-True"] - other["arm-False"]).max() > 0.01 * np.abs(other["arm-False"]).max()
    assert find_profile("mobile_arm").unsigned_weights is False
