"""What the builder writes, LiteRT runs, and it computes what numpy computes from the same integers."""

import litert
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from autocomp.tflite.builder import Affine, ModelBuilder, Tensor

X = Affine(0.04, -7)
Y = Affine(0.25, 9)
SHAPE = (1, 7, 8, 6)


def integers(shape, seed=0, low=-128):
    return np.random.default_rng(seed).integers(low, 128, shape).astype(np.int8)


def real(q: np.ndarray, affine: Affine) -> np.ndarray:
    return (q.astype(np.float64) - affine.zero_point) * affine.scale


def on_grid(values: np.ndarray, affine: Affine) -> np.ndarray:
    return np.clip(np.round(values / affine.scale) + affine.zero_point, -128, 127)


def same_padded(x: np.ndarray, kernel, stride, dilation=(1, 1)) -> np.ndarray:
    """x with the zeros that SAME puts around it: half before, the odd one behind."""
    pads = [(0, 0)]
    for size, k, s, d in zip(x.shape[1:3], kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        pads.append((total // 2, total - total // 2))
    return np.pad(x, [*pads, (0, 0)])


def windows(x: np.ndarray, kernel, stride, dilation=(1, 1)) -> np.ndarray:
    """(1, h, w, c) → (1, out_h, out_w, c, kh, kw)."""
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    view = sliding_window_view(x, reach, axis=(1, 2))
    return view[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]


def check(builder: ModelBuilder, result: Tensor, x: np.ndarray, expected: np.ndarray, equal: float = 0.98) -> None:
    """Run the model; `expected` are real values, before they are put on the grid of the result.

    equal: share of values that must be the same; a value half-way between two steps may round either way.
    """
    assert result.affine is not None
    got = litert.run(builder.finish([result]), x)
    assert got.shape == result.shape == expected.shape
    difference = np.abs(got - on_grid(expected, result.affine))
    assert difference.max() <= 1
    assert (difference == 0).mean() > equal
    assert len(np.unique(got)) > 3  # or the test would say nothing


def start() -> tuple[ModelBuilder, Tensor, np.ndarray]:
    builder = ModelBuilder()
    return builder, builder.input("x", SHAPE, X), integers(SHAPE)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("stride", "dilation"), [((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (1, 2))])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_convolution(padding, stride, dilation, groups):
    builder, tensor, x = start()
    weight = integers((9, 3, 2, 6 // groups), 1, -127)
    scales = np.linspace(0.001, 0.01, 9, dtype=np.float32)
    bias = np.arange(-400, 500, 100, dtype=np.int32)
    result = builder.conv(
        "y", tensor, weight, scales, bias, Y, stride=stride, padding=padding, dilation=dilation, activation="RELU"
    )
    values = real(x, X)
    if padding == "SAME":
        values = same_padded(values, (3, 2), stride, dilation)
    seen = windows(values, (3, 2), stride, dilation)
    parts = [
        np.einsum("nhwcij,oijc->nhwo", part, kernel)
        for part, kernel in zip(np.split(seen, groups, 3), np.split(weight.astype(np.float64), groups), strict=True)
    ]
    expected = (np.concatenate(parts, -1) + bias * X.scale) * scales
    check(builder, result, x, np.maximum(expected, 0))


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise(stride):
    builder, tensor, x = start()
    weight, scales = integers((1, 3, 3, 6), 1, -127), np.linspace(0.002, 0.01, 6, dtype=np.float32)
    bias = np.arange(6, dtype=np.int32) * 50
    result = builder.depthwise("y", tensor, weight, scales, bias, Y, stride=(stride, stride), activation="RELU6")
    seen = windows(same_padded(real(x, X), (3, 3), (stride, stride)), (3, 3), (stride, stride))
    expected = (np.einsum("nhwcij,ijc->nhwc", seen, weight[0].astype(np.float64)) + bias * X.scale) * scales
    check(builder, result, x, np.clip(expected, 0, 6))


def test_fully_connected_takes_an_image_in_its_order_and_a_scale_a_row():
    builder, tensor, x = start()
    weight, scales = integers((12, 7 * 8 * 6), 1, -127), np.linspace(0.0005, 0.002, 12, dtype=np.float32)
    bias = np.full(12, 30, np.int32)
    flat = builder.reshape("flat", tensor, (-1, 7 * 8 * 6))
    result = builder.fully_connected("y", flat, weight, scales, bias, Y)
    check(builder, result, x, (real(x, X).reshape(1, -1) @ weight.T + bias * X.scale) * scales)


def test_addition_and_product_broadcast():
    for operator, function in (("add", np.add), ("mul", np.multiply)):
        builder, tensor, x = start()
        mean = builder.mean("mean", tensor, Affine(0.01, 3))
        result = getattr(builder, operator)("y", tensor, mean, Y)
        average = real(on_grid(real(x, X).mean((1, 2), keepdims=True), Affine(0.01, 3)), Affine(0.01, 3))
        check(builder, result, x, function(real(x, X), average))


def test_pooling():
    builder, tensor, x = start()
    largest = builder.max_pool("y", tensor, (2, 3), (2, 1))
    check(builder, largest, x, windows(real(x, X), (2, 3), (2, 1)).max((-2, -1)))
    builder, tensor, x = start()
    average = builder.avg_pool("y", tensor, (3, 3), (1, 1), "SAME")
    inside = windows(same_padded(np.ones(SHAPE), (3, 3), (1, 1)), (3, 3), (1, 1)).sum((-2, -1))
    total = windows(same_padded(real(x, X), (3, 3), (1, 1)), (3, 3), (1, 1)).sum((-2, -1))
    check(builder, average, x, total / inside, equal=0.9)  # at the edges every fourth mean of 4 is half-way


def test_what_moves_values():
    builder, tensor, x = start()
    padded = builder.pad("pad", tensor, (1, 0), (0, 2))
    both = builder.concat("both", [padded, padded])
    turned = builder.transpose("turned", both, (0, 3, 1, 2))
    result = builder.quantize("y", turned, Affine(0.05, -7))
    expected = np.pad(real(x, X), [(0, 0), (1, 0), (0, 2), (0, 0)])
    check(builder, result, x, np.concatenate([expected, expected], -1).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("operator", "result", "function"),
    [
        ("LOGISTIC", Affine(1 / 256, -128), lambda v: 1 / (1 + np.exp(-v))),
        ("TANH", Affine(1 / 128, 0), np.tanh),
        ("HARD_SWISH", Affine(0.05, -60), lambda v: v * np.clip(v + 3, 0, 6) / 6),
        ("RELU6", Affine(0.05, -60), lambda v: np.clip(v, 0, 6)),
    ],
)
def test_functions_of_one_value(operator, result, function):
    builder, tensor, x = start()
    y = builder.elementwise("y", operator, tensor, result)
    expected = function(real(x, X))
    got = litert.run(builder.finish([y]), x)
    # HARD_SWISH is computed in 16-bit fixed point.
    assert np.abs(got - on_grid(expected, result)).max() <= 1


def test_leaky_relu():
    builder, tensor, x = start()
    values = real(x, X)
    result = builder.leaky_relu("y", tensor, 0.1, Affine(0.05, 0))
    check(
        builder, result, x, np.where(values < 0, 0.1 * values, values), equal=0.9
    )  # the slope is a fixed-point number


def test_the_same_calls_give_the_same_bytes_and_constants_are_aligned():
    def build() -> bytes:
        builder = ModelBuilder()
        tensor = builder.input("x", SHAPE, X)
        for i in range(3):  # odd sizes, so that alignment does not come by itself
            weight = np.full((5 + i, 1, 1, tensor.shape[3]), 77 + i, np.int8)
            scales = np.full(5 + i, 0.01, np.float32)
            tensor = builder.conv(f"y{i}", tensor, weight, scales, np.zeros(5 + i, np.int32), Y)
        return builder.finish([tensor])

    model = build()
    assert model == build()
    assert model[4:8] == b"TFL3"
    for i, size in enumerate((5 * 6, 6 * 5, 7 * 6)):
        assert model.index(bytes([77 + i]) * size) % 16 == 0


def test_equal_vectors_are_stored_once():
    def size(layers: int) -> int:
        builder = ModelBuilder()
        tensor = builder.input("x", (1, 1, 1, 512), X)
        for i in range(layers):
            scales = np.linspace(0.001, 0.002 + i, 512, dtype=np.float32)
            tensor = builder.depthwise(
                f"y{i}", tensor, integers((1, 1, 1, 512), i), scales, np.arange(512, dtype=np.int32) * i, Y
            )
        return len(builder.finish([tensor]))

    # A weight of 1 byte, its scale of 4, a bias of 4 with a scale of 4; 8 bytes for each zero-point once and for all.
    assert size(3) - size(2) < 512 * (1 + 4 + 4 + 4) + 700


def test_mistakes_are_told():
    builder, tensor, _ = start()
    with pytest.raises(ValueError, match="expected int8 or int32"):
        builder.constant("w", np.zeros(3))
    with pytest.raises(ValueError, match="2 scales for 3 slices"):
        builder.constant("w", np.zeros(3, np.int8), np.ones(2, np.float32))
    other = builder.quantize("q", tensor, Y)
    with pytest.raises(ValueError, match="share one quantization"):
        builder.concat("both", [tensor, other])


def test_without_litert_the_package_to_install_is_named(monkeypatch):
    from autocomp.errors import MissingPackage

    monkeypatch.setitem(__import__("sys").modules, "ai_edge_litert.schema_py_generated", None)
    with pytest.raises(MissingPackage, match=r"pip install 'autocomp\[npu\]'"):
        ModelBuilder()
