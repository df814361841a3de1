"""The order of a search, with a controller and costs that take microseconds and workers that end in any order."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autocomp.artifact import Artifact, Draft
from autocomp.budget import Budget
from autocomp.devices import Device, Devices
from autocomp.display import QuietDisplay
from autocomp.errors import RunError
from autocomp.hardware.cost import Cost
from autocomp.hardware.profile import find_profile
from autocomp.journal import Entry, Journal
from autocomp.outcome import Candidate, Outcome, Status
from autocomp.policy import Policy
from autocomp.schedule import Next, Report, Schedule, pareto_front
from autocomp.search import _conclude


class Controller:
    """Proposes from what it was told: a sequence that depends on every outcome, in order. Written down in `log`."""

    def __init__(self, limit: int = 1000, shift: int = 0) -> None:
        self.log: list[tuple[str, int, Any]] = []
        self.count, self.limit, self.state = 0, limit, shift

    def ask(self) -> Candidate | None:
        if self.count == self.limit:
            return None
        candidate = Candidate(self.count, (self.state % 10, self.count), Policy())
        self.count += 1
        self.log.append(("ask", candidate.id, candidate.genes))
        return candidate

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        self.state = self.state * 31 + candidate.id + round(1000 * (outcome.accuracy or 0.5))
        self.log.append(("tell", candidate.id, outcome))


class Costs:
    """100 bytes and 1 ms for each unit of the first gene."""

    def __call__(self, genes: np.ndarray) -> Cost:
        units = np.asarray(genes)[:, 0].astype(float)
        return Cost(100 * units, units, 0.9 * units, 1.1 * units, 1000 * units)

    def of_policy(self, policy: Policy) -> Cost:
        one = np.ones(1)
        return Cost(100 * one, one, 0.9 * one, 1.1 * one, 1000 * one)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def schedule(folder, controller: Controller | None = None, *, lag: int = 4, budget=None, **more) -> Schedule:
    device = Device(find_profile("mobile_arm"), Costs(), budget or Budget())
    return Schedule(controller or Controller(), Devices([device], np.zeros(2, int)), Journal(folder), lag=lag, **more)


def done(accuracy: float, size_bytes: int, seconds: float = 0.0) -> Report:
    return Report({"mobile_arm": Artifact(accuracy, size_bytes)}, seconds)


def report(candidate: Candidate) -> Report:
    """A trial's result, which depends on the candidate alone."""
    return done(((candidate.genes[0] * 7 + candidate.id * 3) % 11) / 11, 90, seconds=1.0)


def play(plan: Schedule, workers: int, rng: random.Random, stop_after: int | None = None) -> None:
    """Run a schedule to its end with `workers` that finish in an order drawn from `rng`."""
    running: list[Candidate] = []
    finished = 0
    while True:
        following = plan.next() if len(running) < workers else Next.WAIT
        if isinstance(following, Candidate):
            running.append(following)
            continue
        if following is Next.DONE:
            assert not running
            return
        assert running, "waiting although nothing runs"
        candidate = running.pop(rng.randrange(len(running)))
        plan.finished(candidate.id, report(candidate))
        finished += 1
        if finished == stop_after:
            return


@pytest.mark.parametrize("seed", range(5))
def test_the_sequence_does_not_depend_on_who_finishes_first(seed, tmp_path):
    logs, entries = [], []
    for name, rng in (("orderly", random.Random(0)), ("shuffled", random.Random(seed + 1))):
        controller = Controller()
        (tmp_path / name).mkdir()
        plan = schedule(tmp_path / name, controller, trials=40)
        play(plan, 3 if name == "shuffled" else 1, rng)
        logs.append(controller.log)
        entries.append([(e.id, e.genes, e.outcome) for e in plan.journal])
    assert logs[0] == logs[1]
    assert entries[0] == entries[1]
    assert len(entries[0]) == 40


def test_candidate_k_sees_the_outcomes_up_to_k_minus_lag_and_no_more(tmp_path):
    controller = Controller()
    play(schedule(tmp_path, controller, lag=4, trials=10), 3, random.Random(5))
    told: list[int] = []
    for what, number, _ in controller.log:
        if what == "tell":
            told.append(number)
        else:
            assert told == list(range(max(0, number - 3)))


def test_a_slow_trial_stops_only_those_who_need_it(tmp_path):
    plan = schedule(tmp_path, lag=3)
    first = [plan.next() for _ in range(3)]
    assert plan.next() is Next.WAIT  # candidate 3 needs the outcome of 0
    plan.finished(1, report(first[1]))
    plan.finished(2, report(first[2]))
    assert plan.next() is Next.WAIT
    plan.finished(0, report(first[0]))
    assert [plan.next().id for _ in range(3)] == [3, 4, 5]
    assert plan.running == 3


@pytest.mark.parametrize("after", [1, 7, 19])
def test_a_resumed_search_walks_the_same_sequence(after, tmp_path):
    (tmp_path / "whole").mkdir()
    whole = schedule(tmp_path / "whole", trials=25)
    play(whole, 1, random.Random(0))
    (tmp_path / "broken").mkdir()
    broken = schedule(tmp_path / "broken", trials=25)
    play(broken, 3, random.Random(9), stop_after=after)
    broken.journal.close()
    with Journal(tmp_path / "broken", read_only=True) as journal:
        known = {entry.id: entry for entry in journal}
    assert len(known) == after
    resumed = schedule(tmp_path / "broken", trials=25, known=known)
    play(resumed, 3, random.Random(2))
    assert [(e.id, e.genes, e.outcome) for e in resumed.journal] == [(e.id, e.genes, e.outcome) for e in whole.journal]
    assert [e.id for e in resumed.front()] == [e.id for e in whole.front()]


def compiled(candidate: Candidate) -> Report:
    """As of an NPU: every third candidate was given up ahead of training, all take more than the table says."""
    more = 1 + 0.1 * (candidate.id % 4)
    if candidate.id % 3 == 0:
        return Report(seconds=1.0, drafts={"mobile_arm": Draft(1000, 2 + more, 0)})
    made = Artifact(0.5 + candidate.id / 100, 80, compiled_bytes=90, latency_ms=more)
    return Report({"mobile_arm": made}, 1.0)


class Watching(Controller):
    """Proposes by what the costs say at the moment, which change with what was compiled."""

    devices: Devices

    def ask(self) -> Candidate | None:
        self.state += int(1000 * self.devices.joint_costs(np.array([[1, 0]])).latency_ms[0])
        return super().ask()


def test_what_was_compiled_is_learned_in_order_and_again_when_resumed(tmp_path):
    def watched(folder, **more) -> Schedule:
        plan = schedule(folder, Watching(), lag=3, trials=16, budget=Budget(latency_ms=2), **more)
        plan.controller.devices = plan.devices
        return plan

    def run(plan: Schedule, rng: random.Random, stop_after: int = 100) -> list[tuple[Any, ...]]:
        running: list[Candidate] = []
        while stop_after:
            following = plan.next()
            if isinstance(following, Candidate):
                running.append(following)
            elif following is Next.DONE:
                break
            else:
                candidate = running.pop(rng.randrange(len(running)))
                plan.finished(candidate.id, compiled(candidate))
                stop_after -= 1
        return [(e.id, e.genes, e.outcome) for e in plan.journal]

    for name in ("orderly", "shuffled", "broken"):
        (tmp_path / name).mkdir()
    whole = run(watched(tmp_path / "orderly"), random.Random(0))
    assert len({genes for _, genes, _ in whole}) > 3
    assert run(watched(tmp_path / "shuffled"), random.Random(4)) == whole
    broken = watched(tmp_path / "broken")
    run(broken, random.Random(1), stop_after=4)
    broken.journal.close()
    with Journal(tmp_path / "broken", read_only=True) as journal:
        known = {entry.id: entry for entry in journal}
    assert run(watched(tmp_path / "broken", known=known), random.Random(2)) == whole


def test_what_is_known_is_not_run_again(tmp_path):
    plan = schedule(tmp_path, trials=3)
    for candidate in [plan.next() for _ in range(3)]:
        plan.finished(candidate.id, report(candidate))
    known = {entry.id: entry for entry in plan.journal}
    again = schedule(tmp_path, trials=3, known=known)
    assert again.next() is Next.DONE
    assert len(again.entries) == 3


def test_another_sequence_than_the_journals_is_refused(tmp_path):
    plan = schedule(tmp_path, Controller(shift=1), trials=3)
    candidate = plan.next()
    plan.finished(candidate.id, report(candidate))
    known = {entry.id: entry for entry in plan.journal}
    other = schedule(tmp_path, Controller(shift=2), trials=3, known=known)
    with pytest.raises(RunError, match="candidate 0 differs from the journal"):
        other.next()


def test_a_journal_that_does_not_say_what_was_made_is_refused(tmp_path):
    """As one from before files were recorded by device: what they take there would be unknown."""
    plan = schedule(tmp_path, trials=3)
    candidate = plan.next()
    entry = plan.finished(candidate.id, report(candidate))
    silent = replace(entry, details={"predicted_bytes": 100.0})
    again = schedule(tmp_path, trials=3, known={candidate.id: silent})
    with pytest.raises(RunError, match=r"candidate 0 differs from the journal.*start a new run"):
        again.next()


def test_an_infeasible_candidate_spends_no_trial(tmp_path):
    # State 7 costs 700 bytes: over the budget, settled at once, told like any outcome.
    controller = Controller(limit=3, shift=7)
    plan = schedule(tmp_path, controller, lag=1, budget=Budget(size_bytes=400))
    handed = []
    while isinstance(following := plan.next(), Candidate):
        handed.append(following.genes[0])
        plan.finished(following.id, report(following))
    assert following is Next.DONE
    assert all(units <= 4 for units in handed)
    first = plan.entries[0]
    assert first.outcome.status is Status.INFEASIBLE
    assert (first.outcome.size_bytes, first.outcome.latency_ms, first.seconds) == (700, 7.0, 0.0)
    assert "size breaks the budget of 400 bytes" in first.outcome.reason
    assert ("tell", 0, first.outcome) in controller.log
    assert len(plan.entries) == 3


def test_a_file_over_the_budget_is_infeasible_whatever_was_predicted(tmp_path):
    plan = schedule(tmp_path, budget=Budget(size_bytes=400))
    candidate = plan.next()
    entry = plan.finished(candidate.id, done(0.9, 401))
    assert entry.outcome.status is Status.INFEASIBLE
    assert "401 bytes" in entry.outcome.reason
    assert entry.details["predicted_bytes"] == 100
    assert plan.front() == []


def test_failed_trials_are_recorded_with_their_reason_and_told(tmp_path):
    controller = Controller()
    plan = schedule(tmp_path, controller, lag=1, trials=3)
    reports = [Report(error="finetuning diverged"), Report(), done(0.5, 100)]
    for answer in reports:
        candidate = plan.next()
        plan.finished(candidate.id, answer)
    assert plan.next() is Next.DONE
    assert [(e.outcome.status, e.outcome.reason) for e in plan.journal] == [
        (Status.FAILED, "finetuning diverged"),
        (Status.FAILED, "the trial gave no result"),
        (Status.COMPLETE, ""),
    ]
    assert next(entry for entry in controller.log if entry[0] == "tell")[2].status is Status.FAILED
    assert (plan.state().failed, plan.state().trials_done, plan.state().best_accuracy) == (2, 3, 0.5)


@pytest.mark.parametrize(
    ("reason", "after"),
    [
        (lambda k: "no space left on the device", 5),
        (lambda k: f"the file scores 0.{k}1 where torch simulated 0.9{k}", 5),  # one reason, whatever its figures
        (lambda k: f"layer {'abcdefghijklmnopqrst'[k]} failed", 20),
    ],
    ids=["alike", "but for figures", "each its own"],
)
def test_a_search_in_which_every_trial_fails_ends(tmp_path, reason, after):
    plan = schedule(tmp_path, lag=4, seconds=1000)
    for k in range(after):
        assert plan.hopeless is None
        plan.finished(plan.next().id, Report(error=reason(k), seconds=1.0))
    assert plan.next() is Next.DONE
    assert plan.hopeless.outcome.reason == reason(after - 1)
    # Whoever mended the cause goes on where it ended, and who did not is told again.
    again = schedule(tmp_path, lag=4, seconds=1000, known={entry.id: entry for entry in plan.journal})
    assert again.next().id == after
    assert again.hopeless is None
    again.finished(after, Report(error="alike", seconds=1.0))
    for _ in range(4):
        again.finished(again.next().id, Report(error="alike", seconds=1.0))
    assert again.next() is Next.DONE


def test_reasons_of_failures_are_counted_by_kind(tmp_path):
    plan = schedule(tmp_path, lag=9, seconds=1000)
    for error in ("worker 3 died", "diverged", "worker 14 died", ""):
        plan.finished(plan.next().id, Report(error=error) if error else done(0.5, 100))
    assert plan.failures == [("worker 14 died", 2), ("diverged", 1)]


class Notes(QuietDisplay):
    def __init__(self):
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([Report(error="shapes differ")] * 5, r"every trial failed, so the search ended after 5; .*: shapes differ"),
        (
            [Report(error="shapes differ"), Report(error="diverged")],
            "no trial gave a file: 2 failed; most often: shapes",
        ),
        (
            [Report(error="diverged"), done(0.9, 401)],
            "no trial gave a file: 1 failed; 1 were over the budget; .* diver",
        ),
        ([done(0.9, 401)], r"no trial completed within the budget; `autocomp report a/run` lists the reasons"),
    ],
)
def test_a_search_without_a_file_ends_with_the_reason(tmp_path, reports, expected):
    plan = schedule(tmp_path, lag=9, budget=Budget(400))
    for answer in reports:
        plan.finished(plan.next().id, answer)
    with pytest.raises(RunError, match=expected):
        _conclude(plan, Path("a/run"), plan.front(), Notes())


def test_a_search_with_a_front_says_how_many_trials_failed(tmp_path):
    plan, display = schedule(tmp_path, lag=9), Notes()
    for answer in (done(0.9, 100), Report(error="worker 3 died"), Report(error="worker 5 died"), Report(error="odd")):
        plan.finished(plan.next().id, answer)
    _conclude(plan, Path("a/run"), plan.front(), display)
    assert display.notes == ["3 of 4 trials failed, 2 of them thus: worker 5 died"]
    (tmp_path / "clean").mkdir()
    clean, display = schedule(tmp_path / "clean"), Notes()
    clean.finished(clean.next().id, done(0.9, 100))
    _conclude(clean, Path("a/run"), clean.front(), display)
    assert display.notes == []


def test_one_success_among_failures_keeps_a_search_going(tmp_path):
    plan = schedule(tmp_path, lag=4, seconds=1000)
    plan.finished(plan.next().id, done(0.5, 100, seconds=1.0))
    for _ in range(40):
        plan.finished(plan.next().id, Report(error="diverged", seconds=1.0))
    assert isinstance(plan.next(), Candidate)


def test_a_draft_over_its_budget_is_recorded_as_infeasible_with_what_was_compiled(tmp_path):
    plan = schedule(tmp_path, budget=Budget(latency_ms=2))
    entry = plan.finished(plan.next().id, Report(seconds=1.0, drafts={"mobile_arm": Draft(512, 2.5, 7000)}))
    assert entry.outcome.status is Status.INFEASIBLE
    assert (entry.outcome.size_bytes, entry.outcome.latency_ms) == (512, 2.5)
    assert "compiled before any training" in entry.outcome.reason
    assert "512 bytes, 2.5 ms" in entry.outcome.reason
    assert plan.hopeless is None


def test_drafts_do_not_shorten_what_the_next_trial_is_expected_to_take(tmp_path):
    clock = Clock()
    plan = schedule(tmp_path, lag=10, seconds=100, budget=Budget(latency_ms=2), clock=clock)
    plan.finished(plan.next().id, done(0.5, 100, seconds=30))
    for _ in range(3):
        plan.finished(plan.next().id, Report(seconds=1.0, drafts={"mobile_arm": Draft(512, 2.5, 7000)}))
    clock.now = 75
    assert plan.next() is Next.DONE


def test_the_number_of_trials_is_kept(tmp_path):
    plan = schedule(tmp_path, lag=10, trials=5)
    handed = [plan.next() for _ in range(5)]
    assert plan.next() is Next.WAIT
    for candidate in handed:
        plan.finished(candidate.id, report(candidate))
    assert plan.next() is Next.DONE


def test_no_trial_begins_that_would_end_too_late(tmp_path):
    clock = Clock()
    plan = schedule(tmp_path, lag=10, seconds=100, clock=clock)
    for _ in range(3):
        candidate = plan.next()
        clock.now += 20
        plan.finished(candidate.id, done(0.5, 100, seconds=20))
    clock.now = 79
    assert isinstance(plan.next(), Candidate)  # ends at 99
    clock.now = 81
    assert plan.next() is Next.WAIT  # would end at 101
    plan.finished(3, done(0.5, 100, seconds=20))
    assert plan.next() is Next.DONE
    assert plan.state().seconds_left == 19


def test_one_trial_is_run_however_short_the_time(tmp_path):
    clock = Clock()
    plan = schedule(tmp_path, seconds=1e-6, clock=clock)
    clock.now = 10
    candidate = plan.next()
    assert isinstance(candidate, Candidate)
    plan.finished(candidate.id, report(candidate))
    assert plan.next() is Next.DONE


def test_an_exhausted_controller_ends_the_search(tmp_path):
    plan = schedule(tmp_path, Controller(limit=2))
    handed = [plan.next(), plan.next()]
    assert plan.next() is Next.WAIT
    for candidate in handed:
        plan.finished(candidate.id, report(candidate))
    assert plan.next() is Next.DONE


def test_every_entry_is_shown_as_it_happens(tmp_path):
    shown: list[tuple[int, int]] = []
    plan = schedule(tmp_path, trials=4, on_entry=lambda entry, state: shown.append((entry.id, state.trials_done)))
    play(plan, 1, random.Random(0))
    assert shown == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_a_lag_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="lag"):
        schedule(tmp_path, lag=0)


def test_the_front_worked_by_hand():
    figures = [(0.9, 100, 1.0), (0.8, 50, 1.0), (0.8, 60, 1.0), (0.7, 60, 0.5), (0.9, 100, 2.0)]
    entries = [Entry(i, (i,), Policy(), Outcome(Status.COMPLETE, *f)) for i, f in enumerate(figures)]
    assert [entry.id for entry in pareto_front(entries)] == [1, 3, 0]  # from the fewest bytes up
    assert pareto_front([]) == []
