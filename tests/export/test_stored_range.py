"""Whatever scales weights, biases and inputs have: files hold numbers within their types, and run as simulated."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import images, settled
from torch import nn

from autocomp.compress.finetune import outputs_of
from autocomp.compress.network import CompressedNetwork, QuantizedNetwork
from autocomp.compress.quantize import activation_range
from autocomp.compress.stored import LARGEST_BIAS, bias_levels, representable_scales, scales_with_room
from autocomp.compress.trace import Traced, trace
from autocomp.export.writer import OnnxWriter
from autocomp.policy import INT8, LayerPolicy, Policy, clustered


def everywhere(source: Traced, decision: LayerPolicy) -> Policy:
    return Policy({layer.name: decision for layer in source.spec.layers})


def exact_session(model: bytes) -> onnxruntime.InferenceSession:
    """Integer arithmetic that does not saturate, on any processor."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])


def file_and_simulation(
    source: Traced, policy: Policy, x: torch.Tensor
) -> tuple[CompressedNetwork, np.ndarray, np.ndarray]:
    """The frozen network, what its file computes and what the torch graph does."""
    network = QuantizedNetwork(source, policy)
    network.quantize([x])
    frozen = network.freeze()
    model = OnnxWriter(source).build(frozen)
    check_stored_values(model)
    session = exact_session(model.SerializeToString())
    (outputs,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return frozen, outputs, outputs_of(network.module, x.numpy())


def check_stored_values(model: onnx.ModelProto) -> None:
    for stored in model.graph.initializer:
        values = onnx.numpy_helper.to_array(stored).astype(np.float64)
        assert np.isfinite(values).all(), f"{stored.name} holds what is no number: {values}"
        if stored.name.startswith("s") or stored.name.endswith("b"):
            assert (values > 0).all(), f"the scale {stored.name} is not positive: {values}"


def check(source: Traced, policy: Policy, x: torch.Tensor, steps: float = 8) -> None:
    """The file equals its simulation, and both the float network within `steps` of 8-bit rounding."""
    _, outputs, simulated = file_and_simulation(source, policy, x)
    with torch.no_grad():
        wanted = source.graph(x).numpy()
    span = np.abs(wanted).max()
    assert np.isfinite(outputs).all()
    # A code of the last hidden tensor may round the other way; two of them, and the output's own.
    assert np.abs(outputs - simulated).max() <= 2 * span / 255
    assert np.abs(outputs - simulated).mean() <= 0.1 * span / 255
    assert np.abs(outputs - wanted).max() <= steps * span / 255


# --- the numbers themselves -----------------------------------------------------------------------------------------

exponents = st.floats(-12, 12)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(exponents, exponents), min_size=1, max_size=12), st.floats(-30, 30), st.integers(0, 99))
def test_every_bias_fits_into_int32_at_every_scale(channels, input_exponent, seed):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((len(channels), 9)) * [[10.0**w] for w, _ in channels]
    weight[rng.random(len(channels)) < 0.2] = 0  # some channels have no weights at all
    bias = (rng.standard_normal(len(channels)) * [10.0**b for _, b in channels]).astype(np.float32)
    weight, input_scale = weight.astype(np.float32), float(np.float32(10.0**input_exponent))
    scale = np.maximum(np.abs(weight).max(1) / 127, np.float32(1e-30))
    _, _, stored = representable_scales(scales_with_room(scale, weight, bias, input_scale))
    unit = stored.astype(np.float64) * input_scale
    assert (unit > 1e-38).all() and (unit < 1e38).all()
    for exact, share in ((True, 0.0), (False, 2.0**-11)):
        levels, real = bias_levels(bias, stored, input_scale, exact=exact)
        assert (np.abs(levels.astype(np.int64)) <= LARGEST_BIAS * (1 + 2.0**-11)).all()
        np.testing.assert_array_less(np.abs(real - bias), np.abs(bias) * (share + 1e-6) + 0.51 * unit + 1e-37)
    empty = ~weight.any(axis=1) & (np.abs(bias) > 1e-20)
    # Nothing but the bias counts where there are no weights: it is kept, unless it is as nothing beside its neighbours.
    assert (unit[empty] <= np.maximum(np.abs(bias[empty]) * 2.0**-26, unit.max() * 1e-30)).all()


@settings(max_examples=100, deadline=None)
@given(exponents, exponents, st.integers(0, 99))
def test_a_bias_of_half_precision_is_what_the_file_reads_back(exponent, unit, seed):
    bias = np.random.default_rng(seed).standard_normal(8).astype(np.float32) * np.float32(10.0**exponent)
    scale = scales_with_room(np.full(8, 10.0**unit, np.float32), np.ones((8, 1), np.float32), bias, 0.02)
    levels, _ = bias_levels(bias, scale, 0.02, exact=False)
    stored = (levels / 2**15).astype(np.float16)
    assert np.isfinite(stored).all()
    np.testing.assert_array_equal(np.rint(stored.astype(np.float32) * np.float32(2**15)).astype(np.int32), levels)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e-3, 1e12, 1e30])
def test_an_activation_range_suits_every_scale(size):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    plain, scaled = activation_range(x), activation_range(x * size)
    assert scaled.zero_point == plain.zero_point
    assert scaled.scale == pytest.approx(plain.scale * size, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-30, 7.0, -7.0, 3e38, -3e38])
def test_a_constant_activation_has_a_range(value):
    chosen = activation_range(torch.full((10,), value))
    assert np.isfinite(chosen.scale) and np.float32(chosen.scale) > 1e-38
    assert 0 <= chosen.zero_point <= 255
    quantized = torch.fake_quantize_per_tensor_affine(torch.tensor([value]), chosen.scale, chosen.zero_point, 0, 255)
    assert float(quantized) == pytest.approx(value, rel=0.01, abs=1e-37)


# --- networks -------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """conv → ReLU → conv → ReLU → mean → linear: all layers have biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


class Prices(nn.Module):
    """(n, 8) → (n, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(8, 32), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.hidden(x).relu())


@cache
def traced(kind: type[nn.Module]) -> Traced:
    return trace(settled(kind()), images() if kind is Plain else rows(), kind.__name__)


@contextmanager
def parameters_of(kind: type[nn.Module]) -> Iterator[tuple[Traced, dict[str, torch.Tensor]]]:
    """A traced network, and its parameters by name, to be changed in place; they are restored at the end."""
    source = traced(kind)
    parameters = dict(source.graph.named_parameters())
    kept = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        with torch.no_grad():
            yield source, parameters
    finally:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(kept[name])


def rows(n: int = 64) -> torch.Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("spread", [40_000.0, 100.0, 10.0])
@pytest.mark.parametrize("decision", [INT8, LayerPolicy(4, "int8"), LayerPolicy(8, "float"), clustered(16)], ids=str)
def test_a_regression_far_from_zero_keeps_its_spread(decision, spread):
    with parameters_of(Prices) as (source, p):
        p["head.weight"].mul_(torch.tensor([[spread]] * 3))
        p["head.bias"].copy_(torch.tensor([180_000.0] * 3))
        _, outputs, simulated = file_and_simulation(source, everywhere(source, decision), rows())
        wanted = source.graph(rows()).numpy()
    error = np.square(outputs - wanted).mean(0) / wanted.var(0)
    assert (error < (0.05 if decision.stored_bits == 4 else 0.001)).all()
    np.testing.assert_allclose(outputs, simulated, atol=0.02 * np.ptp(wanted))


def test_outputs_in_different_units_keep_theirs():
    # A price, a share and a length in metres: twelve decades between the rows of one weight.
    units = torch.tensor([1e6, 1e-6, 1.0])
    with parameters_of(Prices) as (source, p):
        p["head.weight"].mul_(units[:, None])
        p["head.bias"].mul_(units)
        wanted = source.graph(rows()).numpy()
        for decision in (INT8, LayerPolicy(8, "float")):
            _, outputs, _ = file_and_simulation(source, everywhere(source, decision), rows())
            assert (np.square(outputs - wanted).mean(0) / wanted.var(0) < 0.001).all()


@pytest.mark.parametrize("decision", [INT8, LayerPolicy(2, "int8"), clustered(4), LayerPolicy(8, "float")], ids=str)
@pytest.mark.parametrize("weights", [0.0, 1e-30, 1e-9])
def test_a_layer_whose_bias_is_worth_more_than_its_weights(weights, decision):
    with parameters_of(Plain) as (source, p):
        p["second.weight"].mul_(weights)
        p["second.bias"].copy_(torch.linspace(-5, 5, 8))
        check(source, Policy({"second": decision}), images(), steps=2)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([INT8, LayerPolicy(4, "int8", 0.5), clustered(16), LayerPolicy(8, "float")]),
    exponents, st.lists(exponents, min_size=8, max_size=8), st.floats(-3, 3), st.floats(-3, 3),
)  # fmt: skip
def test_networks_of_every_scale_run_as_simulated(decision, inputs, channels, first, second):
    """inputs, channels: decades by which those are scaled; first, second: decades of a bias beside the rest."""
    unit = torch.tensor([10.0**e for e in channels])
    with parameters_of(Plain) as (source, p):
        p["first.weight"].mul_(unit[:, None, None, None])
        p["first.bias"].mul_(unit * 10.0 ** (inputs + first))
        p["second.bias"].mul_(float(unit.max()) * 10.0 ** (inputs + second))
        p["head.bias"].mul_(float(unit.max()) * 10.0**inputs)
        check(source, everywhere(source, decision), images(16) * 10.0**inputs, 64 if decision.stored_bits == 4 else 16)


def test_the_size_of_a_file_is_known_before_its_values():
    """Biases are stored alike whatever they are: networks of one shape and policy have files of one size."""
    sizes = []
    for factor in (1e-9, 1.0, 1e9):
        with parameters_of(Plain) as (source, p):
            for layer in ("first", "second", "head"):
                p[f"{layer}.bias"].mul_(factor)
            network = QuantizedNetwork(source, everywhere(source, INT8))
            network.quantize([images()])
            sizes.append(OnnxWriter(source).build(network.freeze()).ByteSize())
    assert max(sizes) - min(sizes) <= 16  # a zero-point more or less
