"""Holds an NPU's table against whole networks that it was not made from, compiled by Vela.

Networks of several families, on other images and of other widths than those that the table was made from, with weights
coded at random layer by layer and every other one pruned, are quantized and written like any candidate; Vela's estimate
for the whole file and the bytes of what it makes of it are the truth that the table's sums are held against.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from autocomp.check import BASES, score
from autocomp.compress.network import QuantizedNetwork
from autocomp.compress.trace import trace
from autocomp.display import Display
from autocomp.errors import UserError
from autocomp.export.tflite_writer import TfliteWriter
from autocomp.hardware.cost import network_kernels
from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.ethos_u.compiler import Compiled, Vela
from autocomp.hardware.ethos_u.sizes import CompiledSizes
from autocomp.hardware.profile import HardwareProfile
from autocomp.network import NetworkSpec
from autocomp.npu_profiling import random_policy
from autocomp.policy import Policy
from autocomp.tasks.architectures import build

#: Rounds of `random_policy`: codings layer by layer, whole and pruned; one coding for all, pruned.
_TURNS = (2, 3, 1, 5)


@dataclass(frozen=True, slots=True)
class CompiledNetwork:
    """One network, by Vela and by the table. cpu_operators: that Vela leaves to the CPU."""

    name: str
    kernels: int
    us: float
    estimate_us: float
    low_us: float
    high_us: float
    compiled_bytes: int
    estimate_bytes: int
    cpu_operators: int

    @property
    def error(self) -> float:
        return self.estimate_us / self.us - 1

    @property
    def size_error(self) -> float:
        return self.estimate_bytes / self.compiled_bytes - 1


@dataclass(frozen=True)
class NpuCheck:
    """What a check came to."""

    networks: tuple[CompiledNetwork, ...]
    rows: int
    vela_version: str

    def document(self) -> dict[str, Any]:
        """Errors in percent, shares as fractions."""
        each = self.networks
        us, estimate = (np.array([getattr(n, name) for n in each], float) for name in ("us", "estimate_us"))
        size, guessed = (np.array([getattr(n, name) for n in each], float) for name in _SIZES)
        return {
            "networks": len(each),
            **score(estimate, us),
            "largest_error": round(100 * float(np.abs(estimate / us - 1).max()), 2),
            "bytes_mape": score(guessed, size)["mape"],
            "bytes_largest_error": round(100 * float(np.abs(guessed / size - 1).max()), 2),
            "band_coverage": round(float(np.mean([n.low_us <= n.us <= n.high_us for n in each])), 3),
            "table_rows": self.rows,
            "runtime": f"ethos-u-vela {self.vela_version}",
            "date": date.today().isoformat(),
            "each": [{**asdict(n), "error": n.error, "size_error": n.size_error} for n in each],
        }


_SIZES = ("compiled_bytes", "estimate_bytes")


def check_npu(profile: HardwareProfile, networks: int, display: Display, *, seed: int = 0) -> NpuCheck:
    """Check the table of an NPU on so many networks, the same for one `seed`. UserError where Vela is not installed."""
    if profile.accelerator is None:
        raise UserError(f"{profile.name} is no NPU with a compiler")
    torch.set_num_threads(1)
    with Vela() as vela, TemporaryDirectory(prefix="autocomp-check-") as folder:
        display.phase("fitting the estimator", detail=f"{len(profile.latencies)} rows")
        model = LatencyModel.from_table(profile.latencies, profile.calibration)
        found = tuple(_compiled(profile, networks, seed, Path(folder), vela, model, display))
        return NpuCheck(found, len(profile.latencies), vela.version)


def _compiled(
    profile: HardwareProfile, networks: int, seed: int, folder: Path, vela: Vela, model: LatencyModel, display: Display
) -> Iterator[CompiledNetwork]:
    assert profile.accelerator is not None and model.encoded is not None
    display.phase("compiling networks", total=networks)
    done = 0
    for index, (name, side, width) in enumerate(BASES[:networks]):
        network = build(name, side=side, width=width)
        traced = trace(network.module, network.example, f"{name}_{side}", folder / f"{name}_{side}")
        writer, sizes = TfliteWriter(traced), CompiledSizes(traced.spec, model.encoded)
        for variant, _ in enumerate(range(index, networks, len(BASES))):
            rng = np.random.default_rng((seed, index, variant))
            policy = random_policy(traced.spec, profile, rng, _TURNS[variant % len(_TURNS)])
            quantized = QuantizedNetwork(traced, policy, integer_only=True)
            generator = torch.Generator().manual_seed(0)
            quantized.quantize([torch.randn((2, *traced.spec.input_shape), generator=generator)], correct_bias=False)
            path = folder / f"{name}_{side}_{variant}.tflite"
            writer.write(quantized.freeze(), path)
            compiled = vela.compile(path, folder, profile.accelerator)
            yield _held_against(path.stem, traced.spec, policy, compiled, model, sizes)
            done += 1
            display.advance(done)


def _held_against(
    name: str, network: NetworkSpec, policy: Policy, compiled: Compiled, model: LatencyModel, sizes: CompiledSizes
) -> CompiledNetwork:
    kernels = [kernel for kernel, _ in network_kernels(network, policy, integer_only=True)]
    total, low, high = model.predict(kernels).total_us
    return CompiledNetwork(
        name, len(kernels), 1000 * compiled.latency_ms, total, low, high, compiled.size_bytes,
        sizes.of_policy(policy), len(compiled.fallbacks),
    )  # fmt: skip
