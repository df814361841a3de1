"""What every controller promises, whichever it is. A new one joins by its line in the registry."""

import json
import subprocess
import sys

import numpy as np
import pytest
from controllers.analytic import Fake

from autocomp.budget import Budget
from autocomp.controllers import NAMES, REGISTRY, Controller, create
from autocomp.controllers.costs import violation
from autocomp.errors import RunError, UserError
from autocomp.outcome import Candidate, Outcome, Status
from autocomp.space import SpaceOptions

SEARCHING = [name for name in NAMES if name != "uniform"]
everyone = pytest.mark.parametrize("name", NAMES)
FAKE = Fake.make()
FULL = FAKE.cost(FAKE.space.largest[None])
TIGHT = Budget(int(FULL.size_bytes[0] * 0.12), float(FULL.latency_ms[0]) * 0.3)


def make(name: str, fake: Fake = FAKE, budget: Budget = TIGHT, seed: int = 0) -> Controller:
    return create(name, fake.space, fake.cost, budget, seed)


def tiny(choices: int = 3) -> Fake:
    """One prunable group and nothing else to decide."""
    ratios = (0.25, 0.5, 1.0)[-choices:]
    options = SpaceOptions(
        weight_bits=(8,), activations=("int8",), keep_ratios=ratios, sparsities=(0.0,), channel_multiple=4
    )
    return Fake.make(3, 1, options=options)


def outcome_of(candidate: Candidate, fake: Fake = FAKE) -> Outcome:
    """Mostly what the trial scores; some candidates fail in each possible way."""
    kind = candidate.id % 7
    if kind == 2:
        return Outcome(Status.FAILED, reason="the worker was killed")
    if kind == 4:
        return Outcome(Status.INFEASIBLE, size_bytes=10**9, latency_ms=1e3, reason="the file was larger than predicted")
    return fake.run(candidate)


def drive(
    controller: Controller, steps: int, fake: Fake = FAKE, waiting: list[Candidate] | None = None
) -> list[Candidate]:
    """Ask `steps` times with three trials in flight, told newest first: an order that no controller can expect."""
    waiting = [] if waiting is None else waiting
    asked = []
    for _ in range(steps):
        candidate = controller.ask()
        if candidate is None:
            break
        asked.append(candidate)
        waiting.append(candidate)
        if len(waiting) == 3:
            done = waiting.pop()
            controller.tell(done, outcome_of(done, fake))
    return asked


def genes_of(candidates: list[Candidate]) -> list[tuple[int, ...]]:
    return [candidate.genes for candidate in candidates]


@everyone
def test_one_seed_one_sequence(name: str) -> None:
    first, second = drive(make(name), 30), drive(make(name), 30)
    assert len(first) >= 20
    assert first == second


@pytest.mark.parametrize("name", SEARCHING)
def test_another_seed_another_sequence(name: str) -> None:
    assert genes_of(drive(make(name), 24)) != genes_of(drive(make(name, seed=1), 24))


@everyone
def test_candidates_are_numbered_legal_within_budget_and_new(name: str) -> None:
    asked = drive(make(name), 36)
    assert [candidate.id for candidate in asked] == list(range(len(asked)))
    assert len(set(genes_of(asked))) == len(asked)
    for candidate in asked:
        genes = FAKE.space.check(candidate.genes)
        assert candidate.policy == FAKE.space.decode(genes)
        assert TIGHT.admits(*(float(cost[0]) for cost in FAKE.cost(genes[None])))


@pytest.mark.parametrize("name", SEARCHING)
def test_codebooks_and_patterns_of_zeros_are_tried_where_they_are_offered(name: str) -> None:
    options = SpaceOptions(
        weight_bits=(4, 8), activations=("int8",), sparsities=(0.0, 0.75), clusters=(4, 16, 32),
        patterns=("unstructured", "block", "2:4"),
    )  # fmt: skip
    fake = Fake.make(options=options)
    asked = drive(make(name, fake), 24, fake=fake)
    decisions = {decision for candidate in asked for decision in candidate.policy.layers.values()}
    assert {decision.clusters for decision in decisions} >= {None, 4, 16}
    assert {candidate.policy for candidate in asked} == {fake.space.decode(candidate.genes) for candidate in asked}
    assert {decision.pattern for decision in decisions} == {"unstructured", "block", "2:4"}


@everyone
@pytest.mark.parametrize("others", [False, True], ids=["memory alone", "every bound"])
def test_memory_is_bounded_like_size_and_latency(name: str, others: bool) -> None:
    bound = int(FULL.memory_bytes[0] * 0.3)
    budget = Budget(TIGHT.size_bytes if others else None, TIGHT.latency_ms if others else None, memory_bytes=bound)
    asked = drive(make(name, budget=budget), 16)
    assert len(asked) == 16
    costs = FAKE.cost(np.array([candidate.genes for candidate in asked]))
    assert costs.memory_bytes.max() <= bound
    assert (violation(costs, budget) == 0).all()


@everyone
def test_many_asks_before_a_tell(name: str) -> None:
    controller = make(name)
    asked = [controller.ask() for _ in range(24)]
    candidates = [candidate for candidate in asked if candidate is not None]
    assert len(set(genes_of(candidates))) == len(candidates) == 24
    for candidate in reversed(candidates):
        controller.tell(candidate, outcome_of(candidate))
    assert controller.ask() is not None
    assert len(controller.pending) == 1


@everyone
@pytest.mark.parametrize("status", [Status.FAILED, Status.INFEASIBLE])
def test_goes_on_when_nothing_completes(name: str, status: Status) -> None:
    controller = make(name)
    for _ in range(25):
        candidate = controller.ask()
        assert candidate is not None
        controller.tell(candidate, Outcome(status, reason="as every other"))


@everyone
@pytest.mark.parametrize("cut", [0, 5, 21])
def test_restored_in_the_middle_it_continues_the_same(name: str, cut: int) -> None:
    controller, waiting = make(name), []
    drive(controller, cut, waiting=waiting)
    saved = json.loads(json.dumps(controller.state()))
    restored = make(name)
    restored.restore(saved)
    assert restored.pending == controller.pending
    assert restored.state() == controller.state()
    still_waiting = list(waiting)
    assert drive(restored, 10, waiting=still_waiting) == drive(controller, 10, waiting=waiting)


@everyone
def test_restore_refuses_what_was_another_run(name: str) -> None:
    controller = make(name)
    drive(controller, 8)
    state = controller.state()
    with pytest.raises(RunError, match="seed"):
        make(name, seed=1).restore(state)
    with pytest.raises(RunError, match="changed since the run was saved"):
        make(name, budget=Budget(int(FULL.size_bytes[0] * 0.07))).restore(state)
    with pytest.raises(ValueError, match="fresh"):
        controller.restore(state)


@everyone
def test_tell_refuses_what_cannot_be(name: str) -> None:
    controller = make(name)
    candidate = controller.ask()
    assert candidate is not None
    with pytest.raises(ValueError, match="candidate 7 is unknown"):
        controller.tell(Candidate(7, candidate.genes, candidate.policy), outcome_of(candidate))
    other = tuple(FAKE.space.largest.tolist())
    with pytest.raises(ValueError, match="other genes"):
        controller.tell(Candidate(0, other, FAKE.space.decode(other)), outcome_of(candidate))
    with pytest.raises(ValueError, match="not finite"):
        controller.tell(candidate, Outcome(Status.COMPLETE, float("nan"), 1, 1.0))
    controller.tell(candidate, outcome_of(candidate))
    with pytest.raises(ValueError, match="candidate 0 was told twice"):
        controller.tell(candidate, outcome_of(candidate))


@everyone
def test_a_space_of_three_ends(name: str) -> None:
    fake = tiny()
    assert fake.space.size == 3
    controller = make(name, fake, Budget())
    asked = drive(controller, 10, fake)
    assert sorted(genes_of(asked)) == [(0,), (1,), (2,)]
    assert controller.ask() is None
    assert controller.ask() is None
    again = make(name, fake, Budget())
    again.restore(controller.state())
    assert again.ask() is None


@everyone
def test_a_space_without_a_choice_has_one_candidate(name: str) -> None:
    fake = tiny(1)
    assert len(fake.space) == 0
    controller = make(name, fake, Budget())
    assert len(drive(controller, 5, fake)) == 1
    assert controller.ask() is None


@pytest.mark.parametrize("name", SEARCHING)
def test_a_budget_that_nothing_meets_gives_the_nearest_and_ends(name: str) -> None:
    controller = make(name, budget=Budget(size_bytes=10))
    asked = drive(controller, 5)
    assert len(asked) == 1
    assert FAKE.cost(np.array([asked[0].genes])).size_bytes[0] == FAKE.cost(FAKE.space.smallest[None]).size_bytes[0]


@everyone
def test_leaves_global_random_state_and_threads_alone(name: str) -> None:
    import random

    import torch

    np.random.seed(3)  # noqa: NPY002 - the global state is what is looked at
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    threads = torch.get_num_threads()
    drive(make(name), 20)
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    assert before == after
    assert threads == torch.get_num_threads()


def test_unknown_controller_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'evolution'"):
        make("evolutoin")


@everyone
def test_registered_name_is_the_class_name(name: str) -> None:
    assert make(name).name == name
    assert list(REGISTRY) == list(NAMES)


def test_importing_the_package_loads_no_library() -> None:
    code = "import sys, autocomp.controllers; print([m for m in ('torch', 'optuna', 'pymoo') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
