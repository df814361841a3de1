"""Filling the table of an Ethos-U by Arm's compiler: kernels as networks chain them, weights as searches code them.

Each network of a few families is compiled again and again: on images of several sizes, with channels pruned and each
layer's weights coded at random among what the profile offers. Vela's estimate of each of its kernels is an observation;
a row of the table is the mean over all observations of one kernel, since the figures of a kernel differ with what runs
before it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from autocomp.compress.masks import GROUP
from autocomp.compress.synthetic import GaussianWeights
from autocomp.compress.trace import trace
from autocomp.display import Display
from autocomp.errors import UserError
from autocomp.hardware.ethos_u.accelerator import Accelerator
from autocomp.hardware.ethos_u.compiler import Vela
from autocomp.hardware.ethos_u.observations import Observation, Observations
from autocomp.hardware.ethos_u.observe import encoded_bytes, observe
from autocomp.hardware.ethos_u.pooling import with_copies
from autocomp.hardware.profile import HardwareProfile
from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Kernel
from autocomp.network import LayerSpec, NetworkSpec
from autocomp.policy import CLUSTERS, INT8, WEIGHT_BITS, LayerPolicy, Policy, Sparsity, Zeros, clustered
from autocomp.space import kept_channels
from autocomp.tasks import pooled
from autocomp.tasks.architectures import ARCHITECTURES, build

#: A family of one network, of poolings.
POOLED = "pooled"
#: Networks, with sides of their images in pixels.
FAMILIES: Mapping[str, tuple[int, ...]] = {
    "mobilenet_v2": (64, 96, 128, 160, 192, 224),
    "resnet20": (24, 32, 48, 64),
    "squeezenet": (64, 96, 128, 192, 224),
    "efficientnet_lite0": (64, 96, 128, 160, 192, 224),
    "mobilenet_v1": (64, 96, 128, 160, 192, 224),
    "resnet18": (64, 96, 128, 160, 224),
    POOLED: (28, 33, 56, 64, 90, 112),
}
#: Networks are compiled until the table has so many rows.
MOST_ROWS = 3300
_ROUNDS = 64
_ZEROS: tuple[Zeros, ...] = (0.0, 0.0, 0.0, 0.5, 0.75, 0.9, Sparsity(0.5, "2:4"))
#: Of every so many rounds, in one all layers are coded alike; else each layer has a coding of its own.
_ALIKE_EVERY = 3
_FEWEST_KEPT = 0.3


@dataclass(frozen=True)
class NpuFilling:
    """What filling came to. path: of the table; networks: compiled in all."""

    path: Path
    table: LatencyTable
    networks: int
    seconds: float
    interrupted: bool = False

    def document(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "table": str(self.path), "rows": len(self.table), "networks": self.networks,
            "seconds": round(self.seconds, 1), "interrupted": self.interrupted,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """For a person."""
        return [
            f"table             {self.path}",
            f"compiled          {self.networks} networks with {len(self.table):,} kernels, in {self.seconds:.0f} s",
        ]


def fill_by_compiler(
    profile: HardwareProfile,
    display: Display,
    *,
    out: Path,
    minutes: float | None = None,
    fresh: bool = False,
    families: Mapping[str, tuple[int, ...]] = FAMILIES,
    most_rows: int = MOST_ROWS,
) -> NpuFilling:
    """Write `out`/<profile>.csv by Vela; the same command always writes the same bytes.

    What was compiled is kept beside it in <profile>.observations.jsonl, so that the next call goes on; `fresh` discards
    it before. minutes: at most. UserError where the profile is no NPU's, or Vela is not installed.
    """
    if profile.accelerator is None:
        raise UserError(f"{profile.name} is not made by a compiler: it names no accelerator")
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    kept = out / f"{profile.name}.observations.jsonl"
    if fresh:
        kept.unlink(missing_ok=True)
    interrupted = False
    with Vela() as vela, TemporaryDirectory(prefix="autocomp-npu-") as folder:
        seen = Observations(kept, profile.accelerator, vela.version)
        source = _Source(profile, profile.accelerator, vela, Path(folder))
        try:
            for turn, family in product(range(_ROUNDS), families):
                late = minutes is not None and time.monotonic() > began + 60 * minutes
                if late or len(seen.kernels) >= most_rows:
                    break
                display.phase("compiling networks", total=most_rows, detail=family)
                name = f"{family} {turn}"
                if name not in seen.networks:
                    seen.add(name, source.observations(family, families[family], turn))
                display.advance(len(seen.kernels))
            display.phase("compiling layers", total=len(seen.kernels))
            for done, kernel in enumerate(seen.kernels):
                if kernel.coding is not None and kernel not in seen.encoded:
                    seen.add_encoded(kernel, source.encoded(kernel))
                display.advance(done + 1)
        except KeyboardInterrupt:
            interrupted = True
            display.note("interrupted; what was compiled is kept, and the same command goes on")
    path, table = out / f"{profile.name}.csv", seen.table()
    if table and not interrupted:
        table.write(path)
    return NpuFilling(path, table, len(seen.networks), time.monotonic() - began, interrupted)


class _Source:
    """Networks and their compiler."""

    def __init__(self, profile: HardwareProfile, accelerator: Accelerator, vela: Vela, folder: Path) -> None:
        self._profile, self._accelerator, self._vela, self._folder = profile, accelerator, vela, folder
        self._traced: dict[str, NetworkSpec] = {}

    def observations(self, family: str, sides: Sequence[int], turn: int) -> list[Observation]:
        """Of the kernels of one network: the first of each family is plain int8 in full width."""
        if family not in self._traced:
            module, example = _network(family)
            self._traced[family] = trace(module, example, family).spec
        side = pooled.SIDE if family == POOLED else ARCHITECTURES[family].side
        seed = crc32(f"{family} {turn}".encode())
        rng = np.random.default_rng(seed)
        spec = with_copies(_resized(self._traced[family], Fraction(int(rng.choice(sides)), side)))
        policy = random_policy(spec, self._profile, rng, turn)
        weights = GaussianWeights(seed)
        compiled, cycles = observe(
            spec, policy, lambda layer, chosen: weights.levels(layer.shape(chosen), chosen.layer(layer.name)),
            self._vela, self._accelerator, self._folder,
        )  # fmt: skip
        us = 1000 * compiled.latency_ms / compiled.cycles
        return [
            Observation(
                spec.kernels[index].kernel("int8", policy, coded=True), us * found.total, us * found.array,
                us * found.memory, us * found.weights,
            )
            for index, found in cycles.items()
        ]  # fmt: skip

    def encoded(self, kernel: Kernel) -> int:
        """Bytes that the weights of `kernel` take in a compiled file."""
        assert kernel.coding is not None
        shape = (kernel.out_channels, kernel.in_channels // kernel.groups, kernel.kernel_h, kernel.kernel_w)
        weights = GaussianWeights(0).levels(shape[:2] if kernel.op == "linear" else shape, kernel.coding.decision)
        return encoded_bytes(kernel, weights, self._vela, self._accelerator, self._folder)


def _network(family: str) -> tuple[nn.Module, Tensor]:
    """A network of a family, and an example for it."""
    if family == POOLED:
        return pooled.Pooled().eval(), torch.zeros(2, 3, pooled.SIDE, pooled.SIDE)
    network = build(family)
    return network.module, network.example


def random_policy(spec: NetworkSpec, profile: HardwareProfile, rng: np.random.Generator, turn: int) -> Policy:
    """What a search may choose: plain int8 in turn 0, else codings that the profile executes, and pruned channels."""
    if turn == 0:
        return Policy({layer.name: INT8 for layer in spec.layers})
    alike = _random_coding(rng)
    layers = {}
    for layer in spec.layers:
        decision = alike if turn % _ALIKE_EVERY == 1 else _random_coding(rng)
        layers[layer.name] = decision if _fits(layer, decision, profile) else INT8
    least = rng.uniform(_FEWEST_KEPT, 1)
    kept = {
        group.name: kept_channels(group.channels, rng.uniform(least, 1), profile.channel_multiple)
        for group in spec.groups
        if group.prunable
    }
    policy = Policy(layers, kept if turn % 2 else {})
    ragged = [
        layer.name
        for layer in spec.layers
        if policy.layer(layer.name).pattern == "2:4" and layer.shape(policy)[1] % GROUP
    ]
    return Policy({**policy.layers, **dict.fromkeys(ragged, INT8)}, policy.channels)


def _random_coding(rng: np.random.Generator) -> LayerPolicy:
    codes = [*(LayerPolicy(bits, "int8") for bits in WEIGHT_BITS), *(clustered(count) for count in CLUSTERS)]
    return codes[rng.integers(len(codes))].with_zeros(_ZEROS[rng.integers(len(_ZEROS))])


def _fits(layer: LayerSpec, decision: LayerPolicy, profile: HardwareProfile) -> bool:
    return profile.veto(layer, decision) is None


def _resized(spec: NetworkSpec, ratio: Fraction) -> NetworkSpec:
    """The network on an image `ratio` times as large; sizes are rounded up, as windows of stride 2 do."""

    def scaled(size: int) -> int:
        return -(-size * ratio.numerator // ratio.denominator)

    kernels = tuple(
        node if node.height * node.width == 1 else replace(node, height=scaled(node.height), width=scaled(node.width))
        for node in spec.kernels
    )
    channels, height, width = spec.input_shape
    return replace(spec, kernels=kernels, input_shape=(channels, scaled(height), scaled(width)))
