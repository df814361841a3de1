"""`estimate` and `hw compare` of a real task: what they print is what the cost model says."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocomp import cli
from autocomp.policy import INT8, LayerPolicy, Policy
from autocomp.resources import data_folder

TASK = """
import torch
from torch import nn
from autocomp import Task

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 1, 1)
        self.conv = nn.Conv2d(8, 16, 3, 1, 1)
        self.grouped = nn.Conv2d(16, 16, 3, 1, 1, groups=4)
        self.head = nn.Linear(16 * 36, 4)

    def forward(self, x):
        x = torch.relu(self.conv(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.grouped(x)).flatten(1))

def task():
    torch.manual_seed(0)
    return Task(Net(), train=(torch.randn(40, 1, 6, 6), torch.arange(40) % 4), name="tiny")
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("mine.py").write_text(TASK)
    # A second device whose table is read: measuring this machine would take a test's time.
    folder = data_folder("hw_profiles")
    Path("mobile_arm.csv").write_bytes((folder / "mobile_arm.csv").read_bytes())
    Path("other.yaml").write_text((folder / "mobile_arm.yaml").read_text().replace("name: mobile_arm", "name: other"))


def printed(arguments: str, capsys):
    assert cli.main([*arguments.split(), "--task", "mine.py:task", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_float_and_int8_of_a_task(capsys):
    document = printed("estimate --hw mobile_arm", capsys)
    plain, int8 = document["networks"]
    assert (plain["name"], int8["name"]) == ("float", "int8")
    assert plain["macs"] == 36 * (8 * 9 + 8 * 16 * 9 + 16 * 4 * 9) + 16 * 36 * 4
    assert plain["size_bytes"] > int8["size_bytes"] > 0
    assert plain["memory_bytes"] == 4 * 36 * (1 + 16 + 16)  # the input, held throughout, and two maps of 16 channels
    assert document["gain"] == pytest.approx(plain["latency_ms"] / int8["latency_ms"])
    # The grouped convolution has no integer kernel: it stays float, and what it reads is converted.
    limits = {kernel["layer"]: kernel["limit"] for kernel in int8["kernels"]}
    kernels = {kernel["layer"]: kernel["kernel"] for kernel in int8["kernels"]}
    assert kernels["conv"].endswith("int8") and kernels["grouped"].endswith("fp32")
    assert limits[""] == "conversion"


def test_a_policy_is_estimated_as_it_is_compared(capsys):
    Path("half.json").write_text(Policy({"conv": INT8, "head": LayerPolicy(4)}, {"stem": 4}).to_json())
    (alone,) = printed("estimate half.json --hw mobile_arm", capsys)["networks"]
    assert alone["name"] == "half.json"
    compared = printed("hw compare mobile_arm other.yaml half.json", capsys)
    assert [device["hw"] for device in compared["devices"]] == ["mobile_arm", "other"]
    plain, half = compared["devices"][0]["networks"]
    assert half["latency_ms"] == pytest.approx(alone["latency_ms"])
    assert plain["name"] == "float" and half["macs"] < plain["macs"]
    assert {row["layer"].partition(":")[0] for row in compared["layers"]} >= {"conv", "grouped", "head"}
    assert all(set(row["latency_ms"]) == {"mobile_arm", "other"} for row in compared["layers"])


def test_strict_refuses_what_is_extrapolated(capsys):
    assert printed("estimate --hw mobile_arm", capsys)["networks"][0]["extrapolated_share"] > 0
    assert cli.main(["estimate", "--hw", "mobile_arm", "--task", "mine.py:task", "--strict"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("autocomp: --strict: layer head: linear 576→4 fp32 lies outside what was measured (out_chan")


@pytest.mark.parametrize("verb", ["estimate --hw mobile_arm", "hw compare mobile_arm other.yaml"])
def test_what_a_device_cannot_execute_is_an_error_that_names_the_layer(verb, capsys):
    Path("bad.json").write_text(Policy({"grouped": INT8}).to_json())
    assert cli.main([*verb.split(), "bad.json", "--task", "mine.py:task"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("autocomp: bad.json: layer grouped: w8a8: A grouped integer convolution")


@pytest.fixture
def quantized_file():
    """One integer convolution between a quantization and a dequantization, as any tool would write it."""
    rng = np.random.default_rng(0)
    constants = {
        "scale": np.float32(0.02),
        "zero": np.uint8(128),
        "weight_q": rng.integers(-127, 128, (32, 16, 3, 3)).astype(np.int8),
        "weight_scale": np.float32(0.01),
        "weight_zero": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x_d"]),
        helper.make_node("DequantizeLinear", ["weight_q", "weight_scale", "weight_zero"], ["weight"]),
        helper.make_node("Conv", ["x_d", "weight"], ["y_f"], name="only", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["y_f", "scale", "zero"], ["y_q"]),
        helper.make_node("DequantizeLinear", ["y_q", "scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16, 14, 14])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32, 14, 14])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), "one.onnx")


def of_file(arguments, capsys):
    assert cli.main([*arguments.split(), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_file_is_estimated_kernel_by_kernel(quantized_file, capsys):
    (network,) = of_file("estimate one.onnx --hw mobile_arm", capsys)["networks"]
    assert [kernel["kernel"] for kernel in network["kernels"]] == [
        "quantize 16→16 @14x14 int8", "conv 3x3 16→32 @14x14 int8", "dequantize 32→32 @14x14 int8",
    ]  # fmt: skip
    assert [kernel["limit"] for kernel in network["kernels"]] == ["conversion", "compute", "conversion"]
    assert network["macs"] == 16 * 32 * 9 * 14 * 14
    assert network["size_bytes"] == Path("one.onnx").stat().st_size
    assert network["latency_ms"] == pytest.approx(sum(kernel["latency_ms"] for kernel in network["kernels"]))


def test_a_file_is_compared_with_its_float_twin(quantized_file, capsys):
    for device in of_file("hw compare mobile_arm other.yaml one.onnx", capsys)["devices"]:
        twin, file = device["networks"]
        assert [kernel["kernel"] for kernel in twin["kernels"]] == ["conv 3x3 16→32 @14x14 fp32"]
        assert (twin["name"], file["name"]) == ("float", "one.onnx")
        assert device["gain"] == pytest.approx(twin["latency_ms"] / file["latency_ms"])


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_a_file_that_is_no_model_is_one_line(content, quantized_file, capsys):
    whole = Path("one.onnx").read_bytes()
    Path("bad.onnx").write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert cli.main(["estimate", "bad.onnx", "--hw", "mobile_arm"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("autocomp: bad.onnx: ONNX Runtime does not load it")
