"""A whole search for an NPU: every point is a .tflite that LiteRT runs and Vela compiles, and says so truly."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from needs import needs

needs("ethosu.vela")
interpreter = needs("ai_edge_litert.interpreter")

pytestmark = pytest.mark.end_to_end

TASKS = Path(__file__).with_name("toy_tasks.py")
BUDGET_BYTES = 12_000


def autocomp(folder: Path, *words: str, code: int = 0) -> tuple[str, str]:
    """Run a command in `folder`; returns its standard output and what it says on standard error."""
    result = subprocess.run(
        [sys.executable, "-m", "autocomp", *words], cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == code, result.stderr[-3000:]
    assert "Traceback" not in result.stderr
    return result.stdout, result.stderr


def search(task: str, out: Path, *more: str) -> list[str]:
    return ["search", "--task", f"{TASKS}:{task}", "--hw", "npu_ethos_u55", "--trials", "5", "--workers", "2",
            "--out", str(out), *more]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("npu")


@pytest.fixture(scope="module")
def run(folder) -> Path:
    _, said = autocomp(folder, *search("small", folder / "run", "--budget", f"{BUDGET_BYTES}B", "--seed", "1"))
    assert "XNNPACK" not in said  # a runtime's own chatter is none of a user's business
    return folder / "run"


def front_of(run: Path) -> list[dict[str, Any]]:
    with (run / "front.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def top1(model: Path, inputs: np.ndarray, labels: np.ndarray) -> float:
    """Of LiteRT alone, with nothing of this package: quantize, invoke, compare."""
    session = interpreter.Interpreter(model_path=str(model), num_threads=1)
    session.allocate_tensors()
    (source,), (result,) = session.get_input_details(), session.get_output_details()
    scale, zero = source["quantization"]
    hits = 0
    for x, label in zip(inputs, labels, strict=True):
        levels = np.clip(np.round(np.moveaxis(x, 0, -1) / np.float32(scale)) + zero, -128, 127)
        session.set_tensor(source["index"], levels.astype(np.int8)[None])
        session.invoke()
        hits += int(session.get_tensor(result["index"]).argmax() == label)
    return hits / len(labels)


def test_the_front_is_what_the_devices_runtime_and_compiler_say(run):
    sys.path.insert(0, str(TASKS.parent))
    try:
        import toy_tasks
    finally:
        sys.path.remove(str(TASKS.parent))
    inputs, labels = toy_tasks._images(300, 2)  # the task's validation split
    rows = front_of(run)
    assert rows
    for row in rows:
        file, compiled = run / row["file"], run / row["compiled_file"]
        assert file.suffix == ".tflite"
        assert file.stat().st_size == int(row["size_bytes"])
        assert compiled.stat().st_size == int(row["compiled_bytes"]) <= BUDGET_BYTES
        assert float(row["latency_low_ms"]) <= float(row["latency_ms"]) <= float(row["latency_high_ms"])
        assert row["provenance"].startswith("vendor-model")
        assert row["cpu_operators"] == ""
        assert top1(file, inputs, labels) == pytest.approx(float(row["accuracy"]), abs=1e-12)


def test_the_latency_is_velas_own(run, tmp_path):
    row = front_of(run)[0]
    subprocess.run(
        [sys.executable, "-m", "ethosu.vela", str(run / row["file"]), "--output-dir", str(tmp_path),
         "--accelerator-config", "ethos-u55-256", "--config", "Arm/vela.ini", "--system-config",
         "Ethos_U55_High_End_Embedded", "--memory-mode", "Shared_Sram"],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (summary,) = tmp_path.glob("*_summary_*.csv")
    with summary.open(newline="") as handle:
        seconds = float(next(csv.DictReader(handle))["inference_time"])
    assert float(row["latency_ms"]) == pytest.approx(1000 * seconds, rel=1e-9)


def test_float_is_told_apart_from_what_the_device_executes(run):
    references = {r["name"]: r for r in json.loads((run / "references.json").read_text())}
    assert references["float"]["file"].endswith(".onnx")
    assert references["float"]["latency_ms"] is None
    assert references["int8"]["file"].endswith(".tflite")
    assert references["int8"]["compiled_bytes"] > 0


def test_verify_compiles_again_and_sees_what_was_tampered_with(run, folder):
    document = json.loads(autocomp(folder, "verify", str(run), "--json")[0])
    assert document["differ"] == 0
    row = front_of(run)[0]
    other = folder / "tampered"
    for name, change in (("file", b"\0" * 64), ("compiled_file", b"\1" * 16)):
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(run, other)
        path = other / row[name]
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + len(change)] = change
        path.write_bytes(bytes(content))
        found = json.loads(autocomp(folder, "verify", str(other), "--json", code=1)[0])
        wrong = [r for r in found["files"] if not r["ok"]]
        assert [r["id"] for r in wrong] == [row["id"]]
        assert "\n" not in wrong[0]["problem"]
    (other / row["file"]).write_bytes(b"TFL3 but not a model")
    assert "1 files" not in autocomp(folder, "verify", str(other), code=1)[0]


def test_report_and_table_show_compiled_bytes(run, folder):
    shown, _ = autocomp(folder, "report", str(run))
    assert "what the compiler makes of the file" in " ".join(shown.split())
    assert "vendor-model" in shown
    assert "the device has no floating point" in " ".join((run / "report.html").read_text().split())


def test_a_layer_that_tflite_cannot_express_is_refused_before_there_is_a_run(folder):
    _, complaint = autocomp(folder, *search("unforeseen", folder / "refused"), code=2)
    last = complaint.strip().splitlines()[-1]
    assert "layer grouped.0" in last
    assert not (folder / "refused").exists()
