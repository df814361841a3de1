"""One trial: what a compiler rules out ahead of training, and when a file is not what was trained."""

import numpy as np
import pytest
import torch
from needs import needs
from torch import nn

from autocomp import Task
from autocomp.artifact import Target
from autocomp.bench import Bench
from autocomp.budget import Budget
from autocomp.hardware.profile import find_profile
from autocomp.policy import LayerPolicy, Policy
from autocomp.tasks.task import Data
from autocomp.trial import TrialRunner, unexplained_gap

needs("ethosu.vela")
needs("ai_edge_litert.interpreter")

NPU = find_profile("npu_ethos_u55")
POLICY = Policy({"0": LayerPolicy(8, "int8"), "4": LayerPolicy(4, "int8")})


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    images = rng.normal(labels[:, None, None, None], 0.3, (200, 1, 8, 8)).astype(np.float32)
    network = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 4))
    data = Data(images, labels.astype(np.int64))
    return Bench.make(Task(network.eval(), train=data, validation=data, epochs=1), tmp_path_factory.mktemp("bench"))


def run(bench: Bench, folder, budget: Budget, monkeypatch=None):
    with TrialRunner(bench, [Target.of(NPU, budget)]) as runner:
        if monkeypatch is not None:
            monkeypatch.setattr(runner, "_finetune", lambda *_: pytest.fail("it was trained"))
        return runner.run(POLICY, 0, folder / "model")


def test_what_is_within_its_budget_is_trained_and_takes_what_its_draft_said(bench, tmp_path):
    result = run(bench, tmp_path, Budget(latency_ms=50))
    draft, made = result.drafts[NPU.name], result.primary
    assert {path.name for path in tmp_path.iterdir()} == {"model.tflite", f"model.{NPU.name}.tflite"}
    assert draft.latency_ms == pytest.approx(made.latency_ms, rel=0.02)
    assert draft.stored_bytes == pytest.approx(made.stored_bytes, rel=0.02)
    assert draft.memory_bytes == made.memory_bytes


@pytest.mark.parametrize("bound", ["size_bytes", "latency_ms", "memory_bytes"])
def test_what_is_over_its_budget_is_not_trained_and_leaves_no_file(bench, tmp_path, monkeypatch, bound):
    budget = Budget(**{bound: 1e-3 if bound == "latency_ms" else 100})
    result = run(bench, tmp_path, budget, monkeypatch)
    assert result.artifacts == {} and result.files == {}
    assert budget.excess(*(getattr(result.drafts[NPU.name], name) for name in FIGURES)) > 0
    assert not list(tmp_path.iterdir())


FIGURES = ("stored_bytes", "latency_ms", "memory_bytes")


def test_without_a_bound_nothing_is_drafted_and_the_files_are_the_same(bench, tmp_path):
    for name, budget in (("free", Budget(accuracy_drop=0.01)), ("bounded", Budget(latency_ms=50))):
        (tmp_path / name).mkdir()
        result = run(bench, tmp_path / name, budget)
        assert bool(result.drafts) == (name == "bounded")
    files = [(tmp_path / name / "model.tflite").read_bytes() for name in ("free", "bounded")]
    assert files[0] == files[1]


LABELS = np.random.default_rng(0).integers(0, 10, 400)


def top1(outputs: np.ndarray) -> float:
    return float((outputs.argmax(1) == LABELS).mean())


def changed(outputs: np.ndarray, others: np.ndarray) -> int:
    return int((outputs.argmax(1) != others.argmax(1)).sum())


def answers(right: float, seed: int) -> np.ndarray:
    """Scores of 10 classes, of which so large a share answers rightly."""
    rng = np.random.default_rng(seed)
    scores = rng.random((400, 10))
    scores[np.arange(400), LABELS] += np.where(rng.random(400) < right, 1.0, 0.0)
    return scores


def test_a_file_that_answers_as_simulated_passes_and_one_that_answers_otherwise_does_not():
    simulated = answers(0.9, 1)
    assert unexplained_gap(simulated, simulated, top1, changed) == ""
    damaged = simulated.copy()
    damaged[:20] = -damaged[:20]  # 5 points lost, all in one direction
    assert "torch simulated" in unexplained_gap(simulated, damaged, top1, changed)
    assert unexplained_gap(simulated, np.roll(simulated, 1, axis=1), top1, changed)


def test_many_answers_of_a_ruined_network_may_change_both_ways():
    one, other = answers(0.3, 1), answers(0.3, 2)
    assert abs(top1(one) - top1(other)) > 0.01
    assert unexplained_gap(one, other, top1, changed) == ""
