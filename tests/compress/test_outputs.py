"""What a network returns: one tensor is scored, the others stay in the file under their own names."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import onnxruntime
import pytest
import torch
from networks import settled
from torch import Tensor, nn

from autocomp.compress.finetune import outputs_of
from autocomp.compress.network import QuantizedNetwork
from autocomp.compress.outputs import first_output
from autocomp.compress.trace import load, trace
from autocomp.compress.trace_cache import TraceCache
from autocomp.errors import UserError
from autocomp.export.writer import OnnxWriter
from autocomp.policy import FLOAT, INT8, LayerPolicy, Policy

Pair = namedtuple("Pair", ["features", "prediction"])


@dataclass
class Result:
    loss: Tensor | None
    logits: Tensor
    hidden: tuple[Tensor, ...]


class Trunk(nn.Module):
    """Features and scores, and `give`, which says in what they are returned."""

    def __init__(self, give) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.give = give

    def forward(self, x):
        features = torch.relu(self.a(x))
        deep = torch.relu(self.b(features))
        return self.give(x, features, deep, self.c(deep))


def inputs(n: int = 24) -> Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(7))


def names_of(give, output=None, tmp_path=None) -> list[str]:
    traced = trace(settled(Trunk(give)), inputs()[:2], "trunk", tmp_path, output=output)
    session = onnxruntime.InferenceSession(OnnxWriter(traced).template.SerializeToString())
    return [value.name for value in session.get_outputs()]


@pytest.mark.parametrize(
    ("give", "expected"),
    [
        (lambda x, f, d, y: {"features": f, "logits": y}, ["logits", "features"]),
        (lambda x, f, d, y: OrderedDict(out=y, aux=d), ["out", "aux"]),
        (lambda x, f, d, y: {"a": f, "b": y}, ["a", "b"]),
        (lambda x, f, d, y: {"mask": f > 0, "b": y}, ["b", "mask"]),
        (lambda x, f, d, y: (y, f), ["output_0", "output_1"]),
        (lambda x, f, d, y: [y, [f, d]], ["output_0", "output_1_0", "output_1_1"]),
        (lambda x, f, d, y: Pair(f, y), ["prediction", "features"]),
        (lambda x, f, d, y: Result(None, y, (f, d)), ["logits", "hidden_0", "hidden_1"]),
        (lambda x, f, d, y: {"logits": y, "copy": y, "input": x, "size": 3, "none": None}, ["logits"]),
        (lambda x, f, d, y: {"torch": f, "w0": d, "logits": y}, ["logits", "torch_", "w0_"]),
        (lambda x, f, d, y: {"relu": y, "linear": f, "x": d}, ["relu", "linear", "x_"]),
        (lambda x, f, d, y: {"a.b": f, "logits": y}, ["logits", "a_b"]),
    ],
)
def test_outputs_have_the_names_that_the_network_gives_them(give, expected):
    assert names_of(give) == expected


@pytest.mark.parametrize(("output", "first"), [("b", "b"), ("c.d", "c_d"), ("c_d", "c_d"), (1, "b"), (-1, "c_d")])
def test_the_task_may_say_which_output_is_scored(output, first):
    names = names_of(lambda x, f, d, y: {"logits": y, "b": f, "c": {"d": d}}, output)
    assert names[0] == first and sorted(names) == ["b", "c_d", "logits"]


@pytest.mark.parametrize(
    ("give", "output", "reason"),
    [
        (lambda x, f, d, y: {"a": f, "b": y}, "c", "Task.output is 'c', but the network returns a, b"),
        (lambda x, f, d, y: (f, y), 2, "Task.output is 2, but the network returns 2 tensors"),
        (lambda x, f, d, y: y, "logits", "returns one tensor alone"),
        (lambda x, f, d, y: {"a": y.sum(), "b": y}, None, "Task.output says which of a, b is scored"),
    ],
)
def test_what_cannot_be_scored_is_refused(give, output, reason):
    with pytest.raises(UserError, match=reason) as error:
        names_of(give, output)
    assert "\n" not in str(error.value)


def test_notes_say_what_is_scored_and_what_is_left_out():
    traced = trace(settled(Trunk(lambda x, f, d, y: {"logits": y, "f": f, "twin": y, "n": 3})), inputs()[:2], "trunk")
    notes = [left.reason for left in traced.spec.left_alone if left.what == "trace"]
    assert any("logits is scored" in note and "f stays in the file" in note for note in notes)
    assert any("twin (the same as logits)" in note for note in notes)
    assert any("no tensors" in note and "n" in note for note in notes)


@pytest.mark.parametrize("decision", [FLOAT, INT8, LayerPolicy(4, "float"), LayerPolicy(3, "int8")])
def test_every_output_of_a_file_is_what_its_simulation_gives(decision, tmp_path):
    """Also those that integer and float layers read on."""
    x = inputs()
    traced = trace(settled(Trunk(lambda x, f, d, y: {"logits": y, "f": f, "soft": d.softmax(-1)})), x[:2], "trunk")
    network = QuantizedNetwork(traced, Policy(dict.fromkeys(traced.spec.layer_by_name, decision)))
    network.quantize([x])
    path = tmp_path / "file.onnx"
    OnnxWriter(traced).write(network.freeze(), path)
    session = onnxruntime.InferenceSession(str(path))
    found = session.run(None, {traced.input_name: x.numpy()})
    with torch.no_grad():
        simulated = network.module(x)
    assert [value.name for value in session.get_outputs()] == ["logits", "f", "soft"]
    for ours, theirs in zip(found, simulated, strict=True):
        off = np.abs(ours - theirs.numpy()) / float(theirs.max() - theirs.min())
        assert off.mean() < 0.004 and ours.shape == tuple(theirs.shape)


def test_a_network_read_back_has_its_outputs(tmp_path):
    network, x = settled(Trunk(lambda x, f, d, y: {"f": f, "logits": y})), inputs()
    cache = TraceCache(tmp_path / "cache")
    for place in ("first", "from the cache"):
        traced = trace(network, x[:2], "trunk", tmp_path / place, cache)
        again = load(tmp_path / place)
        for graph in (traced.graph, again.graph):
            np.testing.assert_allclose(outputs_of(graph, x.numpy()), network(x)["logits"].detach(), atol=1e-5)
            assert len(graph(x)) == 2
        assert again.tensors == traced.tensors
    chosen = trace(network, x[:2], "trunk", tmp_path / "first", cache, output="f")
    np.testing.assert_allclose(first_output(chosen.graph(x)).detach(), network(x)["f"].detach(), atol=1e-5)
