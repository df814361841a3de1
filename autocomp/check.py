"""Holds this machine's latency table against whole networks that it was not made from.

Networks of several families are pruned to odd channel counts, quantized in part, exported like any candidate, and
timed whole, in rounds with a reference kernel between them. Beside the estimate stand the usual ways to guess a
latency: the sum of single operators in float, and regressions on multiply-accumulates and on bytes, which are given
an advantage: they are fitted to the timed networks themselves, each one left out in its turn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from autocomp.compress.network import QuantizedNetwork
from autocomp.compress.trace import Traced, trace
from autocomp.display import Display
from autocomp.errors import UserError
from autocomp.export.writer import OnnxWriter
from autocomp.hardware.cost import network_kernels
from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.kernel_models import kernel_model
from autocomp.hardware.latencies import known_latencies
from autocomp.hardware.local import LocalDevice, local_device
from autocomp.hardware.profile import HardwareProfile
from autocomp.hardware.profiling.chains import REFERENCE
from autocomp.kernel import Kernel
from autocomp.network import NetworkSpec
from autocomp.policy import INT8, Policy
from autocomp.tasks.architectures import build

Floats = NDArray[np.float64]

#: Architecture, side of its image in pixels, width. `profile` widens a table over such families and sides, but
#: with other channel counts and precisions.
BASES = (
    ("mobilenet_v2", 96, 1.0), ("efficientnet_lite0", 160, 1.0), ("resnet20", 32, 1.0), ("squeezenet", 160, 1.0),
    ("mobilenet_v1", 192, 0.75), ("mobilenet_v2", 192, 0.75), ("efficientnet_lite0", 224, 1.0), ("resnet18", 112, 0.5),
    ("squeezenet", 224, 0.5), ("mobilenet_v1", 128, 1.0),
)  # fmt: skip
#: Share of the layers that run as int8, network by network; the first two of each base are not pruned.
_INT8_SHARES = (0.0, 1.0, 0.5, 0.8, 0.2)
_WHOLE, _FEWEST_KEPT = 2, 0.4
_ROUNDS = 20
_WITHIN = 0.1


@dataclass(frozen=True, slots=True)
class Timed:
    """One network. us: timed whole; halves_us: by the first and by the second half of the rounds alone.

    estimate_us, low_us, high_us: by the table.
    single_operators_us: the sum of its operators in float32, without conversions. extrapolated: share of the estimate
    outside what the table measured.
    """

    name: str
    kernels: int
    int8_kernels: int
    macs: int
    size_bytes: int
    us: float
    halves_us: tuple[float, float]
    estimate_us: float
    low_us: float
    high_us: float
    single_operators_us: float
    extrapolated: float

    @property
    def error(self) -> float:
        return self.estimate_us / self.us - 1


@dataclass(frozen=True)
class Check:
    """What a check came to. reference_drift: of the reference kernel over the rounds, a fraction.

    processor: what the networks were timed on. runtime: version of ONNX Runtime.
    """

    networks: tuple[Timed, ...]
    reference_drift: float
    rows: int
    processor: str
    runtime: str

    def document(self) -> dict[str, Any]:
        """Errors in percent, shares as fractions; see `score`."""
        networks = self.networks
        us = np.array([network.us for network in networks])
        estimate = np.array([network.estimate_us for network in networks])
        inside = [network.low_us <= network.us <= network.high_us for network in networks]
        macs, size = (np.array([getattr(n, name) for n in networks], float) for name in ("macs", "size_bytes"))
        return {
            "networks": len(networks),
            **score(estimate, us),
            "band_coverage": round(float(np.mean(inside)), 3),
            "noise": score(*np.array([network.halves_us for network in networks]).T),
            "baselines": {
                "single_operators_fp32": score(np.array([n.single_operators_us for n in networks]), us),
                "macs_regression": score(left_out_fit(macs, us), us),
                "bytes_regression": score(left_out_fit(size, us), us),
            },
            "table_rows": self.rows,
            "reference_drift": round(self.reference_drift, 3),
            "processor": self.processor,
            "runtime": f"onnxruntime {self.runtime}",
            "date": date.today().isoformat(),
            "each": [{**asdict(network), "error": network.error} for network in networks],
        }


def score(estimates: Floats, truth: Floats) -> dict[str, float]:
    """mape: mean absolute error in percent. within_10pct: share of networks within ±10 %. spearman: of the ranks."""
    errors = np.abs(estimates / truth - 1)
    rank = float(spearmanr(estimates, truth).statistic) if len(truth) > 2 else 1.0
    return {
        "mape": round(100 * float(errors.mean()), 2),
        "within_10pct": round(float((errors <= _WITHIN).mean()), 3),
        "spearman": round(rank, 3),
    }


def left_out_fit(sizes: Floats, us: Floats) -> Floats:
    """us ≈ a + b · sizes with the least relative error, for each network fitted to all others; (n,)."""
    terms = np.stack([np.ones_like(sizes), sizes], axis=1) / us[:, None]
    found = np.empty_like(us)
    for index in range(len(us)):
        others = np.arange(len(us)) != index
        weights = np.linalg.lstsq(terms[others], np.ones(len(us) - 1))[0]
        found[index] = max(float(terms[index] @ weights) * us[index], 1e-3)
    return found


def check_host(profile: HardwareProfile, networks: int, display: Display, *, seed: int = 0) -> Check:
    """Check the table of this machine on so many networks, the same for one `seed`.

    UserError where `profile` is not this machine or not at hand, or nothing was measured on it yet.
    """
    if not profile.on_the_spot:
        raise UserError(
            f"{profile.name} is not this machine ({profile.device}), so networks cannot be timed for it here; "
            f"its profile says how far off it is: autocomp hw show {profile.name}"
        )
    device, table = local_device(profile), known_latencies(profile)
    if not table:
        raise UserError(
            f"nothing was measured on this machine yet: autocomp profile {profile.name} --space efficientnet_lite0"
        )
    display.phase("fitting the estimator", detail=f"{len(table)} rows")
    model = LatencyModel.from_table(table, profile.calibration)
    with TemporaryDirectory(prefix="autocomp-check-") as folder:
        subjects = list(make_subjects(profile, networks, seed, Path(folder), display))
        times, reference = time_subjects(subjects, device, display)
    timed = tuple(_timed(subject, rounds, device, model) for subject, rounds in zip(subjects, times, strict=True))
    drift = float(np.median(reference) / np.min(reference) - 1)
    return Check(timed, drift, len(table), device.machine.processor, device.machine.onnxruntime)


@dataclass(frozen=True, slots=True)
class Subject:
    name: str
    path: Path
    input_shape: tuple[int, ...]
    kernels: tuple[Kernel, ...]
    macs: int
    size_bytes: int


def make_subjects(
    profile: HardwareProfile, networks: int, seed: int, folder: Path, display: Display
) -> Iterator[Subject]:
    """Files of so many networks, taken in turn from `BASES`."""
    torch.set_num_threads(1)
    display.phase("exporting networks", total=networks)
    done = 0
    for index, (name, side, width) in enumerate(BASES[:networks]):
        network = build(name, side=side, width=width)
        traced = trace(network.module, network.example, f"{name}_{side}", folder / f"{name}_{side}")
        writer = OnnxWriter(traced, unsigned_weights=profile.unsigned_weights)
        for variant, _ in enumerate(range(index, networks, len(BASES))):
            policy = _any_policy(traced.spec, profile, variant, np.random.default_rng((seed, index, variant)))
            path = folder / f"{name}_{side}_{variant}.onnx"
            size = _write(traced, writer, policy, path)
            kernels = tuple(kernel for kernel, _ in network_kernels(traced.spec, policy))
            yield Subject(path.stem, path, traced.spec.input_shape, kernels, traced.spec.macs(policy), size)
            done += 1
            display.advance(done)


def _any_policy(spec: NetworkSpec, profile: HardwareProfile, variant: int, rng: np.random.Generator) -> Policy:
    """A policy with a share of int8 layers, pruned at random to any channel counts but for the first variants."""
    share = _INT8_SHARES[variant % len(_INT8_SHARES)]
    layers = {layer.name: INT8 for layer in spec.layers if rng.random() < share and profile.veto(layer, INT8) is None}
    least = rng.uniform(_FEWEST_KEPT, 1)
    kept = {
        group.name: max(1, round(group.channels * rng.uniform(least, 1))) for group in spec.groups if group.prunable
    }
    return Policy(layers, kept if variant >= _WHOLE else {})


def _write(traced: Traced, writer: OnnxWriter, policy: Policy, path: Path) -> int:
    network = QuantizedNetwork(traced, policy)
    generator = torch.Generator().manual_seed(0)
    network.quantize([torch.randn((2, *traced.spec.input_shape), generator=generator)], correct_bias=False)
    return writer.write(network.freeze(), path)


def time_subjects(
    subjects: Sequence[Subject], device: LocalDevice, display: Display
) -> tuple[list[list[float]], list[float]]:
    """Microseconds of each network on `device`, round by round, and of the reference kernel in the same rounds."""
    rng = np.random.default_rng(0)
    models = [
        device.bind(str(subject.path), rng.standard_normal((1, *subject.input_shape)).astype(np.float32))
        for subject in subjects
    ]
    time_reference = device.bind(kernel_model(REFERENCE, 2), None)
    times: list[list[float]] = [[] for _ in models]
    reference: list[float] = []
    display.phase("timing networks", total=_ROUNDS)
    for done in range(_ROUNDS):
        for time_model, rounds in zip(models, times, strict=True):
            rounds.append(time_model())
        reference.append(time_reference())
        display.advance(done + 1)
    return times, reference


def _timed(subject: Subject, rounds: list[float], device: LocalDevice, model: LatencyModel) -> Timed:
    estimate = model.predict(subject.kernels)
    operators = [replace(k, precision="fp32") for k in subject.kernels if k.op not in ("quantize", "dequantize")]
    total, low, high = estimate.total_us
    # The same file timed twice, as it were.
    first, second = (device.typical(half) for half in (rounds[: len(rounds) // 2], rounds[len(rounds) // 2 :]))
    return Timed(
        subject.name, len(subject.kernels), sum(k.precision == "int8" for k in subject.kernels), subject.macs,
        subject.size_bytes, device.typical(rounds), (first, second), total,
        low, high, float(model.predict(operators).us.sum()),
        float(estimate.us[estimate.extrapolated].sum()) / total,
    )  # fmt: skip
