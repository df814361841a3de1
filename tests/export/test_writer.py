"""Files end to end: every precision and packing is written, loaded by stock ONNX Runtime, and is what was simulated."""

import networks
import numpy as np
import onnx
import pytest
import torch
from networks import INPUTS, images, settled, traced
from roofline import Roofline

from autocomp.compress.finetune import outputs_of
from autocomp.compress.network import CompressedNetwork, QuantizedNetwork
from autocomp.compress.trace import Traced, trace
from autocomp.errors import RunError
from autocomp.export.score import Scorer, layer_outputs, precision_faults
from autocomp.export.size import FileSizes
from autocomp.export.writer import OnnxWriter
from autocomp.hardware.cost import CostModel
from autocomp.network import WEIGHT_ONLY, pattern_fault
from autocomp.policy import FLOAT, INT8, LayerPolicy, Policy, Sparsity, Zeros, clustered
from autocomp.space import SearchSpace, SpaceOptions
from autocomp.tasks.mobilenet import MobileNetV2
from autocomp.tasks.spaces import load_space

BITS = (2, 3, 4, 5, 6, 7, 8)
KINDS = list(INPUTS)


@pytest.fixture(scope="module")
def scorer():
    with Scorer() as running:
        yield running


def layers(source: Traced) -> list[str]:
    return [layer.name for layer in source.spec.layers]


def fitting(source: Traced, name: str, decision: LayerPolicy) -> LayerPolicy:
    """A decision for a layer: of one that no runtime computes on integers, the bits of its weights and the zeros."""
    if source.spec.layer_by_name[name].op not in WEIGHT_ONLY or decision.activation == "float":
        return decision
    return LayerPolicy(decision.weight_bits, "float").with_zeros(decision.zeros)


def everywhere(source: Traced, decision: LayerPolicy, channels: dict[str, int] | None = None) -> Policy:
    return Policy({name: fitting(source, name, decision) for name in layers(source)}, channels or {})


def taking_turns(source: Traced, *decisions: LayerPolicy) -> Policy:
    return Policy({n: fitting(source, n, decisions[i % len(decisions)]) for i, n in enumerate(layers(source))})


def with_zeros(source: Traced, decision: LayerPolicy, zeros: Sparsity, otherwise: Zeros = 0.0) -> Policy:
    """Zeros in a pattern in the layers that have the shape for it."""
    return Policy(
        {
            layer.name: fitting(
                source,
                layer.name,
                decision.with_zeros(zeros if pattern_fault(layer, zeros.pattern) is None else otherwise),
            )
            for layer in source.spec.layers
        }
    )


def compressed(source: Traced, policy: Policy, x: torch.Tensor) -> tuple[QuantizedNetwork, CompressedNetwork]:
    network = QuantizedNetwork(source, policy)
    network.quantize([x])
    return network, network.freeze()


def check_file(source: Traced, policy: Policy, x: torch.Tensor, scorer: Scorer, folder) -> int:
    """Write, load, run: outputs as simulated, every layer executed as decided. Returns the file's bytes."""
    path, inputs = folder / "model.onnx", folder / "inputs.npy"
    np.save(inputs, x.numpy())
    network, frozen = compressed(source, policy, x)
    size = OnnxWriter(source).write(frozen, path)
    assert size == path.stat().st_size
    onnx.checker.check_model(onnx.load(path), full_check=True)
    scored = scorer.score(path, inputs, layer_outputs(source))
    assert precision_faults(policy, scored.executed) == []
    simulated = outputs_of(network.module, x.numpy())
    # Integers are the same on both sides. Behind a float layer a value between two codes may round either way, and
    # is then one step off wherever it is read: rare, so the mean hardly moves.
    step = (simulated.max() - simulated.min()) / 255
    difference = np.abs(scored.outputs - simulated)
    assert difference.max() <= 2 * step
    assert difference.mean() <= 0.05 * step
    return size


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("bits", BITS)
def test_every_bit_width_dense_and_sparse(bits, sparsity, scorer, tmp_path):
    source = traced(networks.Residual)
    check_file(source, everywhere(source, LayerPolicy(bits, "int8", sparsity)), images(16), scorer, tmp_path)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, Sparsity(0.75, "block")], ids=str)
@pytest.mark.parametrize("clusters", [2, 8, 32])
def test_every_kind_of_codebook_dense_and_sparse(clusters, sparsity, scorer, tmp_path):
    source = traced(networks.Residual)
    check_file(source, everywhere(source, clustered(clusters).with_zeros(sparsity)), images(16), scorer, tmp_path)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_codebooks_and_zeros_in_patterns_in_every_kind_of_network(kind, scorer, tmp_path):
    source, x = traced(kind), torch.cat([INPUTS[kind]()] * 4)
    check_file(source, with_zeros(source, clustered(16), Sparsity(0.5, "2:4")), x, scorer, tmp_path)


@pytest.mark.parametrize("sparsity", [0.0, 0.75])
@pytest.mark.parametrize("bits", [2, 5, 8, None])
def test_packed_weights_of_float_layers(bits, sparsity, scorer, tmp_path):
    source = traced(networks.Residual)
    check_file(source, everywhere(source, LayerPolicy(bits, "float", sparsity)), images(16), scorer, tmp_path)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("floating", [FLOAT, LayerPolicy(4, "float"), LayerPolicy(None, "float", 0.75)], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_float_layers_between_integer_ones(kind, floating, first, scorer, tmp_path):
    # Between DequantizeLinear and QuantizeLinear the runtime would quantize a float layer's weights by itself.
    source = traced(kind)
    turns = (INT8, floating) if first == 0 else (floating, INT8)
    check_file(source, taking_turns(source, *turns), torch.cat([INPUTS[kind]()] * 4), scorer, tmp_path)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_network_in_float_and_in_integers(kind, scorer, tmp_path):
    source, x = traced(kind), torch.cat([INPUTS[kind]()] * 4)
    sizes = [
        check_file(source, everywhere(source, decision), x, scorer, tmp_path)
        for decision in (FLOAT, INT8, LayerPolicy(4, "int8"))
    ]
    if sum(layer.weights() for layer in source.spec.layers) > 4000:  # below, graph and scales are most of a file
        assert sizes[2] < sizes[1] < 0.75 * sizes[0]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_pruned_networks(kind, scorer, tmp_path):
    source, x = traced(kind), torch.cat([INPUTS[kind]()] * 4)
    half = {group.name: group.channels // 2 for group in source.spec.groups if group.prunable}
    mixed = taking_turns(source, LayerPolicy(3, "int8", 0.5), LayerPolicy(8, "float"), INT8)
    for policy in (Policy({}, half), Policy(mixed.layers, half)):
        size = check_file(source, policy, x, scorer, tmp_path)
        assert not half or size < check_file(source, Policy(policy.layers), x, scorer, tmp_path)


def test_fewer_bits_make_smaller_files(tmp_path):
    source = mobilenet()
    x = images(2, 1, 32)
    sizes = []
    for bits in (2, 3, 4, 6, 8):
        _, frozen = compressed(source, everywhere(source, LayerPolicy(bits, "int8")), x)
        sizes.append(OnnxWriter(source).write(frozen, tmp_path / f"{bits}.onnx"))
    assert sizes == sorted(sizes)
    assert sizes[2] / sizes[4] == pytest.approx(0.5, abs=0.04)  # half the bits, half the bytes
    assert sizes[0] / sizes[4] == pytest.approx(0.25, abs=0.04)


def test_the_same_network_gives_the_same_bytes(tmp_path):
    source = traced(networks.Residual)
    policy = taking_turns(source, LayerPolicy(3, "int8", 0.5), FLOAT, INT8)
    for name in ("a", "b"):
        _, frozen = compressed(source, policy, images(8))
        OnnxWriter(source).write(frozen, tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    source = traced(networks.Pooled)
    _, frozen = compressed(source, Policy(), images())
    (tmp_path / "model.onnx").write_bytes(b"what was there before")

    def full(self, target):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space"):
        OnnxWriter(source).write(frozen, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == b"what was there before"


def test_a_decision_that_was_not_executed_is_named():
    policy = Policy({"a": INT8, "b": FLOAT, "c": INT8, "d": LayerPolicy(4, "float")})
    faults = precision_faults(policy, {"a": "Conv", "b": "QLinearConv", "c": "QGemm", "d": "FusedConv", "e": ""})
    assert faults == [
        "layer a was to run as int8 and runs as Conv",
        "layer b was to run as float and runs as QLinearConv",
        "layer e is not in the graph that the runtime executes",
    ]


def test_the_check_sees_a_layer_of_another_precision(scorer, tmp_path):
    source, x = traced(networks.Pooled), images(8)
    np.save(tmp_path / "x.npy", x.numpy())
    written = everywhere(source, INT8)
    _, frozen = compressed(source, written, x)
    OnnxWriter(source).write(frozen, tmp_path / "model.onnx")
    executed = scorer.score(tmp_path / "model.onnx", tmp_path / "x.npy", layer_outputs(source)).executed
    claimed = Policy({**written.layers, "second.0": FLOAT})
    assert precision_faults(claimed, executed) == ["layer second.0 was to run as float and runs as QLinearConv"]


def test_a_broken_file_is_a_run_error_and_the_scorer_lives_on(scorer, tmp_path):
    source = traced(networks.Pooled)
    np.save(tmp_path / "x.npy", images(2).numpy())
    _, frozen = compressed(source, Policy(), images())
    OnnxWriter(source).write(frozen, tmp_path / "good.onnx")
    content = (tmp_path / "good.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match=r"cut.onnx does not run in ONNX Runtime"):
        scorer.score(tmp_path / "cut.onnx", tmp_path / "x.npy")
    assert scorer.score(tmp_path / "good.onnx", tmp_path / "x.npy").outputs.shape == (2, 10)


# --- predicted bytes ----------------------------------------------------------------------------------------------


_MOBILENET: list[Traced] = []


def mobilenet() -> Traced:
    """MobileNetV2 as the built-in task has it, untrained; traced once."""
    if not _MOBILENET:
        spec = load_space("mobilenet_v2").network
        assert spec is not None
        _MOBILENET.append(trace(settled(MobileNetV2(spec, 1, 10)), images(2, 1, 32), "mobilenet_v2"))
    return _MOBILENET[0]


def policies(source: Traced) -> dict[str, Policy]:
    half = {g.name: max(8, g.channels // 16 * 8) for g in source.spec.groups if g.prunable}
    turns = (LayerPolicy(2, "int8", 0.9), LayerPolicy(3, "int8"), LayerPolicy(8, "float"), FLOAT, INT8)
    return {
        "float": Policy(),
        "int8": everywhere(source, INT8),
        "4 bits": everywhere(source, LayerPolicy(4, "int8")),
        "7 bits": everywhere(source, LayerPolicy(7, "int8")),
        "2 bits sparse": everywhere(source, LayerPolicy(2, "int8", 0.75)),
        "weights only": everywhere(source, LayerPolicy(4, "float")),
        "sparse float": everywhere(source, LayerPolicy(None, "float", 0.75)),
        "taking turns": taking_turns(source, INT8, FLOAT),
        "pruned": everywhere(source, LayerPolicy(4, "int8", 0.5), half),
        "pruned float": Policy({}, half),
        "clustered": everywhere(source, clustered(16)),
        "clustered, pruned and sparse": everywhere(source, clustered(8).with_zeros(0.5), half),
        "blocks of zeros": with_zeros(source, LayerPolicy(6, "int8"), Sparsity(0.75, "block")),
        "2:4": with_zeros(source, clustered(4), Sparsity(0.5, "2:4")),
        "a bit of all": Policy(taking_turns(source, *turns).layers, half),
    }


def predicted_and_written(source: Traced, policy: Policy, x: torch.Tensor, path) -> tuple[float, int]:
    writer = OnnxWriter(source)
    cost = CostModel(SearchSpace.build(source.spec, SpaceOptions()), Roofline(), FileSizes(writer))
    _, frozen = compressed(source, policy, x)
    return float(cost.of_policy(policy).size_bytes[0]), writer.write(frozen, path)


@pytest.mark.parametrize("name", policies(traced(networks.Pooled)))
def test_predicted_bytes_of_a_real_network(name, tmp_path):
    source = mobilenet()
    predicted, written = predicted_and_written(source, policies(source)[name], images(2, 1, 32), tmp_path / "m.onnx")
    assert written <= predicted <= written * 1.005  # never too few: the file of a feasible candidate fits


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_predicted_bytes_of_small_networks(kind, tmp_path):
    source = traced(kind)
    for policy in policies(source).values():
        predicted, written = predicted_and_written(source, policy, INPUTS[kind](), tmp_path / "m.onnx")
        assert written <= predicted <= written + max(500, 0.06 * written)
