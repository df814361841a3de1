"""GPUs at the command line: one line on a machine without one; the whole way where one is at hand (a fake one)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import H100, gpu_at_hand

from autocomp import cli
from autocomp.hardware.cuda import gpu as gpu_module
from autocomp.hardware.kernel_models import kernel_model
from autocomp.hardware.latencies import at_hand
from autocomp.hardware.profile import find_profile
from autocomp.kernel import Kernel

TASK = f"{Path(__file__).parents[1] / 'end_to_end' / 'toy_tasks.py'}:small"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No driver is loaded, wherever the tests run."""
    monkeypatch.setattr(gpu_module, "_DRIVER_FILES", (str(tmp_path / "none"),))


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error, of a command that ends with exit code 2."""
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    return line


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["gpu_h100", "host_gpu"])
@pytest.mark.parametrize(
    "command",
    [
        "profile NAME", "profile NAME --space mobilenet_v2 --minutes 1", "search --hw NAME", "estimate --hw NAME",
        "hw check NAME", "hw compare mobile_arm NAME", "hw show NAME --plot latency.html",
    ],
)  # fmt: skip
def test_without_a_gpu_each_verb_answers_in_one_line(
    command: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any) -> None:
        raise AssertionError("a task was loaded before")

    monkeypatch.setattr("autocomp.prepare.load_task", never)
    line = refusal(command.replace("NAME", name).split(), capsys)
    assert line == (
        f"autocomp: {name} ships without a table, is measured on the GPU at hand, and this machine has no CUDA GPU "
        "(no NVIDIA driver is loaded): run this where there is one, or choose another device (autocomp hw list)"
    )
    assert not list(Path().glob("runs/*"))


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_it_is_listed_and_shown_as_one_without_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["hw", "list"]) == 0
    listed = " ".join(capsys.readouterr().out.split())
    assert cli.main(["hw", "show", "gpu_h100"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (listed, shown):
        assert "gpu_h100 ships without a table: autocomp profile gpu_h100 fills one on a machine with an H100." in text


def test_a_gpu_of_another_kind_is_no_h100(capsys: pytest.CaptureFixture[str]) -> None:
    with gpu_at_hand(replace(H100, name="NVIDIA A10")):
        line = refusal(["profile", "gpu_h100"], capsys)
    assert "'H100', and this machine's is 'NVIDIA A10': take host_gpu" in line


def test_a_file_of_integer_kernels_is_nothing_for_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    Path("int8.onnx").write_bytes(kernel_model(Kernel("conv", "int8", 8, 8, 8, 8)))
    with gpu_at_hand():
        assert cli.main(["estimate", "int8.onnx", "--hw", "host_gpu"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "autocomp: host_gpu does not run conv 8→8 @8x8 int8: there is no int8 kernel for conv"


def test_no_bundle_measures_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert "a bundle measures a CPU" in refusal(
        ["profile", "bundle", "host_gpu", "--space", "mobilenet_v2", "--out", "b"], capsys
    )


def test_with_a_gpu_a_table_is_filled_shown_used_and_checked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the device is real: the networks, their kernels, the table, the profile that is written, the estimate."""
    monkeypatch.setattr("autocomp.check.BASES", (("mobilenet_v1", 32, 0.25),))

    def answer(*words: str) -> Any:
        assert cli.main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    with gpu_at_hand():
        filled = answer("profile", "gpu_h100", "--task", TASK, "--minutes", "1", "--out", "copy", "--name", "mine")
        shown = answer("hw", "show", "gpu_h100")
        estimated = answer("estimate", "--hw", "gpu_h100", "--task", TASK)
        checked = answer("hw", "check", "gpu_h100", "--networks", "2")
    assert filled["measured"] == filled["reachable"] > 0
    precisions = {entry["precision"] for entry in shown["coverage"]}
    assert precisions == {"fp32", "tf32", "fp16", "bf16"}  # its linear layers are of one position
    assert shown["rows"] == filled["rows"]
    # Only float files are known to run on a GPU, so plain int8 is the float network once more.
    float_version, int8_version = estimated["networks"]
    assert float_version["latency_ms"] == int8_version["latency_ms"] > 0
    assert [network["us"] for network in checked["each"]] == [1000.0, 1000.0]  # what the fake device takes for any
    assert [network["int8_kernels"] for network in checked["each"]] == [0, 0]
    assert checked["processor"] == H100.name and checked["runtime"] == f"onnxruntime {H100.onnxruntime}"
    copy = find_profile("copy/mine.yaml")
    assert len(copy.latencies) == filled["rows"]
    assert "NVIDIA H100 80GB HBM3, driver 570.86.15, CUDA 13.0, torch 2.14.1" in copy.provenance.text
    assert copy.provenance.date is not None
    assert at_hand(copy) is copy  # a table like any other: no GPU is asked for
