"""Several devices as one: the joint number of a cost, the journal, the sequence, and what a device refuses."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import Residual, traced

from autocomp.artifact import Artifact, Draft
from autocomp.budget import Budget
from autocomp.devices import Device, Devices, Figures, Joint
from autocomp.errors import UserError
from autocomp.hardware.cost import Cost
from autocomp.hardware.profile import HardwareProfile, find_profile
from autocomp.journal import Entry, Journal
from autocomp.outcome import Candidate, Outcome, Status
from autocomp.policy import INT8, Policy
from autocomp.prepare import common_veto
from autocomp.results import admitted
from autocomp.schedule import Next, Report, Schedule, pareto_front
from autocomp.space import SearchSpace, SpaceOptions

FIGURE = st.floats(1e-3, 1e6)
LARGEST = np.array([10, 10])


class Costs:
    """100 bytes a unit of the first gene, and milliseconds by the units of each gene."""

    def __init__(self, *ms: float) -> None:
        self.ms = np.array(ms)

    def __call__(self, genes: np.ndarray) -> Cost:
        genes = np.atleast_2d(np.asarray(genes, dtype=float))
        latency = 1 + genes @ self.ms
        return Cost(100 * (1 + genes[:, 0]), latency, 0.9 * latency, 1.1 * latency, 10 * latency)

    def of_policy(self, policy: Policy) -> Cost:
        return self(np.array([policy.channels[name] for name in ("first", "second")]))


def device(name: str, *ms: float, budget: Budget | None = None) -> Device:
    return Device(find_profile(name), Costs(*ms), budget or Budget())  # type: ignore[arg-type]


def two(first: Budget | None = None, second: Budget | None = None) -> Devices:
    """The first device's time goes by the first gene, the other's by the second."""
    one = device("mobile_arm", 1.0, 0.0, budget=first)
    return Devices([one, device("raspberry_pi_4", 0.0, 3.0, budget=second)], LARGEST)


@st.composite
def joints(draw):
    """(bounds of up to four devices, some None; what the largest takes; figures of 5 candidates)."""
    count = draw(st.integers(2, 4))
    several = st.lists(FIGURE, min_size=count, max_size=count)
    bounds = draw(st.lists(st.none() | FIGURE, min_size=count, max_size=count))
    figures = draw(st.lists(several, min_size=5, max_size=5))
    return bounds, draw(several), np.array(figures).T


@given(joints())
def test_the_joint_bound_is_broken_exactly_where_a_devices_bound_is(case):
    bounds, largest, figures = case
    joint = Joint.of(bounds, largest)
    numbers = joint(figures)
    assert np.isfinite(numbers).all()
    if joint.bound is None:
        assert not any(bound is not None for bound in bounds)
        return
    for candidate, number in zip(figures.T, numbers, strict=True):
        # By the very comparison that budgets make: a share of the bound.
        broken = any(b is not None and f / b > 1 for f, b in zip(candidate, bounds, strict=True))
        assert (number / joint.bound > 1) == broken


@given(joints(), st.integers(0, 3), st.floats(1.0, 100.0))
def test_no_device_gets_slower_for_nothing(case, which, factor):
    bounds, largest, figures = case
    joint = Joint.of(bounds, largest)
    slower = figures.copy()
    slower[which % len(figures)] *= factor
    assert (joint(slower) >= joint(figures) * (1 - 1e-12)).all()


@given(st.lists(FIGURE, min_size=5, max_size=5), st.none() | FIGURE, FIGURE, st.integers(2, 4))
def test_devices_that_agree_count_as_one(figures, bound, largest, count):
    joint = Joint.of([bound] * count, [largest] * count)
    within = [figure for figure in figures if bound is None or figure <= bound]
    np.testing.assert_allclose(joint(np.array([within] * count)), within, rtol=1e-9)


@given(joints())
def test_the_order_of_devices_matters_only_for_the_unit(case):
    bounds, largest, figures = case
    here = Joint.of(bounds, largest)
    there = Joint.of(bounds[::-1], largest[::-1])
    np.testing.assert_allclose(here(figures) / here.units[0], there(figures[::-1]) / there.units[0], rtol=1e-9)


def test_a_percent_counts_the_same_on_a_slow_device_and_on_a_fast_one():
    joint = Joint.of([None, None], [100.0, 1.0])
    (before, first, second) = joint(np.array([[50.0, 49.5, 50.0], [0.5, 0.5, 0.495]]))
    assert first == pytest.approx(second)
    assert first == pytest.approx(before * 0.99**0.5)


def test_one_device_is_passed_through_untouched():
    genes = np.random.default_rng(0).integers(0, 10, (20, 2))
    alone = device("mobile_arm", 0.3, 0.7, budget=Budget(500, 3.0, 0.01, 40))
    devices = Devices([alone], LARGEST)
    cost, joint = alone.cost(genes), devices.joint_costs(genes)
    for name in ("size_bytes", "latency_ms", "memory_bytes"):
        assert getattr(joint, name) is not None
        np.testing.assert_array_equal(getattr(joint, name), getattr(cost, name))
    assert devices.joint_budget is alone.budget
    outcome = Outcome(Status.COMPLETE, 0.9, 123, 4.5)
    assert devices.joint_outcome(outcome, devices.recorded({})) is outcome
    assert devices.details(devices.figures([1, 2])) == {}


def test_the_joint_budget_holds_where_each_devices_does():
    devices = two(Budget(600, 4.0), Budget(None, 10.0, None, 80))
    genes = np.array([(a, b) for a in range(11) for b in range(11)])
    costs, budget = devices.joint_costs(genes), devices.joint_budget
    joint = [budget.admits(*row) for row in zip(*costs, strict=True)]
    each = [devices.broken(devices.figures(row)) is None for row in genes]
    assert joint == each
    assert 0 < sum(each) < len(each)


def test_what_breaks_a_bound_names_the_device():
    devices = two(Budget(latency_ms=100.0), Budget(latency_ms=10.0, memory_bytes=90))
    found = devices.broken(devices.figures([5, 4]))  # the second takes 13 ms and 130 bytes of memory
    assert found is not None
    broken, figures, constraint = found
    assert (broken.name, figures.latency_ms, constraint) == ("raspberry_pi_4", 13.0, "memory")
    assert devices.broken(devices.figures([5, 2])) is None


def test_two_devices_of_one_name():
    with pytest.raises(UserError, match="--hw: expected different devices, got mobile_arm twice"):
        Devices([device("mobile_arm", 1, 1), device("mobile_arm", 2, 2)], LARGEST)


class Controller:
    """Proposes from what it was told, so that the sequence depends on every number of it."""

    def __init__(self) -> None:
        self.told: list[Outcome] = []
        self.count, self.state = 0, 7

    def ask(self) -> Candidate:
        genes = (1 + self.state % 10, 1 + self.state // 10 % 10)
        policy = Policy(channels={"first": genes[0], "second": genes[1]})
        self.count += 1
        return Candidate(self.count - 1, genes, policy)

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        self.told.append(outcome)
        self.state = (self.state * 31 + round(1e6 * (outcome.latency_ms or 0)) + (outcome.size_bytes or 0)) % 10_007


def play(plan: Schedule, stop_after: int | None = None) -> list[Entry]:
    finished = 0
    while isinstance(following := plan.next(), Candidate):
        accuracy = (sum(following.genes) % 7) / 7
        made = Artifact(accuracy, 100 * (1 + following.genes[0]))
        plan.finished(following.id, Report({d.name: made for d in plan.devices}, 1.0))
        finished += 1
        if finished == stop_after:
            return list(plan.journal)
    assert following is Next.DONE
    return list(plan.journal)


def facts(entries: Sequence[Entry]) -> list[tuple[object, ...]]:
    return [(e.id, e.genes, e.outcome, e.latency_low_ms, e.latency_high_ms, e.details) for e in entries]


def schedule(folder, controller: Controller, devices: Devices, **more) -> Schedule:
    folder.mkdir(exist_ok=True)
    return Schedule(controller, devices, Journal(folder), lag=2, trials=20, **more)  # type: ignore[arg-type]


def test_a_resumed_search_for_two_devices_tells_the_same_and_walks_the_same(tmp_path):
    bounds = Budget(latency_ms=9.0), Budget(latency_ms=20.0)
    whole, resumed = Controller(), Controller()
    expected = play(schedule(tmp_path / "whole", whole, two(*bounds)))
    assert {e.outcome.status for e in expected} == {Status.COMPLETE, Status.INFEASIBLE}
    known = {e.id: e for e in play(schedule(tmp_path / "cut", Controller(), two(*bounds)), stop_after=6)}
    assert 0 < len(known) < 20
    found = play(schedule(tmp_path / "cut", resumed, two(*bounds), known=known))
    assert facts(found) == facts(expected)
    assert resumed.told == whole.told


def test_the_journal_holds_each_devices_figures_and_the_primary_ones_where_one_device_has_them(tmp_path):
    devices = two(second=Budget(latency_ms=20.0))
    entries = play(schedule(tmp_path / "run", Controller(), devices))
    for entry in entries:
        first, second = (Figures(**entry.details["devices"][d.name]) for d in devices)
        assert entry.outcome.latency_ms == first.latency_ms == 1 + entry.genes[0]
        assert second.latency_ms == 1 + 3 * entry.genes[1]
        assert (entry.latency_low_ms, entry.latency_high_ms) == (first.latency_low_ms, first.latency_high_ms)
        assert (entry.outcome.status is Status.COMPLETE) == (second.latency_ms <= 20)
        if entry.outcome.status is Status.INFEASIBLE:
            assert "latency breaks the budget of 20 ms on raspberry_pi_4" in entry.outcome.reason


def test_the_order_of_devices_changes_only_the_unit_of_the_costs():
    here, there = two(), Devices([*two()][::-1], LARGEST)
    genes = np.array([(a, b) for a in range(11) for b in range(11)])
    one, other = here.joint_costs(genes), there.joint_costs(genes)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a / a[0], b / b[0])


def test_a_front_for_all_devices_keeps_what_suits_both(tmp_path):
    plan = schedule(tmp_path / "run", Controller(), two())

    def entry(number: int, genes: tuple[int, int]) -> Entry:
        policy = Policy(channels={"first": genes[0], "second": genes[1]})
        figures = [replace(figure, size_bytes=500.0) for figure in plan.devices.figures(genes)]
        outcome = Outcome(Status.COMPLETE, 0.9, 500, figures[0].latency_ms)
        return Entry(number, genes, policy, outcome, details=plan.devices.details(figures))

    # The first device alone would take 0; 1 is hardly slower there, and far faster on the other.
    entries = [entry(0, (4, 10)), entry(1, (5, 1)), entry(2, (6, 1))]
    assert [e.id for e in pareto_front(entries)] == [0]
    assert [e.id for e in plan.joint_front(entries)] == [1]


def test_the_bound_on_accuracy_holds_for_the_file_of_each_device():
    def entry(number: int, *accuracies: float) -> Entry:
        made = {name: Artifact(value, 500).to_dict() for name, value in zip(("one", "two"), accuracies, strict=True)}
        outcome = Outcome(Status.COMPLETE, accuracies[0], 500, 1.0)
        return Entry(number, (number,), Policy(), outcome, details={"artifacts": made})

    entries = [entry(0, 0.90, 0.90), entry(1, 0.90, 0.88), entry(2, 0.88, 0.90), entry(3, 0.89, 0.89)]
    assert [e.id for e in admitted(entries, Budget(accuracy_drop=0.01), 0.9)] == [0, 3]
    assert admitted(entries, Budget(), 0.9) == entries


def test_a_choice_that_one_device_refuses_is_not_offered_and_says_whose():
    profiles = [find_profile("mobile_arm"), _without_integer_convolutions()]
    network = traced(Residual).spec
    space = SearchSpace.build(network, SpaceOptions(), common_veto(profiles))
    alone = SearchSpace.build(network, SpaceOptions(), profiles[0].veto)
    added = set(space.removed) - set(alone.removed)
    assert added
    assert all(reason.startswith("no_int8: ") for _, reason in added)
    for gene in space.genes:
        if gene.kind == "quant":
            layer = next(layer for layer in network.layers if layer.name == gene.target)
            assert all(profile.veto(layer, choice) is None for profile in profiles for choice in gene.choices)
    assert common_veto(profiles[:1]) == profiles[0].veto


def _without_integer_convolutions() -> HardwareProfile:
    profile = find_profile("raspberry_pi_4")
    executes = tuple(
        capability.model_copy(update={"operators": ("linear",)}) if capability.activation == INT8.activation
        else capability
        for capability in profile.executes
    )  # fmt: skip
    return profile.model_copy(update={"name": "no_int8", "executes": executes})


POLICY = Policy({}, {"first": 3, "second": 2})
GENES = np.array([[3, 2], [5, 1]])


def test_predictions_are_corrected_by_what_compilers_make_of_candidates():
    devices = Devices([device("mobile_arm", 1.0, 0.5)], LARGEST)
    before = devices.joint_costs(GENES)
    predicted = devices.figures_of_policy(POLICY)[0]
    for more in (1.1, 1.5, 1.2):  # the median counts
        made = Draft(round(2 * predicted.size_bytes), more * predicted.latency_ms, 0)
        devices.learn(POLICY, {"mobile_arm": made})
    after = devices.joint_costs(GENES)
    np.testing.assert_allclose(after.size_bytes, 2 * before.size_bytes)
    np.testing.assert_allclose(after.latency_ms, 1.2 * before.latency_ms)
    np.testing.assert_allclose(after.memory_bytes, before.memory_bytes)
    assert devices.figures(GENES[0])[0].latency_high_ms == pytest.approx(1.2 * predicted.latency_high_ms)
    assert devices.figures_of_policy(POLICY)[0] == predicted  # of the table alone: what later ratios are taken from


def test_nothing_is_learned_where_nothing_is_compiled():
    devices = two()
    before = devices.joint_costs(GENES)
    devices.learn(POLICY, {"mobile_arm": Artifact(0.9, 12345), "raspberry_pi_4": Artifact(0.9, 12345)})
    devices.learn(POLICY, {})
    assert all((one == other).all() for one, other in zip(before, devices.joint_costs(GENES), strict=True))
