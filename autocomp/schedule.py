"""The order of a search: who is asked when, and when it is told, so that one seed gives one sequence.

Trials end in whatever order the workers like. A controller that was told in that order would propose something else
each time. Here candidate k is asked for when the outcomes of 0 … k − lag have been told, exactly those and in order:
the sequence depends on outcomes alone, and a resumed search walks it again from the journal.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from autocomp.artifact import Artifact, Draft
from autocomp.controllers.base import Controller
from autocomp.devices import Device, Devices, Figures
from autocomp.display import SearchState
from autocomp.errors import RunError
from autocomp.front import non_dominated
from autocomp.journal import Entry, Journal
from autocomp.outcome import Candidate, Outcome, Status

#: Trials that may fail before the first success, for one reason or for several, before a search ends.
_ALIKE, _HOPELESS = 5, 20


class Next(Enum):
    """What to do where there is no candidate: WAIT for a running trial to end, or stop, nothing is left to do."""

    WAIT = "wait"
    DONE = "done"


@dataclass(frozen=True)
class Report:
    """What a worker says about a trial.

    artifacts: by device, the primary one's first; empty if the trial failed, for the reason that `error` gives, or if a
    draft was over a budget. drafts: what devices' compilers said ahead of training.
    """

    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    drafts: Mapping[str, Draft] = field(default_factory=dict)


class Schedule:
    """Hands out candidates and takes back reports; writes each outcome to the journal the moment it is known.

    lag: how many candidates the controller may be ahead of the outcomes it was told. trials: stop after so many
    candidates. seconds: stop handing out when so much time has passed. known: outcomes of an earlier, interrupted
    run of the same search, which are not run again.
    """

    def __init__(
        self,
        controller: Controller,
        devices: Devices,
        journal: Journal,
        *,
        lag: int,
        trials: int | None = None,
        seconds: float | None = None,
        known: dict[int, Entry] | None = None,
        on_entry: Callable[[Entry, SearchState], None] = lambda entry, state: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if lag < 1:
            raise ValueError(f"the lag must be at least 1, got {lag}")
        self.controller, self.devices, self.journal = controller, devices, journal
        self.lag, self.trials, self.seconds = lag, trials, seconds
        self.known = dict(known or {})
        self.on_entry, self.clock = on_entry, clock
        self.started = clock()
        self.entries: dict[int, Entry] = {}
        self._candidates: dict[int, Candidate] = {}
        self._asked = self._told = 0
        self._exhausted = False
        self.stopped = False

    @property
    def running(self) -> int:
        return self._asked - len(self.entries)

    @property
    def hopeless(self) -> Entry | None:
        """The last of so many failures, with no success, that the fault cannot be the candidates'; None as a rule."""
        # Whoever resumes may have mended why trials failed before.
        ended = [e for e in self.entries.values() if e.outcome.status is Status.COMPLETE or e.id not in self.known]
        ended = [e for e in ended if e.outcome.status is not Status.INFEASIBLE]
        failed = [e for e in ended if e.outcome.status is Status.FAILED]
        if len(failed) < len(ended) or len(failed) < _ALIKE:
            return None
        alike = len({_kind_of(entry.outcome.reason) for entry in failed[-_ALIKE:]}) == 1
        return failed[-1] if alike or len(failed) >= _HOPELESS else None

    @property
    def failures(self) -> list[tuple[str, int]]:
        """Why trials failed, and how often for such a reason, the commonest first; the last reason of a kind speaks."""
        failed = [e.outcome.reason for _, e in sorted(self.entries.items()) if e.outcome.status is Status.FAILED]
        last = {_kind_of(reason): reason for reason in failed}
        return [(last[kind], count) for kind, count in Counter(map(_kind_of, failed)).most_common()]

    def next(self) -> Candidate | Next:
        """The next candidate to run. Infeasible ones, and those known from before, are settled on the way."""
        while True:
            if self._exhausted or self.stopped or self._out_of_trials() or self.hopeless is not None:
                return Next.WAIT if self.running else Next.DONE
            # What is known costs nothing and is replayed whatever the clock says.
            if self._asked not in self.known and self._out_of_time():
                return Next.WAIT if self.running else Next.DONE
            if not self._tell_until(self._asked - self.lag):
                return Next.WAIT
            candidate = self.controller.ask()
            if candidate is None:
                self._exhausted = True
                continue
            self._asked += 1
            self._candidates[candidate.id] = candidate
            if candidate.id in self.known:
                self._recall(candidate)
            elif not self._settle_infeasible(candidate):
                return candidate

    def finished(self, candidate_id: int, report: Report) -> Entry:
        """Record what came back for a candidate."""
        candidate = self._candidates[candidate_id]
        figures = self.devices.figures_of_policy(candidate.policy)
        made = {device: artifact.to_dict() for device, artifact in report.artifacts.items()}
        details = {**report.details, "predicted_bytes": figures[0].size_bytes, "artifacts": made}
        if report.drafts:
            details["drafts"] = {device: asdict(draft) for device, draft in report.drafts.items()}
        found: Mapping[str, Artifact | Draft] = report.artifacts or report.drafts
        if report.error or not found:
            outcome = Outcome(Status.FAILED, reason=report.error or "the trial gave no result")
            return self._record(candidate, outcome, figures, report.seconds, details)
        # The prediction let it through, and the files may take more: the files decide.
        figures = [
            figure.settled(found[device.name]) if device.name in found else figure
            for device, figure in zip(self.devices, figures, strict=True)
        ]
        size, latency = round(figures[0].size_bytes), figures[0].latency_ms
        broken = self.devices.broken(figures)
        if broken is not None:
            device, theirs, constraint = broken
            what = "the file" if report.artifacts else "compiled before any training, it"
            reason = f"{what} takes {theirs}; {constraint} breaks the budget of {self._bounds_of(device)}"
            outcome = Outcome(Status.INFEASIBLE, None, size, latency, reason)
        elif not report.artifacts:
            outcome = Outcome(Status.FAILED, reason="nothing was trained, and its drafts are within the budget")
        else:
            outcome = Outcome(Status.COMPLETE, next(iter(report.artifacts.values())).accuracy, size, latency)
        return self._record(candidate, outcome, figures, report.seconds, details)

    def complete(self) -> list[Entry]:
        """Completed entries in the order of their ids."""
        return [e for _, e in sorted(self.entries.items()) if e.outcome.status is Status.COMPLETE]

    def front(self) -> list[Entry]:
        """The completed entries that none dominates in accuracy and in the bytes and latency of all devices jointly."""
        return self.joint_front(self.complete())

    def joint_front(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those of `entries`, completed all of them, that are on a front by themselves; see `front`."""
        return pareto_front(entries, [self._as_told(entry) for entry in entries])

    def state(self) -> SearchState:
        complete = self.complete()
        count = {s: sum(e.outcome.status is s for e in self.entries.values()) for s in Status}
        elapsed = self.clock() - self.started
        return SearchState(
            trials_done=len(self.entries),
            trials_total=self.trials,
            infeasible=count[Status.INFEASIBLE],
            failed=count[Status.FAILED],
            front_size=len(self.joint_front(complete)),
            best_accuracy=max((e.outcome.accuracy or 0.0 for e in complete), default=None),
            smallest_bytes=min((e.outcome.size_bytes or 0 for e in complete), default=None),
            fastest_ms=min((e.outcome.latency_ms or 0.0 for e in complete), default=None),
            seconds=elapsed,
            seconds_left=None if self.seconds is None else max(0.0, self.seconds - elapsed),
            running=self.running,
        )

    def _out_of_trials(self) -> bool:
        return self.trials is not None and self._asked >= self.trials

    def _out_of_time(self) -> bool:
        """Whether another trial would end after the deadline, going by how long trials took so far."""
        if self.seconds is None:
            return False
        # What was given up ahead of its training says nothing about how long the next trial takes.
        ended = [e.seconds for e in self.entries.values() if e.outcome.status is not Status.INFEASIBLE]
        expected = float(np.median(ended)) if ended else 0.0
        return self.clock() - self.started + expected > self.seconds and bool(self.entries or self._asked)

    def _tell_until(self, last: int) -> bool:
        """Tell outcomes in order up to candidate `last`; False if one of them is still running."""
        while self._told <= last:
            entry = self.entries.get(self._told)
            if entry is None:
                return False
            self.devices.learn(entry.policy, _compiled(entry))
            self.controller.tell(self._candidates[self._told], self._as_told(entry))
            self._told += 1
        return True

    def _as_told(self, entry: Entry) -> Outcome:
        """What a controller is told: of several devices, one number for each kind of cost."""
        return self.devices.joint_outcome(entry.outcome, self.devices.recorded(entry.details))

    def _recall(self, candidate: Candidate) -> None:
        entry = self.known[candidate.id]
        told = entry.outcome.status is not Status.COMPLETE or "artifacts" in entry.details
        if entry.genes != candidate.genes or not told:
            raise RunError(
                f"candidate {candidate.id} differs from the journal: the settings, the table or the version of "
                "autocomp changed since the run began; start a new run"
            )
        self.entries[candidate.id] = entry
        self.on_entry(entry, self.state())

    def _settle_infeasible(self, candidate: Candidate) -> bool:
        figures = self.devices.figures(candidate.genes)
        broken = self.devices.broken(figures)
        if broken is None:
            return False
        device, theirs, constraint = broken
        reason = f"predicted {theirs}; {constraint} breaks the budget of {self._bounds_of(device)}"
        first = figures[0]
        outcome = Outcome(Status.INFEASIBLE, None, round(first.size_bytes), first.latency_ms, reason)
        self._record(candidate, outcome, figures, 0.0, {})
        return True

    def _bounds_of(self, device: Device) -> str:
        """The budget of a device in words, with its name where there are several."""
        return f"{device.budget} on {device.name}" if self.devices.several else str(device.budget)

    def _record(
        self, candidate: Candidate, outcome: Outcome, figures: Sequence[Figures], seconds: float,
        details: dict[str, Any],
    ) -> Entry:  # fmt: skip
        """figures: on each device, the primary one's first."""
        entry = Entry(
            candidate.id, candidate.genes, candidate.policy, outcome, figures[0].latency_low_ms,
            figures[0].latency_high_ms, seconds, {**details, **self.devices.details(figures)},
        )  # fmt: skip
        self.journal.append(entry)
        self.entries[candidate.id] = entry
        self.on_entry(entry, self.state())
        return entry


def _kind_of(reason: str) -> str:
    """A reason without its figures: two that differ in those alone are one."""
    return re.sub(r"\d[\d.,]*", "#", reason)


def _compiled(entry: Entry) -> dict[str, Artifact | Draft]:
    """What was made of a candidate for each device, or is known of it without training; {} for what was not begun."""
    artifacts, drafts = entry.details.get("artifacts"), entry.details.get("drafts", {})
    if artifacts:
        return {device: Artifact.from_dict(values) for device, values in artifacts.items()}
    return {device: Draft(**values) for device, values in drafts.items()}


def pareto_front(entries: Sequence[Entry], outcomes: Sequence[Outcome] | None = None) -> list[Entry]:
    """The completed entries that no other dominates in accuracy, bytes and latency, from the fewest bytes up.

    outcomes: what they are judged by; by default their own outcomes.
    """
    if not entries:
        return []
    judged = [entry.outcome for entry in entries] if outcomes is None else outcomes
    chosen = non_dominated([outcome.costs for outcome in judged])
    front = [entry for entry, keep in zip(entries, chosen, strict=True) if keep]
    return sorted(front, key=lambda entry: (entry.outcome.size_bytes or 0, entry.outcome.latency_ms or 0.0))
