"""Networks that take or return more than one float tensor, the whole way: bench, trial, file, size, scoring."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocomp import Task
from autocomp.artifact import Target
from autocomp.bench import Bench
from autocomp.export.score import Scorer, precision_faults
from autocomp.export.size import FileSizes
from autocomp.export.writer import OnnxWriter
from autocomp.hardware.cost import CostModel
from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.profile import find_profile
from autocomp.policy import INT8, LayerPolicy, Policy
from autocomp.space import SearchSpace, SpaceOptions
from autocomp.trial import TrialRunner

DEVICE = find_profile("mobile_arm")


class DictOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 32), nn.Linear(32, 3), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.a(x))
        return {"aux": self.c(y), "logits": self.b(y)}


class TokenIds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(500, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.embedding(ids).mean(1))))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.RNN, hidden: int = 32) -> None:
        super().__init__()
        self.rnn, self.head = kind(8, hidden, batch_first=True), nn.Linear(hidden, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def floats(*shape: int) -> Tensor:
    return torch.randn(120, *shape, generator=torch.Generator().manual_seed(7))


CASES = {
    "token ids": (
        TokenIds,
        lambda: torch.randint(0, 500, (120, 12), generator=torch.Generator().manual_seed(7)),
        Policy({"embedding": LayerPolicy(4, "float"), "hidden": LayerPolicy(5, "int8"), "head": INT8}, {"hidden": 24}),
    ),
    "rnn": (
        Recurrent,
        lambda: floats(9, 8),
        Policy(
            {"rnn.weight_ih_l0": LayerPolicy(5, "float"), "rnn.weight_hh_l0": LayerPolicy(3, "float"), "head": INT8}
        ),
    ),
    "lstm": (
        lambda: Recurrent(nn.LSTM, 300),  # its weights are too many for the exporter to fold
        lambda: floats(9, 8),
        Policy({"rnn.weight_ih_l0": LayerPolicy(8, "float"), "rnn.weight_hh_l0": LayerPolicy(4, "float", 0.5)}),
    ),
    "dict out": (DictOut, lambda: floats(8), Policy({"a": LayerPolicy(4, "int8"), "b": INT8, "c": INT8}, {"a": 24})),
}


@pytest.fixture(scope="module", params=CASES)
def made(request, tmp_path_factory) -> tuple[Bench, Task, Policy]:
    kind, inputs, policy = CASES[request.param]
    torch.manual_seed(0)
    task = Task(kind().eval(), train=inputs(), epochs=1)
    return Bench.make(task, tmp_path_factory.mktemp("bench")), task, policy


def test_a_trial_gives_a_file_that_executes_as_the_policy_says(made, tmp_path):
    bench, task, policy = made
    DEVICE.check_executable(bench.traced.spec, policy, "the policy")
    with TrialRunner(bench, [Target.of(DEVICE)]) as runner:
        result = runner.run(policy, 0, tmp_path / "model")
    artifact = result.primary
    written = (tmp_path / "model.onnx").stat().st_size
    assert artifact.size_bytes == written
    assert artifact.accuracy == pytest.approx(result.details["simulated_accuracy"], abs=0.05)
    assert predicted_bytes(bench, policy) >= written
    assert predicted_bytes(bench, policy) <= written * 1.02 + 500
    assert rescored(tmp_path / "model.onnx", bench, task, policy, tmp_path) == artifact.accuracy


def predicted_bytes(bench: Bench, policy: Policy) -> int:
    space = SearchSpace.build(bench.traced.spec, SpaceOptions(), DEVICE.veto)
    latency = LatencyModel.from_table(DEVICE.latencies, DEVICE.calibration)
    model = CostModel(space, latency, FileSizes(OnnxWriter(bench.traced)))
    cost, drawn = model.of_policy(policy), model(space.encode(policy))
    assert np.isfinite(cost.latency_ms).all() and (cost.latency_ms > 0).all()
    assert drawn.size_bytes == cost.size_bytes and drawn.latency_ms == pytest.approx(cost.latency_ms)
    return int(cost.size_bytes[0])


def rescored(path: Path, bench: Bench, task: Task, policy: Policy, folder: Path) -> float:
    """As `autocomp verify` scores a file: by layer names alone, in a process of its own."""
    inputs = folder / "validation.npy"
    np.save(inputs, task.validation.inputs)
    with Scorer() as scorer:
        scored = scorer.score(path, inputs, dict.fromkeys(policy.layers, ""))
    assert precision_faults(policy, scored.executed) == []
    return bench.judge.score(scored.outputs, np.asarray(bench.validation_labels))
