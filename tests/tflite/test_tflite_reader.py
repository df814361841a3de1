"""What the builder wrote is read back; what is not sound is refused before anything computes on it."""

import numpy as np
import pytest
from needs import needs

from autocomp.errors import UserError
from autocomp.tflite.builder import Affine, ModelBuilder, Tensor
from autocomp.tflite.reader import read_model

needs("ai_edge_litert")


def built() -> tuple[ModelBuilder, Tensor]:
    """(a convolution and the mean of what it makes, not yet finished; the result). The input is tensor 0."""
    builder = ModelBuilder()
    x = builder.input("input", (1, 4, 4, 2), Affine(0.5, 3))
    weight = np.arange(-6, 6, dtype=np.int8).reshape(3, 1, 2, 2)
    y = builder.conv("layer", x, weight, np.array([0.1, 0.2, 0.4], np.float32), np.zeros(3, np.int32), Affine(0.25))
    return builder, builder.mean("mean", y, Affine(0.125))


def sound() -> bytes:
    builder, result = built()
    return builder.finish([result])


def test_a_model_is_read_as_it_was_built():
    model = read_model(sound(), "the file")
    conv, mean = model.operators
    assert [operator.name for operator in model.operators] == ["CONV_2D", "MEAN"]
    assert conv.integer and mean.integer
    assert [tensor.name for tensor in conv.inputs] == ["input", "layer_weight", "layer_bias"]
    weight, bias = conv.inputs[1:]
    assert weight.shape == (3, 1, 2, 2) and weight.type == "INT8"
    np.testing.assert_array_equal(weight.stored.view(np.int8), np.arange(-6, 6))
    np.testing.assert_allclose(weight.scales, [0.1, 0.2, 0.4])
    assert bias.type == "INT32"
    np.testing.assert_allclose(bias.scales, [0.05, 0.1, 0.2])  # input scale × weight scale
    assert model.inputs[0].scales == (0.5,) and model.inputs[0].zero_points == (3,)
    assert model.inputs[0].stored is None
    assert model.outputs == mean.outputs


def spoilt(change) -> bytes:
    builder, result = built()
    change(builder._model, builder._graph)
    return builder.finish([result])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, g: setattr(g.operators[0], "inputs", [0, 1, 77]), "tensor 77 of"),
        (lambda m, g: setattr(g.operators[0], "outputs", [-1]), "tensor -1 of"),
        (lambda m, g: setattr(g.operators[1], "opcodeIndex", 9), "operator code 9 of 2"),
        (lambda m, g: setattr(m.operatorCodes[0], "builtinCode", 9999), "operator 9999 is unknown"),
        (lambda m, g: setattr(g.tensors[1], "buffer", 44), "'layer_weight' is stored in buffer 44"),
        (lambda m, g: setattr(g.tensors[1], "shape", [3, 1, 2, 3]), r"of shape \(3, 1, 2, 3\).* 12 bytes"),
        (lambda m, g: setattr(g.tensors[0], "shape", [1, -4, 4, 2]), "'input' has the shape"),
        (lambda m, g: setattr(g.tensors[0], "type", 99), "'input' has the unknown type 99"),
        (lambda m, g: setattr(g.tensors[0].quantization, "scale", [float("nan")]), "'input' has a scale"),
        (lambda m, g: setattr(g.tensors[1].quantization, "scale", [0.1, 0.2]), "has 2 scales along axis 0"),
        (lambda m, g: setattr(g.tensors[0], "name", b"\xff\xfe"), "damaged or cut short"),
    ],
)  # fmt: skip
def test_what_is_not_sound_is_named(change, message):
    with pytest.raises(UserError, match=message) as caught:
        read_model(spoilt(change), "front.tflite")
    assert str(caught.value).startswith("front.tflite is damaged")


def test_what_is_no_model_is_told():
    with pytest.raises(UserError, match=r"notes\.tflite is no TFLite file: expected b'TFL3' at byte 4"):
        read_model(b"some text that is longer", "notes.tflite")
    whole = sound()
    for length in range(8, len(whole), 97):
        with pytest.raises(UserError, match="damaged or cut short"):
            read_model(whole[:length], "cut.tflite")


def test_bytes_changed_at_random_are_read_or_refused():
    whole, rng = sound(), np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(0, 256)
        try:
            read_model(bytes(data), "the file")
        except UserError:
            refused += 1
    assert 100 < refused < 400
