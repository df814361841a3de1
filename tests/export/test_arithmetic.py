"""Files compute what their device computes, on processors that saturate products of uint8 and int8 as well."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from needs import needs_tool
from networks import settled
from roofline import Roofline
from torch import nn

from autocomp.compress.network import CompressedNetwork, QuantizedNetwork
from autocomp.compress.trace import Traced, trace
from autocomp.export.limits import has_limit
from autocomp.export.score import runs_integers
from autocomp.export.scorer import answer
from autocomp.export.size import FileSizes
from autocomp.export.writer import OnnxWriter
from autocomp.hardware import arithmetic
from autocomp.hardware.arithmetic import EXACT_OPTION, loading_code
from autocomp.hardware.cost import CostModel
from autocomp.hardware.kernel_models import kernel_model
from autocomp.hardware.profile import find_profile
from autocomp.kernel import Kernel
from autocomp.policy import LayerPolicy, Policy
from autocomp.space import SearchSpace, SpaceOptions

#: An x86 processor with AVX2 and without VNNI, emulated: what it computes is what a real one does.
SATURATING = ("qemu-x86_64", "-cpu", "Haswell")


def saturating(module: str, *requests: dict) -> list[str]:
    """What `python -m module` prints on a processor without VNNI, a line for each JSON request."""
    needs_tool(SATURATING[0], "qemu-user")
    process = subprocess.run(
        [*SATURATING, sys.executable, "-m", module], input="".join(json.dumps(r) + "\n" for r in requests), text=True,
        capture_output=True, check=True, env=dict(os.environ, OMP_NUM_THREADS="1"), timeout=300,
    )  # fmt: skip
    return process.stdout.splitlines()


@pytest.fixture(scope="module")
def source() -> Traced:
    """Wide sums of large weights: conv 3×3, depthwise, 1×1, linear on many positions and at one."""
    body = nn.Sequential(
        nn.Conv2d(8, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.ReLU(),
        nn.Conv2d(64, 32, 1), nn.ReLU(), nn.Flatten(2), nn.Linear(36, 24), nn.ReLU(), nn.Flatten(), nn.Linear(768, 10),
    )  # fmt: skip
    settled(body)
    with torch.no_grad():
        for parameter in body.parameters():
            # Weights that are alike and large on their grid, so that every pair of products saturates; layers average.
            like = parameter.abs() / parameter.abs().max() * 0.2 + 0.8
            parameter.copy_(like / parameter[0].numel() if parameter.ndim > 1 else 0.01 * like)
    return trace(body, examples(2), "positive")


def examples(n: int) -> torch.Tensor:
    return torch.rand(n, 8, 6, 6, generator=torch.Generator().manual_seed(0))


def compressed(source: Traced, decision: LayerPolicy) -> tuple[CompressedNetwork, np.ndarray]:
    """The network with every layer so quantized, and what torch simulates of it."""
    network = QuantizedNetwork(source, Policy({layer.name: decision for layer in source.spec.layers}))
    network.quantize([examples(32)])
    frozen = network.freeze()
    with torch.no_grad():
        return frozen, network.module(examples(16)).numpy()


@pytest.fixture(scope="module")
def runs(source: Traced, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Each file's outputs here and on a saturating processor, exactly and in a stock session, and torch's."""
    folder = tmp_path_factory.mktemp("arithmetic")
    np.save(folder / "x.npy", examples(16).numpy())
    found: dict[str, dict] = {}
    requests = []
    for name, decision, unsigned in (
        ("int8", LayerPolicy(8, "int8"), False),
        ("int8 unsigned", LayerPolicy(8, "int8"), True),
        ("7 bits", LayerPolicy(7, "int8"), False),
        ("codebook", LayerPolicy(8, "int8", clusters=16), False),
        ("codebook unsigned", LayerPolicy(8, "int8", clusters=16), True),
        ("4 bits unsigned, sparse", LayerPolicy(4, "int8", 0.5), True),
    ):
        frozen, simulated = compressed(source, decision)
        path = folder / f"{name}.onnx"
        OnnxWriter(source, unsigned_weights=unsigned).write(frozen, path)
        found[name] = {"path": path, "simulated": simulated}
        for where in ("native", "saturating"):
            for stock in (False, True):
                outputs = folder / f"{name}-{where}-{stock}.npy"
                request = {
                    "model": str(path), "inputs": str(folder / "x.npy"), "outputs": str(outputs), "stock": stock,
                    "layers": {layer.name: "" for layer in source.spec.layers},
                }  # fmt: skip
                found[name][where, stock] = outputs
                if where == "native":
                    assert answer(request)["ok"]
                else:
                    requests.append(request)
    replies = [json.loads(line) for line in saturating("autocomp.export.scorer", *requests)]
    assert all(reply["ok"] for reply in replies), replies
    assert all(runs_integers(operator) for reply in replies for operator in reply["executed"].values()), replies
    return {n: {k: np.load(v) if isinstance(k, tuple) else v for k, v in run.items()} for n, run in found.items()}


def test_the_probe_finds_a_saturating_processor():
    assert saturating("autocomp.hardware.arithmetic") == ["saturates"]


def test_scores_are_the_same_on_both_kinds_of_processor(runs):
    for name, run in runs.items():
        np.testing.assert_array_equal(run["saturating", False], run["native", False], err_msg=name)


def test_exact_scores_are_what_was_simulated(runs):
    for name, run in runs.items():
        largest = np.abs(run["simulated"]).max()
        assert np.abs(run["native", False] - run["simulated"]).max() < 0.01 * largest, name


def test_a_stock_session_saturates_exactly_where_the_file_says_so(runs):
    for name, run in runs.items():
        error = np.abs(run["saturating", True] - run["saturating", False]).max() / np.abs(run["simulated"]).max()
        assert has_limit(run["path"]) == (error > 0), name
    assert has_limit(runs["int8"]["path"]), "this network was made to saturate"
    assert np.abs(runs["int8"]["saturating", True] / runs["int8"]["simulated"] - 1).max() > 0.1, "what a user would see"


def test_files_for_a_saturating_processor_are_exact_in_a_stock_session_there(runs):
    for name in ("int8 unsigned", "codebook unsigned", "4 bits unsigned, sparse", "7 bits"):
        np.testing.assert_array_equal(runs[name]["saturating", True], runs[name]["native", False], err_msg=name)


def test_a_file_without_a_limit_has_no_metadata(runs):
    for name, run in runs.items():
        entries = {p.key: p.value for p in onnx.load(run["path"]).metadata_props}
        expected = {"x86_without_vnni": "=".join(EXACT_OPTION)} if name in ("int8", "codebook") else {}
        assert entries == expected, name


def test_the_code_that_verify_prints_loads_a_file_exactly(runs):
    scope: dict = {}
    exec(loading_code(str(runs["int8"]["path"])), scope)
    session = scope["session"]
    (outputs,) = session.run(None, {session.get_inputs()[0].name: examples(16).numpy()})
    np.testing.assert_array_equal(outputs, runs["int8"]["native", False])


@pytest.mark.parametrize("unsigned", [False, True])
def test_sizes_are_predicted_for_both_kinds_of_weights(source, tmp_path, unsigned):
    writer = OnnxWriter(source, unsigned_weights=unsigned)
    space = SearchSpace.build(source.spec, SpaceOptions())
    cost = CostModel(space, Roofline(), FileSizes(writer))
    for decision in (LayerPolicy(8, "int8"), LayerPolicy(4, "int8"), LayerPolicy(8, "int8", clusters=16)):
        frozen, _ = compressed(source, decision)
        size = writer.write(frozen, tmp_path / "model.onnx")
        predicted = float(cost.of_policy(frozen.policy).size_bytes[0])
        assert size <= predicted <= 1.02 * size


def test_kernels_are_timed_with_the_weights_that_files_have(tmp_path):
    for op, shape in (("conv", (16, 16)), ("linear", (1, 1)), ("linear", (1, 4))):
        kernel = Kernel(op, "int8", 64, 32, *shape)
        for unsigned, kind in ((False, onnx.TensorProto.INT8), (True, onnx.TensorProto.UINT8)):
            model = onnx.load_model_from_string(kernel_model(kernel, unsigned_weights=unsigned))
            kinds = {i.name: i.data_type for i in model.graph.initializer}
            assert kinds["w0"] == kinds["w0_zero"] == kind


def test_this_machines_profile_follows_its_arithmetic(monkeypatch):
    from autocomp.hardware import host, profile

    for saturates in (False, True):
        for module in (profile, host):
            monkeypatch.setattr(module, "saturates", lambda found=saturates: found)
        found = find_profile("host_cpu")
        assert found.unsigned_weights == saturates
        assert (arithmetic.SATURATION_NOTE in found.provenance_note) == saturates
        assert ("uint8weights" in host.host_table_path(Path("tables")).name) == saturates
        assert not find_profile("mobile_arm").unsigned_weights
