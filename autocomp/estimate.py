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
from autocomp.hardware.breakdown import Breakdown, break_down
from autocomp.hardware.cost import network_kernels
from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.latencies import known_latencies, latencies_for
from autocomp.hardware.profile import HardwareProfile
from autocomp.hardware.roofline import CONVERSIONS, Roofline
from autocomp.kernel import Kernel
from autocomp.policy import Policy
from autocomp.search import SearchSettings, plain_int8, prepare, trace_task

#: The kernels of a network in order, each with the name of the layer or node that it executes.
NamedKernels = Sequence[tuple[Kernel, str]]


@dataclass(frozen=True, slots=True)
class NetworkEstimate:
    """One version of a network on one device. size_bytes: of its file; None where no file was considered."""

    name: str
    breakdown: Breakdown
    size_bytes: int | None = None

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
            asked = {"float": Policy(), "int8": plain_int8(spec, profile)}
        else:
            check_policy(spec, policy)
            profile.check_executable(spec, policy, origin)
            asked = {Path(origin).name: policy}
        device = _Device(profile, prepared.cost.latency, Roofline(known_latencies(profile)))
        networks = []
        for name, version in asked.items():
            size_bytes = round(float(prepared.cost.of_policy(version).size_bytes[0]))
            networks.append(device.estimate(name, _named(network_kernels(spec, version)), size_bytes))
    return DeviceEstimate(profile, tuple(networks))


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
    if policy is not None:
        check_policy(spec, policy)
    found = []
    for profile in profiles:
        if policy is not None:
            profile.check_executable(spec, policy, origin)
        versions = {
            "float": Policy(),
            **({Path(origin).name: policy} if policy else {"int8": plain_int8(spec, profile)}),
        }
        kernels = {name: _named(network_kernels(spec, version)) for name, version in versions.items()}
        found.append(_on_device(profile, kernels, display))
    return found


def compare_file(path: Path, profiles: Sequence[HardwareProfile], display: Display) -> list[DeviceEstimate]:
    """The network in the ONNX file `path` on each of `profiles`, and ahead of it its float twin.

    The twin executes the same kernels in float32, without conversions. A file that is float has none.
    """
    from autocomp.export.kernels import file_kernels

    display.phase("reading the kernels that the runtime executes", detail=path.name)
    kernels = file_kernels(path)
    if not kernels:
        raise UserError(f"{path}: no kernel in it has a latency; expected a network such as `search` writes")
    versions: dict[str, NamedKernels] = {path.name: kernels}
    if any(kernel.precision != "fp32" for kernel, _ in kernels):
        versions = {"float": as_float(kernels), **versions}
    size_bytes = path.stat().st_size
    return [_on_device(profile, versions, display, {path.name: size_bytes}) for profile in profiles]


def as_float(kernels: NamedKernels) -> NamedKernels:
    """The same kernels in float32, where nothing has to be converted."""
    return [(replace(kernel, precision="fp32"), name) for kernel, name in kernels if kernel.op not in CONVERSIONS]


def _named(kernels: Sequence[tuple[Kernel, str | None]]) -> NamedKernels:
    return [(kernel, name or "") for kernel, name in kernels]


@dataclass(frozen=True, slots=True)
class _Device:
    profile: HardwareProfile
    model: LatencyModel
    roofline: Roofline

    def estimate(self, name: str, kernels: NamedKernels, size_bytes: int | None) -> NetworkEstimate:
        return NetworkEstimate(name, break_down(kernels, self.model, self.roofline), size_bytes)


def _on_device(
    profile: HardwareProfile, versions: dict[str, NamedKernels], display: Display, sizes: dict[str, int] | None = None
) -> DeviceEstimate:
    needed = list(dict.fromkeys(kernel for kernels in versions.values() for kernel, _ in kernels))
    if profile.on_the_spot:
        display.phase("measuring this machine's kernels", total=len(needed), detail="cached for the next time")
    table = latencies_for(profile, needed, lambda done, total, left: display.advance(done))
    display.phase("estimating", detail=profile.title)
    device = _Device(profile, LatencyModel.from_table(table, profile.calibration), Roofline(table))
    networks = (device.estimate(name, kernels, (sizes or {}).get(name)) for name, kernels in versions.items())
    return DeviceEstimate(profile, tuple(networks))
