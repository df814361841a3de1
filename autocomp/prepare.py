"""From settings to a task that is ready to be searched: traced, its space and its costs known."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autocomp.bench import Bench
from autocomp.budget import Budget
from autocomp.compress.trace import trace
from autocomp.controllers import CostFunction, Costs
from autocomp.controllers.repair import nearest_fit, smallest_reachable
from autocomp.display import Display
from autocomp.errors import UserError
from autocomp.export.size import FileSizes
from autocomp.export.writer import OnnxWriter
from autocomp.hardware.choices import choosable_kernels
from autocomp.hardware.cost import CostModel, network_kernels
from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.latencies import known_latencies, latencies_for
from autocomp.hardware.profile import HardwareProfile, find_profile
from autocomp.hardware.strict import within_measured_range
from autocomp.network import NetworkSpec
from autocomp.policy import INT8, Policy
from autocomp.settings import SearchSettings
from autocomp.space import SearchSpace
from autocomp.tasks import Task, load_task
from autocomp.tasks.spaces import load_space


@dataclass
class Prepared:
    """A task ready to be searched: traced, its space and its costs known."""

    settings: SearchSettings
    task: Task
    bench: Bench
    profile: HardwareProfile
    space: SearchSpace
    cost: CostModel

    @property
    def provenance(self) -> str:
        return self.profile.provenance_note


def prepare(settings: SearchSettings, display: Display, folder: Path) -> Prepared:
    """Load and trace the task, fill or read the latency table, build space and costs; the bench goes to `folder`."""
    profile = find_profile(settings.hw)
    if not profile.on_the_spot:
        _ = profile.latencies  # a fault in the table is worth knowing before a network is trained
    if profile.staleness is not None:
        display.note(f"warning: {profile.staleness}")
    task = _load_task(settings, display)
    display.phase("tracing the network", detail=task.name)
    bench = Bench.make(task, folder)
    traced = bench.traced
    options = replace(task.space, channel_multiple=profile.channel_multiple)
    space = SearchSpace.build(traced.spec, options, profile.veto)
    latency = _latency_model(profile, traced.spec, space, display)
    if settings.strict:
        space = within_measured_range(space, latency, known_latencies(profile))
    display.phase("tabulating costs", detail=f"{len(space)} decisions")
    cost = CostModel(space, latency, FileSizes(OnnxWriter(traced)))
    if cost.beyond_table > 0:
        display.note(
            f"{math.ceil(100 * cost.beyond_table)} % of the kernels that candidates may need lie outside the measured "
            "range of the table: their latency is extrapolated, with a wide band; --strict leaves such choices out"
        )
    return Prepared(settings, task, bench, profile, space, cost)


def trace_task(settings: SearchSettings, display: Display, folder: Path) -> NetworkSpec:
    """The network that `settings` name; what `prepare` does of it, without what only a search needs."""
    task = _load_task(settings, display)
    display.phase("tracing the network", detail=task.name)
    return trace(task.network, task.example, task.name, folder).spec


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
    kernels = list(dict.fromkeys([*first, *choosable_kernels(network, space)]))
    display.phase("measuring this machine's kernels", total=len(kernels), detail="cached for the next run")
    table = latencies_for(profile, kernels, lambda done, total, left: display.advance(done))
    return LatencyModel.from_table(table, profile.calibration)


def plain_int8(network: NetworkSpec, profile: HardwareProfile) -> Policy:
    """Everything int8 that the device can execute as such."""
    return Policy({layer.name: INT8 for layer in network.layers if profile.veto(layer, INT8) is None})


def controller_cost(model: CostModel) -> CostFunction:
    """What a controller may know of the costs: bytes, milliseconds and memory, without bands."""

    def cost(genes: Any) -> Costs:
        full = model(genes)
        return Costs(full.size_bytes, full.latency_ms, full.memory_bytes)

    return cost


def check_reachable(prepared: Prepared) -> None:
    """UserError where nothing in the space fits the budget: nearest candidate, binding constraint, smallest budget."""
    budget, space, cost = prepared.settings.budget, prepared.space, controller_cost(prepared.cost)
    size, latency, memory = (float(values[0]) for values in cost(nearest_fit(space, cost, budget)[None]))
    if budget.admits(size, latency, memory):
        return
    least = (float(values.min()) for values in cost(np.stack(smallest_reachable(space, cost))))
    raise UserError(
        f"nothing in the space fits the budget of {budget}: the nearest candidate takes "
        f"{_spelled(budget, size, latency, memory)}, and {budget.binding(size, latency, memory)} binds; "
        f"the smallest reachable are {_spelled(budget, *least)}: "
        "raise the budget to that or offer stronger compression with --space"
    )


def _spelled(budget: Budget, size_bytes: float, latency_ms: float, memory_bytes: float) -> str:
    """Costs as text; memory only where it is bounded."""
    text = f"{size_bytes:,.0f} bytes and {latency_ms:.4g} ms"
    return text if budget.memory_bytes is None else f"{text} and {memory_bytes:,.0f} bytes of memory"
