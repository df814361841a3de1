"""One price: what a search takes a network for, and what `estimate` reads from the file that is written of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autocomp.compress.network import QuantizedNetwork
from autocomp.compress.trace import Traced, load, trace
from autocomp.export.kernels import file_kernels
from autocomp.export.size import FileSizes
from autocomp.export.writer import OnnxWriter
from autocomp.hardware.cost import CostModel, network_kernels
from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.profile import find_profile
from autocomp.kernel import Kernel
from autocomp.policy import INT8, Policy
from autocomp.space import SearchSpace, SpaceOptions

torch.set_num_threads(1)


class Block(nn.Module):
    """A transformer block: attention of four heads, and two linear layers with a GELU between them."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inputs, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.inputs(self.before(x)).chunk(3, -1)
        n, tokens, width = x.shape
        queries, keys, values = (
            part.reshape(n, tokens, self.heads, width // self.heads).transpose(1, 2) for part in parts
        )
        seen = functional.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).reshape(n, tokens, width)
        x = x + self.output(seen)
        return self.head((x + self.narrow(functional.gelu(self.wide(self.between(x))))).mean(1))


class Tagger(nn.Module):
    """A label a step, by a recurrent layer."""

    def __init__(self, kind: type[nn.RNNBase], **options: bool) -> None:
        super().__init__()
        self.recurrent = kind(32, 48, batch_first=True, **options)
        self.head = nn.Linear(96 if options else 48, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0])


class UNet(nn.Module):
    """Down once and, by a transposed convolution, up again beside what was skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, 2, 1)
        self.up, self.joined = nn.ConvTranspose2d(32, 16, 2, 2), nn.Conv2d(32, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = functional.relu(self.first(x))
        up = self.up(functional.relu(self.down(skipped)))
        return self.last(functional.relu(self.joined(torch.cat([up, skipped], 1))))


class Volumes(nn.Module):
    """Two convolutions over volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 16, 3, 2, 1)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.second(functional.relu(self.first(x)))).mean((2, 3, 4)))


class Contraction(nn.Module):
    """A product that is written as an einsum, and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(32, 48))
        self.last = nn.Linear(48, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.softmax(torch.einsum("btd,df->btf", x, self.mix), -1).mean(1))


class TwiceTheSame(nn.Module):
    """A convolution that is called twice, which no search may quantize, and norms, a resize and a shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.norm, self.last = nn.GroupNorm(3, 12), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.hardswish(self.norm(self.shared(self.shared(self.first(x)))))
        return self.last(functional.pixel_shuffle(functional.interpolate(x, scale_factor=2), 2))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1, groups=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.GELU(), nn.Linear(128, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (convolutions, (3, 32, 32)),
    "perceptron": (perceptron, (64,)),
    "transformer": (Block, (16, 64)),
    "lstm": (lambda: Tagger(nn.LSTM), (20, 32)),
    "lstm both ways": (lambda: Tagger(nn.LSTM, bidirectional=True), (20, 32)),
    "gru": (lambda: Tagger(nn.GRU), (20, 32)),
    "u-net": (UNet, (3, 32, 32)),
    "volumes": (Volumes, (1, 8, 16, 16)),
    "einsum": (Contraction, (10, 32)),
    "left alone": (TwiceTheSame, (3, 16, 16)),
}


@pytest.fixture(scope="module", params=NETWORKS)
def source(request: pytest.FixtureRequest) -> tuple[str, Traced]:
    make, shape = NETWORKS[request.param]
    torch.manual_seed(0)
    return request.param, trace(make().eval(), torch.randn(2, *shape), "network")


@pytest.fixture(scope="module")
def latency() -> LatencyModel:
    profile = find_profile("raspberry_pi_4")
    return LatencyModel.from_table(profile.latencies, profile.calibration)


def total_ms(latency: LatencyModel, kernels: list[Kernel]) -> float:
    us = latency.predict(kernels).us
    assert (us > 0).all()
    return float(us.sum()) / 1000


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_search_and_estimate_agree(
    source: tuple[str, Traced], precision: str, latency: LatencyModel, tmp_path: Path
) -> None:
    name, traced = source
    profile = find_profile("raspberry_pi_4")
    integer = [layer.name for layer in traced.spec.layers if profile.veto(layer, INT8) is None]
    policy = Policy(dict.fromkeys(integer, INT8) if precision == "int8" else {})
    network = QuantizedNetwork(traced, policy)
    network.quantize([torch.randn(4, *NETWORKS[name][1], generator=torch.Generator().manual_seed(1))])
    OnnxWriter(traced).write(network.freeze(), tmp_path / "model.onnx")
    planned = [kernel for kernel, _ in network_kernels(traced.spec, policy)]
    read = [kernel for kernel, _ in file_kernels(tmp_path / "model.onnx")]
    assert total_ms(latency, planned) == pytest.approx(total_ms(latency, read), rel=0.01), set(planned) ^ set(read)
    assert sum(kernel.macs for kernel in planned) == sum(kernel.macs for kernel in read)
    # What a search tabulates for whole populations is the same as what is added up here.
    space = SearchSpace.build(traced.spec, SpaceOptions(), profile.veto)
    cost = CostModel(space, latency, FileSizes(OnnxWriter(traced))).of_policy(policy)
    assert cost.latency_ms[0] == pytest.approx(total_ms(latency, planned))


def test_work_by_hand() -> None:
    """Multiply-accumulates that torch's modules have, whatever the runtime calls them."""
    by_hand = {
        "lstm": 20 * (4 * 48 * (32 + 48) + 48 * 7), "gru": 20 * (3 * 48 * (32 + 48) + 48 * 7),
        "transformer": 16 * 64 * (3 * 64 + 64 + 2 * 4 * 64) + 2 * 16 * 16 * 64 + 64 * 5,
        "volumes": 8 * 16 * 16 * 8 * 27 + 4 * 8 * 8 * 8 * 16 * 27 + 16 * 4,
        "einsum": 10 * 32 * 48 + 48 * 8,
    }  # fmt: skip
    for name, macs in by_hand.items():
        make, shape = NETWORKS[name]
        traced = trace(make().eval(), torch.randn(2, *shape), "network")
        assert sum(kernel.macs for kernel, _ in network_kernels(traced.spec, Policy())) == macs


def test_a_trace_that_was_kept_has_the_same_work(tmp_path: Path) -> None:
    traced = trace(Tagger(nn.LSTM).eval(), torch.randn(2, 20, 32), "network", tmp_path)
    assert load(tmp_path).spec == traced.spec
    assert [kernel.op for node in traced.spec.kernels for kernel in node.work] == ["lstm"]
