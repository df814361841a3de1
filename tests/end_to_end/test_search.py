"""Whole searches through the command line, on networks that are trained in seconds."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml

from autocomp.export.scorer import INTEGER_OPERATORS
from autocomp.front import non_dominated
from autocomp.hardware.arithmetic import saturates
from autocomp.journal import Entry, Journal
from autocomp.outcome import Status
from autocomp.policy import Policy

pytestmark = pytest.mark.end_to_end

TASKS = Path(__file__).with_name("toy_tasks.py")
FLOAT_OPERATORS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


def arguments(task: str, out: Path, *more: str) -> list[str]:
    return ["search", "--task", f"{TASKS}:{task}", "--hw", "mobile_arm", "--trials", "6", "--workers", "2",
            "--out", str(out), *more]  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


def autocomp(folder: Path, *words: str, code: int = 0) -> str:
    """Run a command in `folder`; returns its standard output."""
    result = subprocess.run(
        [sys.executable, "-m", "autocomp", *words],
        cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == code, result.stderr[-3000:]
    assert "Traceback" not in result.stderr
    return result.stdout


def journal(run: Path) -> list[Entry]:
    with Journal(run, read_only=True) as entries:
        return list(entries)


def sequence(run: Path) -> list[tuple[Any, ...]]:
    """What must be the same for the same seed: everything but times."""
    return [
        (e.id, e.genes, str(e.outcome.status), e.outcome.accuracy, e.outcome.size_bytes, e.outcome.latency_ms)
        for e in journal(run)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("searches")


@pytest.fixture(scope="module")
def run(folder) -> Path:
    autocomp(folder, *arguments("small", folder / "whole", "--seed", "3"))
    return folder / "whole"


def front_of(run: Path) -> list[dict[str, Any]]:
    with (run / "front.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def optimized_operators(path: Path, folder: Path) -> tuple[list[str], np.ndarray]:
    """Operators of the graph that stock ONNX Runtime executes, and its output on noise."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]
    (value,) = session.get_inputs()
    shape = [size if isinstance(size, int) else 3 for size in value.shape]
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return operators, session.run(None, {value.name: noise})[0]


def check_front(run: Path, folder: Path) -> None:
    """The contract of a run directory, seen from the outside."""
    rows = front_of(run)
    assert rows
    costs = []
    for row in rows:
        path = run / row["file"]
        assert path.resolve().is_relative_to(run.resolve())
        assert path.stat().st_size == int(row["size_bytes"])
        assert float(row["latency_low_ms"]) <= float(row["latency_ms"]) <= float(row["latency_high_ms"])
        assert row["provenance"].strip()
        assert int(row["memory_bytes"]) > 0
        assert 0 <= float(row["extrapolated_share"]) <= 1
        assert 0 <= float(row["test_accuracy"]) <= 1
        costs.append((-float(row["accuracy"]), float(row["size_bytes"]), float(row["latency_ms"])))
        policy = Policy.from_json((run / "policies" / f"{row['id']}.json").read_text())
        operators, output = optimized_operators(path, folder)
        assert np.isfinite(output).all()
        integers = sum(layer.activation == "int8" for layer in policy.layers.values())
        assert sum(operator in INTEGER_OPERATORS for operator in operators) == integers
        assert sum(operator in FLOAT_OPERATORS for operator in operators) == len(policy.layers) - integers
    assert all(non_dominated(costs))
    kept = {Path(row["file"]).name for row in rows} | {"float.onnx", "int8.onnx"}
    assert {path.name for path in (run / "models").iterdir()} == kept
    page = (run / "report.html").read_text()
    assert not re.findall(r"""<(?:script|link|img)[^>]+(?:src|href)=["']?https?://""", page)


def test_a_search_keeps_the_contract_of_a_run_directory(run, folder, tmp_path):
    check_front(run, tmp_path)
    entries = journal(run)
    assert [entry.id for entry in entries] == list(range(6))
    assert {entry.outcome.status for entry in entries} == {Status.COMPLETE}
    for entry in entries:  # bytes were predicted before the trial, and never too few
        assert entry.outcome.size_bytes is not None
        assert 0 <= entry.details["predicted_bytes"] - entry.outcome.size_bytes <= 500
    recorded = yaml.safe_load((run / "run.yaml").read_text())
    assert (recorded["status"], recorded["seed"], recorded["counts"]["complete"]) == ("done", 3, 6)
    assert recorded["float_accuracy"] > 0.9
    assert (folder / "runs" / "latest").resolve() == run.resolve()
    assert max(float(row["accuracy"]) for row in front_of(run)) > 0.9


def test_verify_agrees_and_sees_a_changed_file(run, folder):
    document = json.loads(autocomp(folder, "verify", str(run), "--json"))
    assert document["differ"] == 0
    assert {row["id"] for row in document["files"]} == {"float", "int8", *(row["id"] for row in front_of(run))}
    path = run / front_of(run)[0]["file"]
    content = path.read_bytes()
    try:
        model = onnx.load(path)
        biases = next(i for i in model.graph.initializer if i.name.endswith("h") or i.name.endswith("a"))
        biases.raw_data = bytes(len(biases.raw_data))  # same number of bytes, other numbers
        path.write_bytes(model.SerializeToString(deterministic=True))
        assert path.stat().st_size == len(content)
        changed = json.loads(autocomp(folder, "verify", str(run), "--json", code=1))
        assert [row["id"] for row in changed["files"] if not row["ok"]] == [front_of(run)[0]["id"]]
        assert "accuracy" in changed["files"][[row["ok"] for row in changed["files"]].index(False)]["problem"]
        longer = onnx.load_model_from_string(content)
        longer.doc_string = "the same network, in a few bytes more"
        path.write_bytes(longer.SerializeToString())
        assert "bytes on disk" in autocomp(folder, "verify", str(run), code=1)
    finally:
        path.write_bytes(content)


def test_verify_says_what_files_need_and_what_a_stock_session_gives(run, folder):
    document = json.loads(autocomp(folder, "verify", str(run), "--as-shipped", "--json"))
    (plain,) = [row for row in document["files"] if row["id"] == "int8"]
    assert plain["limited"]
    assert not next(row for row in document["files"] if row["id"] == "float")["limited"]
    for row in document["files"]:
        assert row["as_shipped"].keys() == {"accuracy", "test_accuracy"}
        if not (row["limited"] and saturates()):
            assert all(row["as_shipped"][split] == row[split] for split in row["as_shipped"])
    printed = autocomp(folder, "verify", str(run))
    assert "On x86 without VNNI" in printed
    code = printed[printed.index("    import onnxruntime") :]
    exec("\n".join(line.strip() for line in code.splitlines()[:4]), {})
    assert "as shipped, in a stock session here: accuracy" in autocomp(folder, "verify", str(run), "--as-shipped")


def test_report_as_json_is_one_document(run, folder):
    document = json.loads(autocomp(folder, "report", str(run), "--json"))
    text = json.dumps(document)
    for row in front_of(run):
        assert str(int(row["size_bytes"])) in text


def test_killed_and_resumed_it_walks_the_same_sequence(run, folder):
    # The same seed in another process, killed without warning after two outcomes, resumed: nothing may differ.
    again = folder / "killed"
    command = [sys.executable, "-m", "autocomp", *arguments("small", again, "--seed", "3")]
    with (folder / "killed.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=log, stderr=log)
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            if (again / "journal.sqlite").is_file() and len(_count(again)) >= 2:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.05)
        process.wait(timeout=60)
    assert process.returncode == -signal.SIGKILL, (folder / "killed.log").read_text()[-2000:]
    before = sequence(again)
    assert 2 <= len(before) < 6
    autocomp(folder, "resume", str(again))
    assert set(before) <= set(sequence(again))
    assert sequence(again) == sequence(run)
    assert [{**row} for row in front_of(again)] == [{**row} for row in front_of(run)]
    for row in front_of(run):
        assert (again / row["file"]).read_bytes() == (run / row["file"]).read_bytes()


def _count(run: Path) -> list[Entry]:
    try:
        return journal(run)
    except Exception:  # noqa: BLE001  (it is being made this moment)
        return []


@pytest.mark.parametrize(
    ("task", "left"),
    [
        # Channels that meet in a sum are one group, named by the first layer that makes them.
        ("unforeseen", {("stem.0", "prune"): "grouped.0 is a grouped convolution", ("head", "prune"): "output"}),
        ("signal", {("head", "prune"): "output"}),
    ],
)
def test_a_network_that_nobody_designed_for(task, left, folder, tmp_path):
    out = folder / task
    autocomp(folder, *arguments(task, out))
    check_front(out, tmp_path)
    assert {entry.outcome.status for entry in journal(out)} == {Status.COMPLETE}
    recorded = yaml.safe_load((out / "run.yaml").read_text())
    listed = {(item["name"], item["what"]): item["reason"] for item in recorded["left_alone"]}
    assert listed.keys() == left.keys()
    assert all(reason in listed[item] for item, reason in left.items())
    autocomp(folder, "verify", str(out))
