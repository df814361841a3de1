"""What is tried before a search begins: metrics, losses, a training step, what the float network learned."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from small_tasks import CLASSES, CLASSIFIER, NUMBERS, REGRESSION, X, Y, accuracy, check, fit, refuse, rmse, score
from torch import nn
from torch.nn import functional

from autocomp import Task
from autocomp.artifact import Target
from autocomp.bench import Bench
from autocomp.compress.finetune import outputs_of
from autocomp.display import QuietDisplay
from autocomp.errors import UserError
from autocomp.policy import LayerPolicy, Policy
from autocomp.tasks import TaskRequest, load_task
from autocomp.tasks.check import judge_of
from autocomp.tasks.judge import recorded_scale
from autocomp.trial import TrialRunner


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "labels: 4 classes (integers); judged by top-1 accuracy, higher is better; loss: cross-entropy"),
        ({"labels": functional.one_hot(Y)}, "labels: 4 classes (one-hot); judged by top-1 accuracy"),
        (
            {"labels": None},
            "labels: none; judged by agreement with the float network (top-1 accuracy); loss: the float",
        ),
        ({"network": REGRESSION, "labels": NUMBERS}, "labels: numbers to be met, 3 an example; judged by relative fit"),
        ({"metric": accuracy}, "judged by accuracy, higher is better; loss: cross-entropy"),
        ({"loss": nn.CrossEntropyLoss()}, "judged by top-1 accuracy, higher is better; loss: CrossEntropyLoss"),
        (
            {"network": REGRESSION, "labels": NUMBERS, "metric": rmse, "maximize": False},
            "judged by rmse, less is better: score 1 / (1 + value / 1.",
        ),
    ],
)
def test_what_was_taken_for_what_is_said_in_a_line(settings, expected):
    assert len(check(**settings).notes) == 1
    assert expected in check(**settings).notes[0]
    assert check(**settings).judge.facts()["sentence"] == check(**settings).notes[0]


@pytest.mark.parametrize(
    "labels",
    [
        Y,
        Y.float(),
        Y[:, None],
        functional.one_hot(Y).float(),
        Y.to(torch.uint8),
        np.array([str(y) for y in Y.tolist()]),
    ],
    ids=["integers", "floats", "a column", "one-hot", "bytes", "text"],
)
def test_classes_however_they_are_spelled_are_scored_alike(labels):
    checked = check(labels=labels)
    task = Task(CLASSIFIER, train=(X, labels))
    expected = (outputs_of(CLASSIFIER, task.validation.inputs).argmax(1) == checked.labels).mean()
    assert checked.judge.score(outputs_of(CLASSIFIER, task.validation.inputs), checked.labels) == expected > 0.95
    assert sorted(np.unique(checked.targets)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "metric",
    [
        accuracy,
        lambda o, t: (o.argmax(dim=1) == t).float().mean(),
        lambda o, t: functional.cross_entropy(o, t).neg().exp(),
        lambda o, t: np.array([accuracy(o, t)]),
    ],
    ids=["arrays", "tensors", "functional", "an array of one"],
)
def test_a_metric_gets_what_it_can_use(metric):
    checked = check(metric=metric)
    assert 0.9 < score(checked, CLASSIFIER) <= 1


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (lambda o, t: 7.0, r"must lie in \[0, 1\], higher is better; it gave 7"),
        (lambda o, t: 100 * accuracy(o, t), "divide percent by 100"),
        (lambda o, t: -rmse(o, np.eye(4)[t]), r"give an error instead, with Task\(maximize=False\)"),
        (lambda o, t: float("nan"), "gives nan for the float network"),
        (lambda o, t: {"accuracy": 1}, "it must return one number, got dict"),
        (lambda o, t: None, "it must return one number, got NoneType"),
        (lambda o, t: np.complex64(accuracy(o, t)), "it must return one real number"),
        (lambda o, t: exit(3), "given numpy arrays, SystemExit: 3"),
        (lambda o, t: (o.argmax(1) == t), "it must return one number"),
        (lambda o, t: o.no_such_thing(t), r"fails on outputs \(\d+, 4\) float32 .* given numpy arrays, Attr"),
        (lambda o, t: 1 - accuracy(o, t), r"0 for the float network and 0\.\d+ for its .*maximize=False"),
        (lambda o, t: rmse(o, 10 * np.eye(4)[t]), r"where less is better, say Task\(maximize=False\)"),
    ],
)  # fmt: skip
def test_a_metric_that_cannot_judge_is_refused(metric, expected):
    refuse(expected, metric=metric)


def test_whoever_says_which_way_is_better_is_believed():
    checked = check(metric=lambda o, t: 1 - accuracy(o, t), maximize=True)
    assert score(checked, CLASSIFIER) < 0.1
    assert "warning" in checked.notes[1]


def test_of_an_error_the_score_is_one_for_a_match_and_a_half_for_guessing():
    settings = {"network": REGRESSION, "labels": NUMBERS, "metric": rmse, "maximize": False}
    checked = check(**settings)
    task = Task(REGRESSION, train=(X, NUMBERS))
    outputs, judge = outputs_of(REGRESSION, task.validation.inputs), checked.judge
    assert judge.score(checked.labels, checked.labels) == 1
    assert judge.score(outputs, checked.labels) > 0.7
    worse = [judge.score(outputs + shift, checked.labels) for shift in (0, 0.5, 1, 5)]
    assert worse == sorted(worse, reverse=True)
    shuffled = outputs[np.random.default_rng(5).permutation(len(outputs))]
    assert judge.score(shuffled, checked.labels) == pytest.approx(0.5, abs=0.05)
    assert judge.score(outputs * np.nan, checked.labels) == 0
    # Whoever scores again later does so by what was recorded, whatever the outputs are by then.
    again = judge_of(
        Task(**settings | {"train": (X, NUMBERS), "labels": None}), outputs + 1, recorded_scale(judge.facts())
    )
    assert again.score(outputs, checked.labels) == judge.score(outputs, checked.labels)
    with pytest.raises(UserError, match="less is better than 0: expected errors from 0 up"):
        check(**settings | {"metric": lambda o, t: rmse(o, t) - 1})
    with pytest.raises(UserError, match="0 for a match and larger for less"):
        check(**settings | {"metric": lambda o, t: 0.0})


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1), functional.cross_entropy]
)
@pytest.mark.parametrize("labels", [Y, Y.int(), Y[:, None], Y.float()], ids=["int64", "int32", "a column", "floats"])
def test_a_loss_of_the_users_own_gets_classes_as_it_takes_them(loss, labels):
    assert check(loss=loss, labels=labels).targets.shape[0] == 140


def test_a_loss_is_not_trained_on_a_broadcast():
    """MSELoss of (n, 1) and (n,) compares all with all, and torch only warns."""
    network, numbers = fit(functional.mse_loss, NUMBERS[:, :1], 1), NUMBERS[:, 0]
    assert check(network, numbers, loss=nn.MSELoss()).targets.shape == (140, 1)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda o, t: exit(3), "fails on outputs .*: SystemExit: 3"),
        (nn.BCEWithLogitsLoss(), r"fails on outputs \(64, 4\) float32 and labels \(64,\) int64: ValueError"),
        (nn.CrossEntropyLoss(reduction="none"), r"it must return one number, got shape \(64,\): take the mean"),
        (lambda o, t: 0.5, "it must return a tensor, got float"),
        (lambda o, t: (o.argmax(1) == t).float().mean(), "does not depend on the outputs"),
        (lambda o, t: functional.cross_entropy(o.detach(), t), "does not depend on the outputs"),
        (lambda o, t: functional.cross_entropy(o, t) / 0, "it gives inf"),
        (lambda o, t: (o.sum() * 0).sqrt(), "its gradient is not finite"),
    ],
)  # fmt: skip
def test_a_loss_that_cannot_be_trained_with_is_refused(loss, expected):
    refuse(expected, loss=loss)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"learning_rate": 0.0}, "Task.learning_rate: expected a number greater than 0, got 0.0"),
        ({"learning_rate": float("nan")}, "Task.learning_rate: .* got nan"),
        ({"learning_rate": "fast"}, "Task.learning_rate: .* got 'fast'"),
        ({"batch_size": 0}, "Task.batch_size: expected a whole number from 1 up, got 0"),
        ({"batch_size": 2.5}, "Task.batch_size"),
        ({"batch_size": True}, "Task.batch_size"),
        ({"epochs": -1}, "Task.epochs: expected a number from 0 up, got -1"),
        ({"epochs": float("inf")}, "Task.epochs"),
        ({"minutes": 0}, "Task.minutes"),
        ({"metric": 0.9}, r"Task.metric must be a function of \(outputs, labels\), got float"),
        ({"loss": "mse"}, "Task.loss must be a function"),
        ({"loss": nn.MSELoss}, "Task.loss is the class MSELoss: give an instance"),
        ({"maximize": False}, "give the metric too"),
        ({"metric": accuracy, "maximize": "no"}, "Task.maximize: expected True, False or None, got 'no'"),
        ({"name": 3}, "Task.name: expected a name, got 3"),
        ({"space": "default"}, "Task.space: expected autocomp.space.SpaceOptions, got 'default'"),
        ({"labels": "class"}, "Task.labels: expected one of 'classes', 'binary', 'numbers', got 'class'"),
    ],
)
def test_settings_are_refused_where_they_are_set(settings, expected):
    with pytest.raises(UserError, match=expected):
        Task(CLASSIFIER, train=(X, Y), **settings)


def test_settings_may_be_of_numpy_and_whole_floats():
    task = Task(CLASSIFIER, train=(X, Y), batch_size=np.int64(8), learning_rate=np.float32(0.5), epochs=np.float64(2))
    assert [type(value) for value in (task.batch_size, task.learning_rate, task.epochs)] == [int, float, float]
    assert Task(CLASSIFIER, train=(X, Y), batch_size=16.0).batch_size == 16


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"labels": Y + 1}, r"Task.train: the label of item \d+ is 4, and the network has 4 outputs: .* subtract 1"),
        ({"labels": torch.where(torch.arange(200) == 7, -1, Y)}, "Task.train: the label of item 7 is -1"),
        ({"labels": torch.randn(200, 3)}, "do not fit outputs"),
        ({"metric": accuracy, "labels": torch.randn(200, 3, 3)}, "do not fit outputs"),  # the loss asks for it
    ],
)
def test_labels_that_the_network_does_not_have_are_refused(settings, expected):
    refuse(expected, **settings)


def test_labels_that_only_the_users_functions_understand_are_theirs():
    boxes = torch.randn(200, 3, 3)
    checked = check(
        labels=boxes, metric=lambda o, t: float(t.shape[1:] == (3, 3)), loss=lambda o, t: (o.mean() - t.mean()) ** 2
    )
    assert checked.labels.shape[1:] == checked.targets.shape[1:] == (3, 3)
    assert "labels: as they come" in checked.notes[0]


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (
            nn.Sequential(CLASSIFIER, nn.Threshold(1e9, float("nan"))),
            r"output for item \d+ of Task.train is not",
        ),
        (nn.Linear(7, CLASSES), r"fails on inputs of shape \(\d+, 8\) from Task.train: RuntimeError"),
        (nn.Sequential(CLASSIFIER, nn.Flatten(0)), r"gives outputs of shape \(\d+,\) for"),
    ],
)
def test_outputs_that_are_no_numbers_or_none_an_input(network, expected):
    refuse(expected, network=network)


def test_a_network_that_learned_nothing_is_said():
    assert len(check().notes) == 1
    pixels = (X * 30 + 128).clamp(0, 255).to(torch.uint8)
    (_, warning) = check(inputs=pixels).notes
    assert "warning: the float network scores" in warning and "check that inputs are prepared" in warning
    torch.manual_seed(1)
    constant = nn.Sequential(nn.Linear(8, CLASSES), nn.Threshold(1e9, 0), nn.Linear(CLASSES, CLASSES)).eval()
    assert "scores 25.0 % on the validation split, where guessing gives 25.0 %" in check(constant).notes[1]
    halves = fit(functional.cross_entropy, Y % 2, CLASSES)  # never answers 2 and 3
    assert "never answers classes that 50 % of the labels have" in check(halves).notes[1]
    assert "guessing gives 50." in check(REGRESSION, torch.randn(200, 3)).notes[1]
    assert len(check(REGRESSION, NUMBERS).notes) == 1
    assert len(check(labels=None).notes) == 1  # nobody knows


def test_one_training_step_is_tried():
    class Frozen(nn.Module):
        """Works, and cannot be trained: it computes without a gradient."""

        def __init__(self):
            super().__init__()
            self.inner = CLASSIFIER

        def forward(self, x):
            return self.inner(x).detach()

    refuse("a training step fails on inputs of shape .*: RuntimeError", network=Frozen())
    before = {name: value.clone() for name, value in CLASSIFIER.state_dict().items()}
    check(epochs=0, network=Frozen())  # nothing is trained
    check(learning_rate=10.0)
    for name, value in CLASSIFIER.state_dict().items():
        assert torch.equal(value, before[name])


class Maps(nn.Module):
    """A small U-Net: down, up, and a skip in between."""

    def __init__(self):
        super().__init__()
        self.down, self.deep = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.up, self.head = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(9, 3, 1)

    def forward(self, x):
        y = self.up(torch.relu(self.deep(torch.relu(self.down(x)))))
        return self.head(torch.cat([torch.relu(y), x], 1))


def test_a_network_of_maps_is_trained_and_judged_by_its_pixels(tmp_path):
    """Labels (n, h, w), neither metric nor loss: a trial of 4 bits, which is trained, gives a file."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, 8, 8, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 0] > 1).long()
    torch.manual_seed(0)
    network = Maps()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    bench = Bench.make(Task(network.eval(), train=(x, y), batch_size=16), tmp_path / "bench")
    assert bench.notes == [
        "labels: 3 classes (integers) at each of 8×8 positions; judged by mean IoU, higher is better; "
        "loss: cross-entropy"
    ]
    assert bench.settings["judge"]["metric"] == "mean IoU"
    policy = Policy({layer.name: LayerPolicy(4, "float") for layer in bench.traced.spec.layers})
    with TrialRunner(bench, [Target("any")]) as runner:
        result = runner.run(policy, 0, tmp_path / "model")
    assert "finetune_s" in result.details and result.primary.accuracy > 0.7


TASK = """
import torch
from torch import nn
from autocomp import Task
from beside.metrics import Share
from loss import cross_entropy

def task():
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    network = nn.Linear(4, 2)
    return Task(network, train=(x, network(x).argmax(1)), metric=Share(), loss=cross_entropy, name="mine")
"""

#: A worker on another machine: it has the bench and not the task's folder.
WORKER = """
import sys, numpy as np
from pathlib import Path
from autocomp.bench import Bench
bench = Bench(Path(sys.argv[1]))
assert not any(name in sys.modules for name in ("beside", "loss", "constants"))
import torch
labels = np.array([0, 1])
print(bench.judge.score(np.eye(2), labels), float(bench.judge.training_loss(torch.eye(2), torch.from_numpy(labels))))
"""


@pytest.mark.parametrize("gone", [True, False], ids=["another machine", "this machine"])
def test_what_a_metric_imports_from_beside_the_task_file_works_in_workers(tmp_path, gone):
    place = tmp_path / "project"
    (place / "beside").mkdir(parents=True)
    (place / "mine.py").write_text(TASK)
    (place / "beside" / "__init__.py").write_text("")
    share = "class Share:\n    def __call__(self, o, t):\n        return share(o, t)\n"
    (place / "beside" / "metrics.py").write_text(f"from beside.shares import share\n{share}")
    late = "" if gone else "    import late\n"  # which only a worker on this machine can
    (place / "beside" / "shares.py").write_text(f"def share(o, t):\n{late}    return (o.argmax(1) == t).mean()\n")
    (place / "late.py").write_text("")
    (place / "constants.py").write_text("SMOOTHING = 0.0\n")
    loss = "def cross_entropy(o, t):\n    return F.cross_entropy(o, t, label_smoothing=constants.SMOOTHING)\n"
    (place / "loss.py").write_text(f"import constants\nfrom torch.nn import functional as F\n{loss}")
    kept, modules = [*sys.path], {*sys.modules}
    try:
        Bench.make(load_task(TaskRequest(f"{place / 'mine.py'}:task"), QuietDisplay()), tmp_path / "bench")
    finally:
        sys.path[:] = kept
        for name in {*sys.modules} - modules:
            if name.partition(".")[0] in ("beside", "loss", "constants", "late", "autocomp_task_mine"):
                del sys.modules[name]
    if gone:
        place.rename(tmp_path / "elsewhere")
    done = subprocess.run([sys.executable, "-c", WORKER, tmp_path / "bench"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    found, loss = map(float, done.stdout.split())
    assert found == 1
    assert loss == pytest.approx(float(functional.cross_entropy(torch.eye(2), torch.tensor([0, 1]))))


def test_a_metric_that_cannot_be_sent_to_workers_is_refused(tmp_path):
    with (tmp_path / "log").open("w") as log:
        task = Task(CLASSIFIER, train=(X, Y), metric=lambda o, t: log.write("") + accuracy(o, t))
        with pytest.raises(UserError, match="metric or loss cannot be sent to the workers: PicklingError"):
            Bench.make(task, tmp_path / "bench")
