"""LiteRT in a process of its own: what is damaged is told in one line, and costs no more than that process."""

import importlib.util
import os
import signal

import numpy as np
import pytest
from needs import needs

from autocomp.errors import MissingPackage, RunError, UserError
from autocomp.export.litert_scorer import dequantized, quantized
from autocomp.export.score import Scorer
from autocomp.tflite.builder import Affine, ModelBuilder
from autocomp.worker import Worker, WorkerDied

needs("ai_edge_litert")

X, Y = Affine(0.05, -20), Affine(0.1, 4)


def model() -> bytes:
    """(n, 3, 4, 5) → (n, 2, 4, 5): twice the first channel, and the sum of the others."""
    builder = ModelBuilder()
    x = builder.input("input", (1, 4, 5, 3), X)
    weight = np.array([[2, 0, 0], [0, 1, 1]], np.int8).reshape(2, 1, 1, 3)
    scales = np.ones(2, np.float32)
    return builder.finish([builder.conv("layer", x, weight, scales, np.zeros(2, np.int32), Y)])


@pytest.fixture
def files(tmp_path):
    """(a sound model, inputs in a .npy, the inputs)."""
    x = np.random.default_rng(0).uniform(-2, 2, (10, 3, 4, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "sound.tflite").write_bytes(model())
    return tmp_path / "sound.tflite", tmp_path / "x.npy", x


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_values_come_back_as_torch_orders_them_whatever_the_batch(batch, files):
    path, inputs, x = files
    with Scorer() as scorer:
        scored = scorer.score(path, inputs, {"layer": "", "other": ""}, batch)
    on_grid = dequantized(quantized(x, X.scale, X.zero_point), X.scale, X.zero_point)
    expected = np.stack([2 * on_grid[:, 0], on_grid[:, 1] + on_grid[:, 2]], 1)
    np.testing.assert_allclose(scored.outputs, expected, atol=Y.scale * 0.51)
    assert scored.executed == {"layer": "CONV_2D (int8)", "other": ""}


def test_quantized_inputs_are_rounded_to_the_nearest_and_kept_in_range():
    values = np.array([-100.0, -0.02, 0.0, 0.02, 0.03, 100.0], np.float32)
    assert quantized(values, 0.05, -20).tolist() == [-128, -20, -20, -20, -19, 127]
    np.testing.assert_allclose(dequantized(np.array([-20, -19, 127], np.int8), 0.05, -20), [0, 0.05, 7.35], rtol=1e-6)


def damaged(data: bytes) -> dict[str, bytes]:
    flipped = bytearray(data)
    flipped[data.index(b"TFL3")] ^= 0xFF
    return {
        "nothing": b"", "text": b"not a model" * 20, "cut": data[: len(data) // 2], "mark": bytes(flipped),
        "zeros": data[:8] + bytes(len(data) - 8),
    }  # fmt: skip


def test_damaged_files_are_told_apart_and_the_next_one_is_scored(files):
    path, inputs, _ = files
    with Scorer() as scorer:
        for what, data in damaged(path.read_bytes()).items():
            broken = path.with_name(f"{what}.tflite")
            broken.write_bytes(data)
            with pytest.raises(RunError, match=rf"^{what}\.tflite does not run in LiteRT: [^\n]+$"):
                scorer.score(broken, inputs)
        assert scorer.score(path, inputs).outputs.shape == (10, 2, 4, 5)


def test_any_flipped_bytes_end_in_an_answer_or_in_one_line(files):
    path, inputs, _ = files
    sound, rng = path.read_bytes(), np.random.default_rng(1)
    answers, errors = 0, []
    with Scorer() as scorer:
        for trial in range(150):
            data = bytearray(sound)
            for place in rng.integers(8, len(data), 1 + trial % 4):
                data[place] = rng.integers(0, 256)
            path.write_bytes(data)
            try:
                scorer.score(path, inputs)
                answers += 1
            except RunError as error:
                errors.append(str(error))
    assert answers > 10 and len(errors) > 50  # both kinds were there
    assert not any("\n" in error for error in errors)


def test_a_float_model_is_refused(files):
    path, inputs, _ = files
    builder = ModelBuilder()
    x = builder.input("input", (1, 4, 5, 3), X)
    builder._graph.tensors[x.index].type = 0  # FLOAT32
    path.write_bytes(builder.finish([builder.quantize("y", x, Y)]))
    with Scorer() as scorer, pytest.raises(RunError, match="expected one int8 input with one scale, got FLOAT32"):
        scorer.score(path, inputs)


def test_files_that_nobody_runs_and_a_runtime_that_is_missing(files, monkeypatch):
    path, inputs, _ = files
    with Scorer() as scorer:
        with pytest.raises(UserError, match=r"model\.h5: expected a file that ends in \.onnx or \.tflite"):
            scorer.score(path.with_name("model.h5"), inputs)
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name == "ai_edge_litert" else found(name, *rest)
        )
        with pytest.raises(MissingPackage, match=r"running \.tflite files .* pip install 'autocomp\[npu\]'"):
            scorer.score(path, inputs)


#: A module that answers, crashes or sleeps as it is told.
OBEDIENT = """
import json, os, sys, time
for line in sys.stdin:
    request = json.loads(line)
    if "signal" in request: os.kill(os.getpid(), request["signal"])
    if "exit" in request: os._exit(request["exit"])
    time.sleep(request.get("sleep", 0))
    print(json.dumps({"pid": os.getpid()}), flush=True)
"""


def test_a_worker_that_died_is_started_again(tmp_path, monkeypatch):
    (tmp_path / "obedient.py").write_text(OBEDIENT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = Worker("obedient")
    first = worker.ask({})["pid"]
    assert worker.ask({})["pid"] == first != os.getpid()
    for request, reason in (
        ({"signal": int(signal.SIGSEGV)}, "signal 11"),
        ({"exit": 3}, "exit code 3"),
    ):
        with pytest.raises(WorkerDied) as death:
            worker.ask(request)
        assert death.value.reason == reason
        assert worker.ask({})["pid"] != first
    with pytest.raises(WorkerDied, match=r"no answer within 0\.2 s"):
        worker.ask({"sleep": 60}, timeout_s=0.2)
    worker.close()
    worker.close()  # harmless
