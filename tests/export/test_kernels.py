"""Kernels read from the graph that the runtime executes: they are those that the plan of a policy counts on."""

from collections import Counter
from pathlib import Path

import networks
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from test_writer import INPUTS, INT8, compressed, everywhere, taking_turns, traced

from autocomp.errors import UserError
from autocomp.export.kernels import file_kernels
from autocomp.export.writer import OnnxWriter
from autocomp.hardware.cost import network_kernels
from autocomp.kernel import Kernel
from autocomp.policy import FLOAT, Policy

KINDS = (networks.Residual, networks.Dense)


@pytest.mark.parametrize("name", ["float", "int8", "turns", "other turns", "pruned"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_file_executes_what_the_plan_says(kind: type, name: str, tmp_path: Path) -> None:
    source = traced(kind)
    policy = {
        "float": everywhere(source, FLOAT), "int8": everywhere(source, INT8),
        "turns": taking_turns(source, INT8, FLOAT), "other turns": taking_turns(source, FLOAT, FLOAT, INT8),
        "pruned": taking_turns(source, INT8, INT8, FLOAT),
    }[name]  # fmt: skip
    if name == "pruned":
        kept = {g.name: g.channels - 3 for g in source.spec.groups if g.prunable and g.channels > 3}
        policy = Policy(policy.layers, kept)
    _, frozen = compressed(source, policy, torch.cat([INPUTS[kind]()] * 4))
    OnnxWriter(source).write(frozen, tmp_path / "model.onnx")
    executed = Counter(kernel for kernel, _ in file_kernels(tmp_path / "model.onnx"))
    assert executed == Counter(kernel for kernel, _ in network_kernels(source.spec, policy))


def test_a_model_of_somebody_else(tmp_path: Path) -> None:
    weights = [
        helper.make_tensor("w", TensorProto.FLOAT, (8, 3, 3, 3), [0.1] * 216),
        helper.make_tensor("v", TensorProto.FLOAT, (8 * 16 * 16, 10), [0.1] * 20480),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="first", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Sigmoid", ["c"], ["s"], name="gate"),
        helper.make_node("Flatten", ["s"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"], name="last"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, 32, 32))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 10))]
    graph = helper.make_graph(nodes, "theirs", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    found = [kernel for kernel, _ in file_kernels(tmp_path / "m.onnx")]
    assert Kernel("conv", "fp32", 3, 8, 32, 32, 3, 3, 2) in found
    assert Kernel("linear", "fp32", 2048, 10, 1, 1) in found
    assert len(found) <= 3  # the runtime may fuse the sigmoid into the convolution


def test_files_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no model at all")
    with pytest.raises(UserError, match=r"no\.onnx: ONNX Runtime does not load it"):
        file_kernels(tmp_path / "no.onnx")
    with pytest.raises(UserError, match="missing"):
        file_kernels(tmp_path / "missing.onnx")
