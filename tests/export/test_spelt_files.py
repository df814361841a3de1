"""Files of networks that spell their layers unusually: the network in float, their own simulation in integers."""

import re
from functools import cache

import networks
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import traced as ordinary
from roofline import Roofline
from spellings import INPUTS, NamedAsTheFile, made, views

from autocomp.compress.network import QuantizedNetwork
from autocomp.compress.normalize import RESERVED
from autocomp.compress.trace import Traced, trace
from autocomp.export.size import FileSizes
from autocomp.export.writer import OnnxWriter
from autocomp.hardware.cost import CostModel
from autocomp.policy import INT8, LayerPolicy, Policy, clustered
from autocomp.space import SearchSpace, SpaceOptions

KINDS = list(INPUTS)


@cache
def traced(kind) -> Traced:
    return trace(made(kind), INPUTS[kind](), kind.__name__)


def everywhere(source: Traced, decision: LayerPolicy, channels: dict[str, int] | None = None) -> Policy:
    return Policy({layer.name: decision for layer in source.spec.layers}, channels or {})


def half(source: Traced) -> dict[str, int]:
    return {group.name: group.channels // 2 for group in source.spec.groups if group.prunable}


def run(model: onnx.ModelProto, x: torch.Tensor) -> np.ndarray:
    """What the runtime computes, one thread, integers without saturation, in batches of 3 and of 1."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: part.numpy()})[0] for part in (x[:3], x[3:4])])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_float_file_is_the_network(kind):
    source, x = traced(kind), INPUTS[kind]()
    network = QuantizedNetwork(source, Policy())
    with torch.no_grad():
        expected = made(kind)(x).numpy()
        assert np.abs(source.graph(x).numpy() - expected).max() <= 1e-4 * np.abs(expected).max()
    got = run(OnnxWriter(source).build(network.freeze()), x)
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_compressed_file_is_its_simulation(kind):
    source, x = traced(kind), INPUTS[kind]()
    writer = OnnxWriter(source)
    cost = CostModel(SearchSpace.build(source.spec, SpaceOptions()), Roofline(), FileSizes(writer))
    for policy in (
        everywhere(source, INT8),
        everywhere(source, LayerPolicy(4, "int8")),
        Policy({}, half(source)),
        everywhere(source, INT8, half(source)),
    ):
        network = QuantizedNetwork(source, policy)
        network.quantize([x])
        model = writer.build(network.freeze())
        onnx.checker.check_model(model, full_check=True)
        with torch.no_grad():
            simulated = network.module(x).numpy()
        step = (simulated.max() - simulated.min()) / 255
        difference = np.abs(run(model, x) - simulated)
        assert difference.max() <= 2 * step
        assert difference.mean() <= 0.1 * step
        assert model.ByteSize() <= cost.of_policy(policy).size_bytes[0]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_layer_has_a_node_of_its_own_and_every_name_is_given_once(kind):
    source = traced(kind)
    network = QuantizedNetwork(source, everywhere(source, INT8))
    network.quantize([INPUTS[kind]()])
    graph = OnnxWriter(source).build(network.freeze()).graph
    for names in (
        [node.name for node in graph.node if node.name],
        [v.name for v in (*graph.input, *graph.initializer)] + [name for node in graph.node for name in node.output],
    ):
        assert len(set(names)) == len(names)
    layers = {node.name: node.op_type for node in graph.node if node.name in source.spec.layer_by_name}
    assert set(layers) == set(source.spec.layer_by_name)
    assert set(layers.values()) <= {"Conv", "Gemm", "MatMul"}


def test_the_names_of_the_file_are_the_reserved_ones():
    # An input is called apart from these: a name that the writer gives and that is not among them may collide.
    source = ordinary(networks.SqueezeExcite)
    for decision in (INT8, LayerPolicy(3, "int8", 0.5), LayerPolicy(4, "float"), clustered(4).with_zeros(0.5)):
        writer = OnnxWriter(source)
        network = QuantizedNetwork(source, everywhere(source, decision))
        network.quantize([networks.images()])
        model = writer.build(network.freeze())
        before = {n for node in writer.template.graph.node for n in node.output} | {
            v.name for v in (*writer.template.graph.initializer, *writer.template.graph.input)
        }
        after = {name for node in model.graph.node for name in node.output} | {v.name for v in model.graph.initializer}
        assert after - before
        assert [name for name in after - before if not RESERVED.fullmatch(name)] == []


def test_an_input_that_is_called_as_a_tensor_of_the_file_gets_another_name():
    source = traced(NamedAsTheFile)
    assert source.input_name == "q0_"
    assert set(source.spec.layer_by_name) == {"n1", "n0", "conv2d", "w0"}


def test_a_pruned_reshape_says_the_channels_that_are_left():
    source = traced(views)
    network = QuantizedNetwork(source, Policy({}, {"three": 3}))
    graph = OnnxWriter(source).build(network.freeze()).graph
    sizes = {i.name: onnx.numpy_helper.to_array(i).tolist() for i in graph.initializer if re.fullmatch(r"r\d+", i.name)}
    assert [-1, 3, 16, 16] in sizes.values()
    assert [-1, 8, 16, 16] not in sizes.values()
