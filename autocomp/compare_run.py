"""What each device would have chosen from a run: its candidates, which were trained and scored once, on every device.

Nothing is trained. On the devices that the run was for, candidates take what its journal says; on another one the
bytes of the run's primary device, and the latency by that device's table.
"""

import itertools
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from autocomp import rundir
from autocomp.budget import Budget
from autocomp.devices import Figures
from autocomp.display import Display
from autocomp.errors import UserError
from autocomp.front import non_dominated
from autocomp.hardware.cost import network_kernels
from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.latencies import latencies_for
from autocomp.hardware.memory import peak_memory
from autocomp.hardware.profile import HardwareProfile, find_profile, profile_names
from autocomp.journal import Entry
from autocomp.network import NetworkSpec
from autocomp.policy import Policy
from autocomp.prepare import trace_task
from autocomp.settings import SearchSettings

#: Loss of accuracy against the float network that a choice may have where the run bounded none.
ACCURACY_DROP = 0.005


@dataclass(frozen=True, slots=True)
class Scored:
    """A complete candidate of the run. accuracy: on the validation split, in [0, 1].

    recorded: what it takes on the devices that the run was for, by name, the primary one's first.
    """

    id: int
    policy: Policy
    accuracy: float
    recorded: Mapping[str, Figures]

    @property
    def size_bytes(self) -> float:
        """On the run's primary device."""
        return next(iter(self.recorded.values())).size_bytes


@dataclass(frozen=True)
class DeviceView:
    """The run's candidates as one device sees them.

    taken: by candidate, of those that it executes. refused: how many it does not, reason: why, of the first.
    front: ids that no other dominates in accuracy, bytes and the latency here, the fastest first.
    choice: see `chosen`; None where it executes nothing that fits its budget.
    """

    profile: HardwareProfile
    budget: Budget
    taken: Mapping[int, Figures]
    refused: int
    reason: str
    front: tuple[int, ...]
    choice: int | None

    @property
    def name(self) -> str:
        return self.profile.name


@dataclass(frozen=True)
class RunComparison:
    """A run on several devices, the one that it was for (its primary one) first.

    rank_correlations: (device, device) → Spearman's ρ of their latencies over the candidates that both execute; None
    where fewer than three are, or where one device takes equally long for all.
    """

    run: Path
    title: str
    float_accuracy: float
    candidates: Mapping[int, Scored]
    devices: tuple[DeviceView, ...]
    rank_correlations: Mapping[tuple[str, str], float | None]

    @property
    def run_choice(self) -> int | None:
        """What the run's primary device chooses."""
        return self.devices[0].choice

    def behind(self, device: DeviceView) -> tuple[float, float] | None:
        """How far the run's choice is from the device's own there: milliseconds slower, and accuracy gained (−: lost).

        None where either is missing, or the device does not execute the run's choice.
        """
        if self.run_choice is None or device.choice is None or self.run_choice not in device.taken:
            return None
        slower = device.taken[self.run_choice].latency_ms - device.taken[device.choice].latency_ms
        return slower, self.candidates[self.run_choice].accuracy - self.candidates[device.choice].accuracy


def compare_run(run: Path, hw: Sequence[str], display: Display) -> RunComparison:
    """`run` on the devices that it was for and on those of `hw`, or without any on all that ship with a table.

    UserError where the run has no complete candidate, or a device's latencies cannot be had.
    """
    settings = SearchSettings.of_run(run)
    data = rundir.read_run(run)
    profiles = _profiles([*settings.profiles, *(hw or _with_tables())])
    complete = [entry for entry in data.entries if entry.outcome.accuracy is not None]
    if not complete or data.float_reference is None:
        raise UserError(f"{run} has no complete candidate to compare; go on with it: autocomp resume {run}")
    with tempfile.TemporaryDirectory(prefix="autocomp-bench-") as folder:
        network = trace_task(settings, display, Path(folder))
    primary = profiles[0]
    candidates = {
        e.id: Scored(e.id, e.policy, e.outcome.accuracy or 0.0, _recorded(e, primary, network)) for e in complete
    }
    least = data.float_reference.accuracy - (
        ACCURACY_DROP if settings.budget.accuracy_drop is None else settings.budget.accuracy_drop
    )
    views = [
        _view(profile, network, candidates, settings.budget_of(profile.name), least, display) for profile in profiles
    ]
    return RunComparison(
        run, f"{data.settings.get('network') or data.settings.get('task', '')}", data.float_reference.accuracy,
        candidates, tuple(views), rank_correlations(views),
    )  # fmt: skip


def chosen(
    candidates: Sequence[Scored], taken: Mapping[int, Figures], budget: Budget, least_accuracy: float
) -> int | None:
    """What someone with this device takes: of what fits the budget, the fastest that is accurate enough.

    Where nothing is, the most accurate. Of equals the smaller, then the older. None where nothing fits.
    """
    fits = [c for c in candidates if budget.admits(*taken[c.id].bounded)]
    close = [c for c in fits if c.accuracy >= least_accuracy - 1e-9]

    def speed(candidate: Scored) -> tuple[float, float, int]:
        figures = taken[candidate.id]
        return figures.latency_ms, figures.size_bytes, candidate.id

    if close:
        return min(close, key=speed).id
    return min(fits, key=lambda c: (-c.accuracy, *speed(c))).id if fits else None


def _recorded(entry: Entry, primary: HardwareProfile, network: NetworkSpec) -> dict[str, Figures]:
    """What the journal says of the devices that the run was for."""
    if "devices" in entry.details:
        return {name: Figures(**figures) for name, figures in entry.details["devices"].items()}
    outcome = entry.outcome
    size, latency = float(outcome.size_bytes or 0), outcome.latency_ms or 0.0
    low, high = (latency if end is None else end for end in (entry.latency_low_ms, entry.latency_high_ms))
    memory = peak_memory(network, entry.policy, integer_only=primary.integer_only)
    return {primary.name: Figures(size, latency, low, high, memory)}


def _profiles(names: Sequence[str]) -> list[HardwareProfile]:
    """Each once, by its name: a device of the run may be named again."""
    profiles: dict[str, HardwareProfile] = {}
    for profile in map(find_profile, names):
        profiles.setdefault(profile.name, profile)
    return [*profiles.values()]


def _with_tables() -> list[str]:
    return [name for name in profile_names() if len(find_profile(name).latencies)]


def _view(
    profile: HardwareProfile, network: NetworkSpec, candidates: Mapping[int, Scored], budget: Budget,
    least_accuracy: float, display: Display,
) -> DeviceView:  # fmt: skip
    refusals = {c.id: _refusal(profile, network, c.policy) for c in candidates.values()}
    executed = [c for c in candidates.values() if not refusals[c.id]]
    reasons = [reason for reason in refusals.values() if reason]
    taken = _taken(profile, network, executed, display)
    costs = np.array([(-c.accuracy, taken[c.id].size_bytes, taken[c.id].latency_ms) for c in executed]).reshape(-1, 3)
    front = [c.id for c, kept in zip(executed, non_dominated(costs), strict=True) if kept]
    return DeviceView(
        profile, budget, taken, len(reasons), reasons[0] if reasons else "",
        tuple(sorted(front, key=lambda name: taken[name].latency_ms)), chosen(executed, taken, budget, least_accuracy),
    )  # fmt: skip


def _refusal(profile: HardwareProfile, network: NetworkSpec, policy: Policy) -> str:
    """Why the device does not execute the policy, "" where it does."""
    for layer in network.layers:
        reason = profile.veto(layer, policy.layer(layer.name))
        if reason is not None:
            return f"{layer.name}: {reason}"
    return ""


def _taken(
    profile: HardwareProfile, network: NetworkSpec, candidates: Sequence[Scored], display: Display
) -> dict[int, Figures]:
    """What the candidates take on a device: as recorded where the run was for it, else by its table."""
    if all(profile.name in c.recorded for c in candidates):
        return {c.id: c.recorded[profile.name] for c in candidates}
    kernels = {
        c.id: [kernel for kernel, _ in network_kernels(network, c.policy, integer_only=profile.integer_only)]
        for c in candidates
    }
    needed = list(dict.fromkeys(itertools.chain.from_iterable(kernels.values())))
    if profile.on_the_spot:
        display.phase("measuring this machine's kernels", total=len(needed), detail="cached for the next time")
    table = latencies_for(profile, needed, lambda done, total, left: display.advance(done))
    model = LatencyModel.from_table(table, profile.calibration)
    display.phase("estimating", total=len(candidates), detail=profile.title)
    found = {}
    for done, candidate in enumerate(candidates):
        latency, low, high = (us / 1000 for us in model.predict(kernels[candidate.id]).total_us)
        memory = peak_memory(network, candidate.policy, integer_only=profile.integer_only)
        found[candidate.id] = Figures(candidate.size_bytes, latency, low, high, memory)
        display.advance(done + 1)
    return found


def rank_correlations(views: Sequence[DeviceView]) -> dict[tuple[str, str], float | None]:
    """Spearman's ρ between each two devices, see `RunComparison`."""
    found: dict[tuple[str, str], float | None] = {}
    for one, other in itertools.combinations(views, 2):
        shared = sorted(one.taken.keys() & other.taken.keys())
        pair = [[view.taken[name].latency_ms for name in shared] for view in (one, other)]
        varies = len(shared) > 2 and all(len(set(values)) > 1 for values in pair)
        rho = float(spearmanr(*pair).statistic) if varies else math.nan
        found[one.name, other.name] = None if math.isnan(rho) else rho
    return found
