"""From settings to a task that is ready to be searched: traced, its space and its costs known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from autocomp.artifact import Target
from autocomp.bench import Bench
from autocomp.budget import Budget
from autocomp.compress.trace import trace
from autocomp.compress.trace_cache import TraceCache
from autocomp.controllers.repair import nearest_fit, smallest_reachable
from autocomp.devices import Device, Devices
from autocomp.display import Display
from autocomp.errors import UserError
from autocomp.export.size import FileSizes
from autocomp.export.writer import OnnxWriter
from autocomp.hardware.choices import choosable_kernels
from autocomp.hardware.cost import CostModel, Sizes, network_kernels
from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.ethos_u.compiler import vela_version
from autocomp.hardware.ethos_u.sizes import CompiledSizes
from autocomp.hardware.latencies import at_hand, known_latencies, latencies_for
from autocomp.hardware.profile import HardwareProfile, find_profile
from autocomp.hardware.strict import within_measured_range
from autocomp.network import LayerSpec, NetworkSpec
from autocomp.policy import INT8, LayerPolicy, Policy
from autocomp.settings import SearchSettings
from autocomp.space import SearchSpace, Veto
from autocomp.tasks import Task, load_task
from autocomp.tasks.spaces import load_space
from autocomp.tflite.schema import load_schema


@dataclass
class Prepared:
    """A task ready to be searched: traced, its space and its costs known."""

    settings: SearchSettings
    task: Task
    bench: Bench
    space: SearchSpace
    devices: Devices

    @property
    def profile(self) -> HardwareProfile:
        """Of the primary device."""
        return self.devices.primary.profile

    @property
    def cost(self) -> CostModel:
        """Of the primary device."""
        return self.devices.primary.cost

    @property
    def provenance(self) -> str:
        """Of the primary device's latencies."""
        return self.profile.provenance_note

    @property
    def targets(self) -> tuple[Target, ...]:
        """What files are made for, the primary device first."""
        return tuple(Target.of(device.profile, device.budget) for device in self.devices)


def prepare(settings: SearchSettings, display: Display, folder: Path) -> Prepared:
    """Load and trace the task, fill or read the latency table, build space and costs; the bench goes to `folder`."""
    profiles = [at_hand(find_profile(name)) for name in settings.profiles]
    for profile in profiles:
        if profile.integer_only:  # what is missing is worth knowing before a network is trained
            vela_version()
            load_schema()
        if profile.staleness is not None:
            display.note(f"warning: {profile.staleness}")
    task = _load_task(settings, display)
    display.phase("tracing the network", detail=task.name)
    bench = Bench.make(task, folder)
    for note in bench.notes:
        display.note(note)
    traced = bench.traced
    _say_what_changed(traced.spec, display)
    for profile in profiles:
        _check_expressible(traced.spec, profile)
    options = replace(task.space, channel_multiple=math.lcm(*(profile.channel_multiple for profile in profiles)))
    space = SearchSpace.build(traced.spec, options, common_veto(profiles))
    latencies = [_latency_model(profile, traced.spec, space, display) for profile in profiles]
    if settings.strict:
        for profile, latency in zip(profiles, latencies, strict=True):
            known = known_latencies(profile)
            space = within_measured_range(space, latency, known, integer_only=profile.integer_only)
    display.phase("tabulating costs", detail=f"{len(space)} decisions")
    unsigned = any(profile.unsigned_weights for profile in profiles)
    of_onnx = FileSizes(OnnxWriter(traced, unsigned_weights=unsigned))
    devices = [
        Device(profile, _costs(space, latency, of_onnx), settings.budget_of(profile.name))
        for profile, latency in zip(profiles, latencies, strict=True)
    ]
    for device in devices:
        if device.cost.beyond_table > 0:
            table = "the table" if len(devices) == 1 else f"the table of {device.name}"
            display.note(
                f"{math.ceil(100 * device.cost.beyond_table)} % of the kernels that candidates may need lie outside "
                f"the measured range of {table}: their latency is extrapolated, with a wide band; --strict leaves such "
                "choices out"
            )
    return Prepared(settings, task, bench, space, Devices(devices, space.largest))


def _check_expressible(network: NetworkSpec, profile: HardwareProfile) -> None:
    """UserError naming a part of `network` that a device without floating point cannot execute."""
    if not profile.integer_only:
        return
    if sum(kernel.output for kernel in network.kernels) > 1:
        raise UserError(
            f"--hw {profile.name}: the network returns several tensors, an int8 .tflite file has one: hand over a "
            "module that returns the one that counts, or search for another device"
        )
    for layer in network.layers:
        refusal = profile.veto(layer, INT8)
        if refusal is not None:
            raise UserError(
                f"--hw {profile.name}: layer {layer.name}: {refusal} The device has no floating point, so that every "
                "layer must run as int8: replace the layer in the network, or search for another device"
            )


def _costs(space: SearchSpace, latency: LatencyModel, of_onnx: Sizes) -> CostModel:
    """On an NPU, whose table tells encoded bytes, bytes are those of the compiled file."""
    if latency.encoded is None:
        return CostModel(space, latency, of_onnx)
    return CostModel(space, latency, CompiledSizes(space.network, latency.encoded), integer_only=True)


def common_veto(profiles: Sequence[HardwareProfile]) -> Veto:
    """Why some of the devices cannot execute a layer under a decision, with its name where there are several."""
    if len(profiles) == 1:
        return profiles[0].veto

    def veto(layer: LayerSpec, decision: LayerPolicy) -> str | None:
        refusals = ((profile.name, profile.veto(layer, decision)) for profile in profiles)
        return next((f"{name}: {reason}" for name, reason in refusals if reason is not None), None)

    return veto


def trace_task(settings: SearchSettings, display: Display, folder: Path) -> NetworkSpec:
    """The network that `settings` name; what `prepare` does of it, without what only a search needs."""
    task = _load_task(settings, display)
    display.phase("tracing the network", detail=task.name)
    spec = trace(task.network, task.example, task.name, folder, TraceCache(), task.output).spec
    _say_what_changed(spec, display)
    return spec


def _say_what_changed(network: NetworkSpec, display: Display) -> None:
    """Notes on what tracing did to the network."""
    for left in network.left_alone:
        if left.what == "trace":
            display.note(f"{left.name}: {left.reason}")


def _load_task(settings: SearchSettings, display: Display) -> Task:
    torch.set_num_threads(1)  # two threads spin against whatever else runs, and cost reproducibility
    task = load_task(settings.request, display)
    if settings.space is not None and ":" in settings.task:
        task.space, task.space_name = load_space(settings.space).options, settings.space
    return task


def _latency_model(
    profile: HardwareProfile, network: NetworkSpec, space: SearchSpace, display: Display
) -> LatencyModel:
    if not profile.on_the_spot:
        return LatencyModel.from_table(profile.latencies, profile.calibration)
    # The kernels of whole networks come first: the estimator then interpolates between them and what is pruned.
    first = [k for policy in (Policy(), plain_int8(network, profile)) for k, _ in network_kernels(network, policy)]
    kernels = list(dict.fromkeys([*first, *choosable_kernels(space)]))
    display.phase("measuring this machine's kernels", total=len(kernels), detail="cached for the next run")
    table = latencies_for(profile, kernels, lambda done, total, left: display.advance(done))
    return LatencyModel.from_table(table, profile.calibration)


def plain_int8(network: NetworkSpec, *profiles: HardwareProfile) -> Policy:
    """Everything int8 that all the devices can execute as such."""
    veto = common_veto(profiles)
    return Policy({layer.name: INT8 for layer in network.layers if veto(layer, INT8) is None})


def check_reachable(prepared: Prepared) -> None:
    """UserError where nothing in the space fits the budget: nearest candidate, binding constraint, smallest budget."""
    space, devices = prepared.space, prepared.devices
    nearest = devices.figures(nearest_fit(space, devices.joint_costs, devices.joint_budget))
    broken = devices.broken(nearest)
    if broken is None:
        return
    device, figures, constraint = broken
    own = Devices([device], space.largest)  # the least that this device can be brought to, whatever the others take
    least = (float(values.min()) for values in own.joint_costs(np.stack(smallest_reachable(space, own.joint_costs))))
    there = f" on {device.name}" if devices.several else ""
    raise UserError(
        f"nothing in the space fits the budget of {device.budget}{there}: the nearest candidate takes "
        f"{_spelled(device.budget, *figures.bounded)}, and {constraint} binds; "
        f"the smallest reachable are {_spelled(device.budget, *least)}: "
        "raise the budget to that or offer stronger compression with --space"
    )


def _spelled(budget: Budget, size_bytes: float, latency_ms: float, memory_bytes: float) -> str:
    """Costs as text; memory only where it is bounded."""
    text = f"{size_bytes:,.0f} bytes and {latency_ms:.4g} ms"
    return text if budget.memory_bytes is None else f"{text} and {memory_bytes:,.0f} bytes of memory"
