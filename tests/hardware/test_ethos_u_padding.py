"""What a padded pooling costs an Ethos-U: the same wherever it stands, and a copy where Vela makes one."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from needs import needs
from torch import Tensor, nn
from torch.nn import functional

from autocomp.compress.synthetic import GaussianWeights
from autocomp.compress.trace import trace
from autocomp.hardware.cost import CostModel, network_kernels
from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.ethos_u.compiler import Vela
from autocomp.hardware.ethos_u.observe import Cycles, observe
from autocomp.hardware.ethos_u.pooling import pad_of, with_copies
from autocomp.hardware.ethos_u.sizes import CompiledSizes
from autocomp.hardware.profile import find_profile
from autocomp.kernel import Kernel
from autocomp.network import NetworkSpec
from autocomp.policy import INT8, Policy
from autocomp.space import SearchSpace, SpaceOptions
from autocomp.tflite.padding import Border

needs("ethosu.vela")

NPU = find_profile("npu_ethos_u55")


class Surrounded(nn.Module):
    """A pooling of 64 channels at 24×24 behind one operator or another."""

    def __init__(self, behind: str) -> None:
        super().__init__()
        self.behind = behind
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.one, self.other, self.last = nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 1)
        self.left = nn.Conv2d(64, 32, 1)
        self.right = nn.Conv2d(64, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        more: Tensor | float = 0.0
        if self.behind == "conv":
            x = self.one(x)
        elif self.behind == "add":
            x = self.one(x) + self.other(x)
        elif self.behind == "concat":
            x = torch.cat([self.left(x), self.right(x)], dim=1)
        elif self.behind == "conv with two readers":
            x = self.one(x)
            more = self.other(x).mean((2, 3))
        return self.last(functional.max_pool2d(x, 3, 2, 1)).mean((2, 3)) + more


@pytest.fixture(scope="module")
def vela():
    with Vela() as compiler:
        yield compiler


@cache
def surrounded(behind: str, size: int = 24) -> NetworkSpec:
    return trace(Surrounded(behind).eval(), torch.zeros(2, 3, size, size), behind).spec


@cache
def npu_model() -> LatencyModel:
    return LatencyModel.from_table(NPU.latencies, NPU.calibration)


def observed(behind: str, vela: Vela, folder: Path, size: int = 24) -> tuple[int, NetworkSpec, dict[int, Cycles]]:
    """Cycles of the whole, the network with its copies, and cycles of each kernel."""
    spec = with_copies(surrounded(behind, size))
    weights, policy = GaussianWeights(0), Policy({layer.name: INT8 for layer in spec.layers})
    assert NPU.accelerator is not None
    compiled, cycles = observe(
        spec, policy, lambda layer, chosen: weights.levels(layer.shape(chosen), chosen.layer(layer.name)), vela,
        NPU.accelerator, folder,
    )  # fmt: skip
    return compiled.cycles, spec, cycles


def of(op: str, spec: NetworkSpec, cycles: dict[int, Cycles]) -> list[int]:
    return [found.total for index, found in cycles.items() if spec.kernels[index].op == op]


BEHIND = ("conv", "add", "concat", "conv with two readers")


def test_a_pooling_costs_the_same_behind_everything(vela, tmp_path):
    found = {behind: observed(behind, vela, tmp_path) for behind in BEHIND}
    for total, _, cycles in found.values():
        assert sum(each.total for each in cycles.values()) == total
    assert len({tuple(of("max_pool", spec, cycles)) for _, spec, cycles in found.values()}) == 1
    assert all(of("add", spec, cycles)[0] > 0 for behind, (_, spec, cycles) in found.items() if behind == "add")


def test_a_copy_is_a_kernel_of_its_own_where_vela_makes_one(vela, tmp_path):
    copies = {behind: of("pad", *observed(behind, vela, tmp_path)[1:]) for behind in BEHIND}
    assert copies["conv"] == copies["add"] == []
    assert len(copies["concat"]) == len(copies["conv with two readers"]) == 1
    assert copies["concat"] == copies["conv with two readers"]
    assert copies["concat"][0] > 0


def test_an_image_of_odd_size_is_padded_as_tflite_does_it(vela, tmp_path):
    assert of("pad", *observed("concat", vela, tmp_path, size=25)[1:]) == []
    assert not pad_of(Kernel("max_pool", "int8", 64, 64, 25, 25, 3, 3, 2))
    assert pad_of(Kernel("max_pool", "int8", 64, 64, 24, 24, 3, 3, 2)) == Border((1, 0), (1, 0))
    assert not pad_of(Kernel("conv", "int8", 64, 64, 24, 24, 3, 3, 2))


def test_copies_are_found_once():
    spec = surrounded("concat")
    once = with_copies(spec)
    assert [node.op for node in once.kernels].count("pad") == 1
    assert with_copies(once) == once
    assert [n.op for n in once.kernels if n.op != "pad"] == [n.op for n in spec.kernels]


def test_candidates_pay_for_the_copy_with_the_channels_that_they_keep():
    spec = surrounded("concat")
    model = npu_model()
    assert model.encoded is not None
    options = SpaceOptions((4, 8), ("int8",), (0.5, 1.0), (0.0,), channel_multiple=8)
    space = SearchSpace.build(spec, options, NPU.veto)
    cost = CostModel(space, model, CompiledSizes(spec, model.encoded), integer_only=True)
    genes = np.stack([space.smallest, space.largest])
    channels = []
    for row, found in zip(genes, cost(genes).latency_ms, strict=True):
        policy = space.decode(row)
        executed = [kernel for kernel, _ in network_kernels(spec, policy, integer_only=True)]
        assert found == pytest.approx(model.predict(executed).us.sum() / 1000)
        assert found == pytest.approx(cost.of_policy(policy).latency_ms[0])
        channels += [kernel.in_channels for kernel in executed if kernel.op == "pad"]
    assert channels == [32, 64]


def test_zeros_that_a_file_holds_are_counted():
    spec = surrounded("conv")
    odd = surrounded("conv", 25)
    encoded = npu_model().encoded
    # A row of 25 and a column of 24 positions, 64 channels each.
    assert CompiledSizes(spec, encoded).fixed_bytes() - CompiledSizes(odd, encoded).fixed_bytes() == 64 * (25 + 24)
