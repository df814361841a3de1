"""Every operator that the runtime executes on integers against the same file unfused, over its attributes.

Networks go through the writer as any other: a stem, ways with one operator each, and a layer behind each of them.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import settled
from onnx import helper, numpy_helper
from roofline import Roofline
from torch import Tensor, nn
from torch.nn import functional

from autocomp.compress.finetune import outputs_of
from autocomp.compress.integer_kernels import runtime_form
from autocomp.compress.network import QuantizedNetwork
from autocomp.compress.trace import Traced, trace
from autocomp.export.kernels import file_kernels
from autocomp.export.size import FileSizes
from autocomp.export.writer import OnnxWriter
from autocomp.hardware.cost import CostModel, network_kernels
from autocomp.policy import INT8, Policy
from autocomp.space import SearchSpace, SpaceOptions

Way = Callable[[Tensor], Tensor]


class Ways(nn.Module):
    """stem → each way → a layer behind it → mean; (n, 2, …) → (n, 4 · ways)."""

    def __init__(self, ways: list[Way | nn.Module], channels: int, rank: int) -> None:
        super().__init__()
        conv = nn.Conv2d if rank == 2 else nn.Conv1d
        self.stem = conv(2, channels, 3, padding=1)
        self.modules_ = nn.ModuleList(way for way in ways if isinstance(way, nn.Module))
        self.ways, self.axes = ways, tuple(range(2, 2 + rank))
        example = torch.zeros(1, channels, *[9] * rank)
        self.after = nn.ModuleList(conv(way(example).shape[1], 4, 1) for way in ways)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        # A layer reads each way where it is: nothing hides behind an average of its own.
        return torch.cat(
            [last(way(x)).flatten(2)[:, :, :6] for way, last in zip(self.ways, self.after, strict=True)], 2
        )


def average(rank: int, *arguments: object, **options: object) -> nn.Module:
    return (nn.AvgPool2d if rank == 2 else nn.AvgPool1d)(*arguments, **options)


def averages(rank: int) -> list[nn.Module]:
    ways = [
        average(rank, window, stride, padding, ceil_mode=round_up, count_include_pad=counted)
        for window, stride in ((2, 2), (3, 2), (2, 3))
        for padding in (0, 1)
        for round_up in (False, True)
        for counted in ((False, True) if padding else (True,))
    ]
    return [*ways, nn.AvgPool2d((3, 2), (2, 1), (1, 0))] if rank == 2 else ways


def maxima(rank: int) -> list[nn.Module]:
    kind = nn.MaxPool2d if rank == 2 else nn.MaxPool1d
    return [
        kind(window, stride, padding, dilation, ceil_mode=round_up)
        for window, stride, padding, dilation in ((2, 2, 0, 1), (3, 2, 1, 1), (3, 2, 1, 2), (2, 1, 0, 2), (2, 3, 0, 1))
        for round_up in (False, True)
    ]


def convolutions(rank: int, channels: int) -> list[Way | nn.Module]:
    kind = nn.Conv2d if rank == 2 else nn.Conv1d
    ways: list[Way | nn.Module] = [
        kind(channels, channels, 3, 2, 1), kind(channels, 7, 2, 1), kind(channels, 1, 3, 3, 2, 2),
        kind(channels, channels, 3, 1, 1, groups=channels), kind(channels, 2 * channels, 3, 2, 1, groups=channels),
        kind(channels, channels, 3, 1, 4, 4, groups=channels, bias=False),
    ]  # fmt: skip
    if channels % 4 == 0:
        ways.append(kind(channels, 12, 3, 1, 1, groups=4))
    if rank == 2:
        ways += [
            nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(channels, 5, 3, 2)),
            nn.Conv2d(channels, 5, (1, 3), (2, 1), (0, 1)),
            nn.Sequential(nn.Conv2d(channels, 5, 1), nn.ReLU6()),
        ]
    return ways


def moves(rank: int) -> list[Way | nn.Module]:
    ways: list[Way | nn.Module] = [
        lambda x: x[:, :, 1:7:2], lambda x: functional.pad(x, (2, 1)), lambda x: functional.pad(x, (-1, 0)),
        lambda x: functional.pad(x, (1, 2, 0, 1)[: 2 * x.ndim - 4], mode="replicate"),
        lambda x: x.transpose(1, 2), lambda x: x[:, :, 3:],
        lambda x: torch.cat([x, x[:, :, 2:4]], 2), lambda x: x + torch.relu(x) * x,
        lambda x: x * x.mean(2, keepdim=True),
    ]  # fmt: skip
    if rank == 2:
        ways += [
            lambda x: functional.pad(x, (1, 0, 2, 1)), lambda x: functional.pad(x, (1, 1, 2, 2), mode="reflect"),
            lambda x: functional.interpolate(x, scale_factor=2), lambda x: x.permute(0, 3, 1, 2),
            lambda x: x * x.mean((2, 3), keepdim=True), lambda x: functional.pad(x, (1, 1, 1, 1), value=0.7),
        ]  # fmt: skip
    return ways


def splits(channels: int) -> list[Way | nn.Module]:
    return [
        lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), lambda x: torch.cat(x.split([1, channels - 1], 1)[::-1], 1),
        lambda x: torch.cat(x.chunk(3, 2)[::-1], 2),
    ]  # fmt: skip


KINDS: dict[str, tuple[int, int, Callable[[], list]]] = {
    "averages of images": (2, 5, lambda: averages(2)), "averages of one channel": (2, 1, lambda: averages(2)),
    "averages of signals": (1, 16, lambda: averages(1)),
    "maxima of images": (2, 16, lambda: maxima(2)), "maxima of signals": (1, 3, lambda: maxima(1)),
    "convolutions of images": (2, 8, lambda: convolutions(2, 8)),
    "convolutions of one channel": (2, 1, lambda: convolutions(2, 1)),
    "convolutions of signals": (1, 5, lambda: convolutions(1, 5)),
    "moves in images": (2, 6, lambda: moves(2)), "moves in signals": (1, 6, lambda: moves(1)),
    "splits": (2, 6, lambda: splits(6)),
}  # fmt: skip


#: Operators whose number tells whether each ran as planned; where the runtime converts and joins is its own affair.
WORK = ("conv", "depthwise", "avg_pool", "max_pool", "global_avg_pool", "activation", "add", "mul")


def batch(rank: int, n: int, seed: int = 3) -> Tensor:
    return torch.randn(n, 2, *[9] * rank, generator=torch.Generator().manual_seed(seed))


@cache
def traced(kind: str) -> Traced:
    rank, channels, ways = KINDS[kind]
    return trace(settled(Ways(ways(), channels, rank)), batch(rank, 2), kind)


def outputs(model: bytes, x: Tensor, *, fused: bool) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # products do not saturate
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


@pytest.mark.parametrize("kind", KINDS)
def test_integer_kernels_compute_what_the_file_unfused_does(kind, tmp_path):
    source, rank = traced(kind), KINDS[kind][0]
    policy = Policy({layer.name: INT8 for layer in source.spec.layers})
    network = QuantizedNetwork(source, policy)
    x = batch(rank, 16)
    network.quantize([x])
    frozen = network.freeze()
    writer = OnnxWriter(source)
    written = writer.write(frozen, tmp_path / "model.onnx")
    costs = CostModel(SearchSpace.build(source.spec, SpaceOptions()), Roofline(), FileSizes(writer))
    assert written <= float(costs.of_policy(policy).size_bytes[0]) <= 1.15 * written  # many small ways
    model = (tmp_path / "model.onnx").read_bytes()
    step = np.ptp(source.graph(x).detach().numpy()) / 255
    for part in (x[:1], x[1:]):
        fused, unfused = (outputs(model, part, fused=fused) for fused in (True, False))
        simulated, wanted = outputs_of(network.module, part.numpy()), source.graph(part).detach().numpy()
        # One code may round the other way, and is read by a layer: never more, and rarely.
        for other in (unfused, simulated):
            assert np.abs(fused - other).max() <= 2 * step
            assert np.abs(fused - other).mean() <= 0.05 * step
        assert np.abs(fused - wanted).max() <= 10 * step
    executed = Counter((k.op, k.precision) for k, _ in file_kernels(tmp_path / "model.onnx") if k.op in WORK)
    planned = Counter((k.op, k.precision) for k, _ in network_kernels(source.spec, policy) if k.op in WORK)
    assert executed == planned


@pytest.mark.parametrize("kind", ["averages of images", "averages of signals", "maxima of images", "moves in images"])
def test_the_float_file_computes_what_torch_does(kind):
    source = traced(kind)
    x = batch(KINDS[kind][0], 3)
    model = OnnxWriter(source).build(QuantizedNetwork(source, Policy()).freeze()).SerializeToString()
    wanted = source.graph(x).detach().numpy()
    np.testing.assert_allclose(outputs(model, x, fused=True), wanted, atol=1e-5 * np.abs(wanted).max())


def kernels_named(source: Traced, op: str) -> list[bool]:
    return [kernel.int8 for kernel in source.spec.kernels if kernel.op == op]


def test_only_averages_over_cut_padded_windows_run_in_float():
    # Of 9 positions padded by 1: windows of 3 by 2 fit (9 + 2 − 3 = 8), those of 2 by 2 and by 3 (9) do one of both.
    source = traced("averages of signals")
    left = [a for a in source.spec.left_alone if a.what == "quantize"]
    assert kernels_named(source, "avg_pool").count(False) == len(left) == 1
    assert "divides padded windows that are cut at the edge by too much" in left[0].reason


def test_what_moves_values_stays_on_integers():
    source = traced("moves in images")
    left = {a.name: a.reason for a in source.spec.left_alone if a.what == "quantize"}
    assert [reason for name, reason in left.items() if name.startswith(("pad", "upsample", "constant"))] == [
        "it pads with 0.7, which the grid of its input may not hold: it runs in float"
    ]


# --- reasons ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "attributes", "stored", "form"),
    [
        ("Sigmoid", {}, (), "fused"), ("Tanh", {}, (), "float"), ("Softmax", {"axis": 1}, (), "fused"),
        ("LayerNormalization", {}, (np.ones(4, np.float32),), "float"), ("HardSwish", {}, (), "float"),
        ("AveragePool", {"kernel_shape": [2, 2]}, (), "fused"), ("Transpose", {"perm": [1, 0]}, (), "fused"),
        ("Pad", {}, (np.array([0, 1, 0, 1], np.int64),), "codes"), ("DepthToSpace", {"blocksize": 2}, (), "fused"),
    ],
)  # fmt: skip
def test_the_runtime_says_what_it_executes_on_integers(op, attributes, stored, form):
    names = [f"c{i}" for i in range(1, 1 + len(stored))]
    node = helper.make_node(op, ["x0", *names], ["y0"], **attributes)
    constants = [numpy_helper.from_array(array, name) for name, array in zip(names, stored, strict=True)]
    assert runtime_form(node.SerializeToString(), tuple(c.SerializeToString() for c in constants)) == form


class Floats(nn.Module):
    """What stays float for different reasons."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.last = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.stem(x))
        x = self.norm(functional.hardswish(functional.max_pool2d(x, 2)))
        return self.last(functional.leaky_relu(x, 0.1)).mean((2, 3))


def test_each_reason_is_the_true_one():
    source = trace(settled(Floats()), batch(2, 2), "floats")
    reasons = {a.name: a.reason for a in source.spec.left_alone if a.what == "quantize"}
    could = "ONNX Runtime could execute {} on integers, but this version does not write it so: it runs in float"
    cannot = "ONNX Runtime has no integer kernel for {}: it runs in float"
    assert reasons["silu"] == could.format("Sigmoid and Mul")
    assert reasons["leaky_relu"] == could.format("LeakyRelu")
    assert reasons["hardswish"] == cannot.format("HardSwish")
    assert cannot.format("BatchNormalization") in reasons.values()
    assert all("mean" not in name and "max_pool" not in name for name in reasons)


def test_codes_are_padded_in_the_file_that_is_written():
    source = traced("moves in images")
    network = QuantizedNetwork(source, Policy({layer.name: INT8 for layer in source.spec.layers}))
    network.quantize([batch(2, 4)])
    model = OnnxWriter(source).build(network.freeze())
    onnx.checker.check_model(model, full_check=True)
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    pads = [makers[node.input[0]] for node in model.graph.node if node.op_type == "Pad"]
    assert pads.count("QuantizeLinear") == len(pads) - 1  # all but the one that pads with 0.7
