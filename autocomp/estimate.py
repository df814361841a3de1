"""What a network would cost on devices, predicted: policies of a task, or an ONNX file. Nothing is trained or run.

On this machine (`host_cpu`) kernels that were never measured are measured first, for a minute at most.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autocomp.compress.prune import check_policy
from autocomp.display import Display
from autocomp.errors import UserError
from autocomp.export.kernels import file_kernels
from autocomp.hardware.breakdown import Breakdown, break_down
from autocomp.hardware.cost import network_kernels
from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.ethos_u.bottleneck import NpuLimits
from autocomp.hardware.latencies import known_latencies, latencies_for
from autocomp.hardware.memory import peak_memory
from autocomp.hardware.profile import HardwareProfile
from autocomp.hardware.roofline import CONVERSIONS, Roofline
from autocomp.hardware.strict import outside_range
from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Kernel
from autocomp.network import NetworkSpec
from autocomp.policy import Policy
from autocomp.prepare import plain_int8, prepare, trace_task
from autocomp.settings import SearchSettings

#: The kernels of a network in order, each with the name of the layer or node that it executes.
NamedKernels = Sequence[tuple[Kernel, str]]


@dataclass(frozen=True, slots=True)
class NetworkEstimate:
    """One version of a network on one device.

    size_bytes: of its file. memory_bytes: peak memory of activations, see `hardware.memory`. None where not known.
    """

    name: str
    breakdown: Breakdown
    size_bytes: int | None = None
    memory_bytes: int | None = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(line.kernel.macs for line in self.breakdown.kernels)


@dataclass(frozen=True, slots=True)
class DeviceEstimate:
    """Versions of one network on one device; the first is the float one where there are several."""

    profile: HardwareProfile
    networks: tuple[NetworkEstimate, ...]

    @property
    def gain(self) -> float | None:
        """How many times faster the last version is than the float one; None where there is one version only."""
        if len(self.networks) < 2:
            return None
        return self.networks[0].breakdown.latency_ms / self.networks[-1].breakdown.latency_ms


def estimate_task(settings: SearchSettings, policy: Policy | None, origin: str, display: Display) -> DeviceEstimate:
    """`policy` on the device of `settings`; without one, the float network and its plain int8 version.

    origin: the policy's file, which names it in errors and in the result. UserError where the policy does not fit the
    network, or asks for what the device does not execute.
    """
    with tempfile.TemporaryDirectory(prefix="autocomp-bench-") as folder:
        prepared = prepare(settings, display, Path(folder))
        spec, profile = prepared.bench.traced.spec, prepared.profile
        if policy is None:
            asked = _unchanged(profile) | {"int8": plain_int8(spec, profile)}
        else:
            _check(spec, policy, profile, origin)
            asked = {Path(origin).name: policy}
        costs = {name: prepared.cost.of_policy(version) for name, version in asked.items()}
        versions = [_version(spec, profile, n, p, round(float(costs[n].size_bytes[0]))) for n, p in asked.items()]
    return _estimated(profile, versions, prepared.cost.latency, known_latencies(profile))


def estimate_file(path: Path, profile: HardwareProfile, display: Display) -> DeviceEstimate:
    """The network in the ONNX file `path`, as ONNX Runtime executes it. UserError if it cannot be read."""
    (found,) = compare_file(path, [profile], display)
    return DeviceEstimate(profile, found.networks[-1:])


def compare_task(
    settings: SearchSettings, policy: Policy | None, origin: str, profiles: Sequence[HardwareProfile], display: Display
) -> list[DeviceEstimate]:
    """The float network, and beside it `policy` or else the plain int8 version, on each of `profiles`."""
    with tempfile.TemporaryDirectory(prefix="autocomp-bench-") as folder:
        spec = trace_task(settings, display, Path(folder))
    found = []
    for profile in profiles:
        if policy is not None:
            _check(spec, policy, profile, origin)
        other = {"int8": plain_int8(spec, profile)} if policy is None else {Path(origin).name: policy}
        asked = _unchanged(profile) | other
        found.append(_on_device(profile, [_version(spec, profile, n, p) for n, p in asked.items()], display))
    return found


def compare_file(path: Path, profiles: Sequence[HardwareProfile], display: Display) -> list[DeviceEstimate]:
    """The network in the ONNX file `path` on each of `profiles`, and ahead of it its float twin.

    The twin executes the same kernels in float32, without conversions. A file that is float has none.
    """
    display.phase("reading the kernels that the runtime executes", detail=path.name)
    kernels = file_kernels(path)
    if not kernels:
        raise UserError(f"{path}: no kernel in it has a latency; expected a network such as `search` writes")
    versions = [_Version(path.name, kernels, path.stat().st_size)]
    if any(kernel.precision != "fp32" for kernel, _ in kernels):
        versions.insert(0, _Version("float", as_float(kernels)))
    return [_on_device(profile, versions, display) for profile in profiles]


def refuse_extrapolated(estimate: DeviceEstimate) -> None:
    """UserError naming the first kernel that lies outside what the device's table measured."""
    for network in estimate.networks:
        for line in network.breakdown.kernels:
            if line.extrapolated:
                raise outside_range(line.kernel, line.name, known_latencies(estimate.profile))


def as_float(kernels: NamedKernels) -> NamedKernels:
    """The same kernels in float32, where nothing has to be converted."""
    return [(replace(kernel, precision="fp32"), name) for kernel, name in kernels if kernel.op not in CONVERSIONS]


@dataclass(frozen=True, slots=True)
class _Version:
    """One version of a network, before a device is asked about it; see `NetworkEstimate`."""

    name: str
    kernels: NamedKernels
    size_bytes: int | None = None
    memory_bytes: int | None = None


def _unchanged(profile: HardwareProfile) -> dict[str, Policy]:
    """The float network, where the device computes in floating point."""
    return {} if profile.integer_only else {"float": Policy()}


def _version(
    network: NetworkSpec, profile: HardwareProfile, name: str, policy: Policy, size_bytes: int | None = None
) -> _Version:
    integer_only = profile.integer_only
    kernels = [(k, layer or "") for k, layer in network_kernels(network, policy, integer_only=integer_only)]
    return _Version(name, kernels, size_bytes, peak_memory(network, policy, integer_only=integer_only))


def _skips_zeros(profile: HardwareProfile) -> bool:
    return any("2:4" in capability.patterns for capability in profile.executes)


def _check(network: NetworkSpec, policy: Policy, profile: HardwareProfile, origin: str) -> None:
    check_policy(network, policy)
    profile.check_executable(network, policy, origin)


def _on_device(profile: HardwareProfile, versions: Sequence[_Version], display: Display) -> DeviceEstimate:
    needed = list(dict.fromkeys(kernel for version in versions for kernel, _ in version.kernels))
    if profile.on_the_spot:
        display.phase("measuring this machine's kernels", total=len(needed), detail="cached for the next time")
    table = latencies_for(profile, needed, lambda done, total, left: display.advance(done))
    display.phase("estimating", detail=profile.title)
    return _estimated(profile, versions, LatencyModel.from_table(table, profile.calibration), table)


def _estimated(
    profile: HardwareProfile, versions: Sequence[_Version], model: LatencyModel, table: LatencyTable
) -> DeviceEstimate:
    npu = profile.integer_only
    limits = NpuLimits(model, skips_zeros=_skips_zeros(profile)) if npu else Roofline(table)
    networks = (
        NetworkEstimate(v.name, break_down(v.kernels, model, limits), v.size_bytes, v.memory_bytes) for v in versions
    )
    return DeviceEstimate(profile, tuple(networks))
