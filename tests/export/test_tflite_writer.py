"""Files for LiteRT end to end: what torch simulated, ONNX Runtime computes from the other file, step for step."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from needs import needs
from networks import INPUTS, images, settled, signals, traced
from torch import Tensor, nn
from torch.nn import functional

from autocomp.compress.finetune import outputs_of
from autocomp.compress.network import QuantizedNetwork
from autocomp.compress.trace import Traced, trace
from autocomp.errors import UserError
from autocomp.export.score import Scorer, layer_outputs, precision_faults
from autocomp.export.tflite_writer import TfliteWriter
from autocomp.export.writer import OnnxWriter
from autocomp.policy import FLOAT, INT8, LayerPolicy, Policy
from autocomp.tasks.mobilenet import MobileNetV2
from autocomp.tasks.spaces import load_space
from autocomp.tflite.reader import Model, read_model

needs("ai_edge_litert")


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer() as running:
        yield running


def everywhere(source: Traced, *decisions: LayerPolicy, channels: dict[str, int] | None = None) -> Policy:
    """The decisions in turn, layer by layer."""
    layers = source.spec.layers
    return Policy({layer.name: decisions[i % len(decisions)] for i, layer in enumerate(layers)}, channels or {})


@dataclass(frozen=True)
class Compared:
    """Differences between the outputs of two of the three, (n, …), in steps of the output's grid; and the file."""

    litert_torch: np.ndarray
    onnx_torch: np.ndarray
    litert_onnx: np.ndarray
    model: Model

    @property
    def operators(self) -> list[str]:
        return [operator.name for operator in self.model.operators]


def compare(source: Traced, policy: Policy, x: Tensor, scorer: Scorer, folder: Path) -> Compared:
    network = QuantizedNetwork(source, policy, integer_only=True)
    network.quantize([x])
    frozen = network.freeze()
    tflite, onnx, inputs = folder / "model.tflite", folder / "model.onnx", folder / "inputs.npy"
    np.save(inputs, x.numpy())
    assert TfliteWriter(source).write(frozen, tflite) == tflite.stat().st_size
    OnnxWriter(source).write(frozen, onnx)
    scored = scorer.score(tflite, inputs, layer_outputs(source))
    assert precision_faults(policy, scored.executed) == []
    simulated = outputs_of(network.module, x.numpy())
    assert scored.outputs.shape == simulated.shape
    model = read_model(tflite.read_bytes(), "the file")
    assert all(operator.integer for operator in model.operators)
    runs = {"torch": simulated, "litert": scored.outputs, "onnx": scorer.score(onnx, inputs).outputs}
    step = model.outputs[0].scales[0]
    steps = {
        f"{a}_{b}": np.abs(np.round((runs[a] - runs[b]) / step))
        for a, b in (("litert", "torch"), ("onnx", "torch"), ("litert", "onnx"))
    }
    assert len(np.unique(runs["litert"])) > 8  # or agreement would say nothing
    return Compared(model=model, **steps)


#: Networks that int8 TFLite expresses → the largest share of outputs that may be a step off, and by how many steps.
#: LiteRT rounds the factor of a QUANTIZE ahead of a concatenation to 1 / 256; all else differs next to ties alone.
EXPRESSIBLE = {
    networks.Residual: (0.02, 1), networks.Pooled: (0.02, 1), networks.Grouped: (0.02, 1),
    networks.SqueezeExcite: (0.04, 1), networks.Signal: (0.02, 1), networks.Concatenated: (0.3, 1),
    networks.Dense: (0.4, 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", EXPRESSIBLE, ids=lambda kind: kind.__name__)
def test_three_runtimes_compute_the_same(kind, scorer, tmp_path):
    source, x = traced(kind), torch.cat([INPUTS[kind]() * scale for scale in np.linspace(0.2, 1, 8)])
    half = {group.name: group.channels // 2 for group in source.spec.groups if group.prunable}
    mixed = (LayerPolicy(4, "int8"), LayerPolicy(6, "int8", 0.5), LayerPolicy(2, "int8"))
    share, steps = EXPRESSIBLE[kind]
    for policy in (everywhere(source, INT8), everywhere(source, *mixed), everywhere(source, INT8, channels=half)):
        found = compare(source, policy, x, scorer, tmp_path)
        assert found.onnx_torch.max() <= 1
        assert (found.onnx_torch > 0).mean() <= 0.1
        assert found.litert_torch.max() <= steps
        assert (found.litert_torch > 0).mean() <= share


def test_a_network_like_the_default_tasks(scorer, tmp_path):
    spec = load_space("mobilenet_v2").network
    assert spec is not None
    short = spec.model_copy(update={"blocks": spec.blocks[:3], "head_channels": 64})
    source = trace(settled(MobileNetV2(short, 1, 10)), images(2, 1, 32), "mobilenet")
    found = compare(source, everywhere(source, INT8), images(16, 1, 32), scorer, tmp_path)
    # A value next to a tie may round either way, and what follows from it in the layers behind is no longer local.
    assert found.litert_onnx.max() <= 2
    assert (found.litert_onnx > 0).mean() <= 0.1
    assert found.litert_torch.max() <= 3
    assert set(found.operators) == {"PAD", "CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED"}
    assert found.operators.count("PAD") == sum(kernel.stride == 2 for kernel in source.spec.kernels)


class Bordered(nn.Module):
    """An image of 8×8 or 7×7 (behind a first 2×2 window), convolved within many borders, all read by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.odd = nn.Conv2d(3, 3, 2)
        self.odd_ones = nn.ModuleDict({
            "as_same": nn.Conv2d(3, 4, 3, 2, 1),  # SAME pads both sides of an odd image, as torch does
            "dilated": nn.Conv2d(3, 4, 3, 1, 2, dilation=2),
        })  # fmt: skip
        self.even_ones = nn.ModuleDict({
            "before": nn.Conv2d(3, 4, 3, 2, 1),  # SAME would pad behind an even image alone
            "as_same": nn.Conv2d(3, 4, 5, 1, 2),
            "rows": nn.Conv2d(3, 4, (3, 1), 1, (1, 0)),
            "none": nn.Conv2d(3, 4, 3, 1, 0),
            "wide": nn.Conv2d(3, 4, 3, 1, 2),
            "spelt_out_as_same": nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3, 2)),
            "spelt_out": nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(3, 3, 3, 2, 1, groups=3)),
        })  # fmt: skip
        self.head = nn.LazyLinear(12)

    def forward(self, x: Tensor) -> Tensor:
        odd = self.odd(x)
        results = [layer(odd) for layer in self.odd_ones.values()] + [layer(x) for layer in self.even_ones.values()]
        return self.head(torch.cat([result.flatten(1) for result in results], 1))


def initialized(module: nn.Module, x: Tensor) -> nn.Module:
    module(x)  # lazy layers learn their sizes
    return settled(module)


def test_borders_are_zeros_at_the_same_places(scorer, tmp_path):
    x = images(4, 3, 8)
    source = trace(initialized(Bordered(), x), x, "bordered")
    found = compare(source, everywhere(source, INT8), x, scorer, tmp_path)
    assert found.litert_torch.max() <= 2  # zeros at another place would change every output by many steps
    padded = {operator.outputs[0].name for operator in found.model.operators if operator.name == "PAD"}
    assert padded == {"even_ones.before_pad", "even_ones.wide_pad", "even_ones.spelt_out.1_pad"}


class Activated(nn.Module):
    """Each activation behind a convolution of its own, the results side by side."""

    FUNCTIONS = (
        torch.relu, functional.relu6, functional.hardtanh, torch.sigmoid, torch.tanh, functional.hardswish,
        functional.hardsigmoid, functional.silu, functional.leaky_relu,
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in self.FUNCTIONS)

    def forward(self, x: Tensor) -> Tensor:
        parts = [function(layer(x)) for layer, function in zip(self.layers, self.FUNCTIONS, strict=True)]
        return torch.cat([*parts, torch.relu(parts[0] * parts[4])], 1)


def test_activations(scorer, tmp_path):
    x = images(4) * 2
    source = trace(settled(Activated()), x, "activated")
    found = compare(source, everywhere(source, INT8), x, scorer, tmp_path)
    silu = slice(28, 32)  # made of two operators, so rounded once more than torch rounds it
    assert found.litert_torch[:, silu].max() <= 2
    assert np.delete(found.litert_torch, np.r_[silu], axis=1).max() <= 1
    assert {"LOGISTIC", "TANH", "HARD_SWISH", "LEAKY_RELU"} <= set(found.operators)
    assert not {"RELU", "RELU6"} & set(found.operators)  # the grids of their results do the clamping


class Pooling(nn.Module):
    """Every way of pooling values from zero on, all read by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 1)
        self.ways = nn.ModuleList([
            nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(2),
            nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        ])  # fmt: skip
        self.head = nn.LazyLinear(12)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.layer(x))
        return self.head(torch.cat([way(x).flatten(1) for way in self.ways], 1))


def test_pooling(scorer, tmp_path):
    x = images(4, 3, 8)
    source = trace(initialized(Pooling(), x), x, "pooling")
    found = compare(source, everywhere(source, INT8), x, scorer, tmp_path)
    assert found.litert_torch.max() <= 2
    assert found.operators.count("MAX_POOL_2D") == 3
    assert found.operators.count("AVERAGE_POOL_2D") == 3
    assert "QUANTIZE" not in found.operators  # pooling keeps the grid, here up to the concatenation


class Signals(nn.Module):
    """(n, 2, 64) → (n, 4, 16): a signal at the output, averages on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool, self.last = nn.Conv1d(2, 8, 4, 2, 1), nn.AvgPool1d(2), nn.Conv1d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.first(x)))
        return self.last(x * torch.sigmoid(x.mean(2, keepdim=True)))


def test_signals_and_images_at_the_output_are_in_torchs_order(scorer, tmp_path):
    x = torch.cat([signals() * scale for scale in (0.3, 1.0)])
    source = trace(settled(Signals()), x, "signals")
    found = compare(source, everywhere(source, INT8), x, scorer, tmp_path)
    # The mean of two integers is half-way between two every other time: torch then rounds to even, LiteRT away from 0.
    # The convolution behind them adds up three.
    assert found.onnx_torch.max() <= 2 and found.onnx_torch.mean() < 0.5
    assert found.litert_torch.max() <= 2


def frozen(kind: type[nn.Module], *decisions: LayerPolicy, integer_only: bool = True):
    source = traced(kind)
    network = QuantizedNetwork(source, everywhere(source, *decisions), integer_only=integer_only)
    network.quantize([INPUTS[kind]()])
    return source, network.freeze()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (networks.Shuffled, "split: int8 TFLite cannot express the operator split"),
        (networks.Shared, r"again: int8 TFLite cannot express a layer .* \(its weight is shared by several calls\)"),
    ],
)
def test_what_int8_tflite_cannot_express_is_named(kind, message):
    source, network = frozen(kind, INT8)
    with pytest.raises(UserError, match=message):
        TfliteWriter(source).build(network)


def test_recurrent_layers_have_no_integer_form():
    with pytest.raises(UserError, match=r"layer 'lstm.weight_ih_l0' cannot be w8a8: no runtime has an integer kernel"):
        frozen(networks.ConvolutionThenRecurrent, INT8)


def test_a_layer_in_float_is_named():
    source, network = frozen(networks.Pooled, INT8, LayerPolicy(4, "float"), INT8)
    with pytest.raises(UserError, match=r"layer second\.0: the policy says w4, but .* set its activation to int8"):
        TfliteWriter(source).build(network)
    source, network = frozen(networks.Pooled, FLOAT, INT8)
    with pytest.raises(UserError, match=r"layer first\.0"):
        TfliteWriter(source).build(network)


def test_a_network_for_mixed_precision_is_refused():
    source, network = frozen(networks.Pooled, INT8, integer_only=False)
    with pytest.raises(ValueError, match="integer_only"):
        TfliteWriter(source).build(network)


def test_the_same_network_gives_the_same_bytes_and_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    source, network = frozen(networks.Residual, INT8, LayerPolicy(3, "int8", 0.5))
    for name in ("a.tflite", "b.tflite"):
        TfliteWriter(source).write(network, tmp_path / name)
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()

    def full(self, data):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    before = (tmp_path / "a.tflite").read_bytes()
    with pytest.raises(OSError, match="No space"):
        TfliteWriter(source).write(network, tmp_path / "a.tflite")
    assert (tmp_path / "a.tflite").read_bytes() == before
