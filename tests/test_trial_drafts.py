"""Trials for an NPU with a bound: what its compiler rules out ahead of training is not trained."""

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("ethosu.vela")
pytest.importorskip("ai_edge_litert.interpreter")

from autocomp import Task
from autocomp.artifact import Target
from autocomp.bench import Bench
from autocomp.budget import Budget
from autocomp.hardware.profile import find_profile
from autocomp.policy import LayerPolicy, Policy
from autocomp.tasks.task import Data
from autocomp.trial import TrialRunner

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
