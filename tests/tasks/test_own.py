"""In what form a metric and a loss of the user's own take outputs and labels."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, r2_score
from small_tasks import CLASSES, CLASSIFIER, NUMBERS, X, Y, accuracy, check, fit, refuse, rmse, score
from torch import nn
from torch.nn import functional

from autocomp import Task
from autocomp.bench import Bench
from autocomp.compress.finetune import outputs_of
from autocomp.tasks.check import Checked

REGRESSION_OF_ONE = fit(functional.mse_loss, NUMBERS[:, :1], 1)


def validated(checked: Checked, network: nn.Module, labels) -> float:
    """Score of a network on the validation split of a task with those labels."""
    task = Task(network, train=(X, labels))
    return checked.judge.score(outputs_of(network, task.validation.inputs), checked.labels)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)], ids=["(n,)", "(n, 1)"])
@pytest.mark.parametrize(
    ("network", "labels", "metric", "maximize"),
    [
        (REGRESSION_OF_ONE, NUMBERS[:, 0], rmse, False),
        (REGRESSION_OF_ONE, NUMBERS[:, 0], lambda o, t: rmse(o[:, 0], t), False),
        (REGRESSION_OF_ONE, NUMBERS[:, 0], lambda o, t: 1 - ((o - t) ** 2).sum() / ((t - t.mean()) ** 2).sum(), True),
        (CLASSIFIER, Y, accuracy, None),
        (CLASSIFIER, Y, lambda o, t: (o.argmax(dim=1) == t).float().mean(), None),
    ],
    ids=["RMSE", "RMSE of a column", "R²", "accuracy", "accuracy of tensors"],
)
def test_a_metric_sees_which_label_belongs_to_which_output(network, labels, metric, maximize, shape):
    """Labels (n, 1) beside (n,) answers are n² comparisons, by which every network is as good as guessing."""
    checked = check(network, labels.reshape(shape), metric=metric, maximize=maximize)
    assert len(checked.notes) == 1, checked.notes
    assert validated(checked, network, labels.reshape(shape)) > 0.8


def test_a_metric_gets_classes_of_one_hot_labels():
    one_hot = functional.one_hot(Y, CLASSES)
    assert validated(check(labels=one_hot, metric=accuracy), CLASSIFIER, one_hot) > 0.9


def test_metrics_of_scikit_learn_take_labels_first():
    """Their parameters say so; swapped, R² divides by the variance of the outputs."""
    network = fit(functional.mse_loss, NUMBERS[:, :1] / 2, 1)  # half of what is asked for
    checked = check(network, NUMBERS[:, :1], metric=r2_score)
    task = Task(network, train=(X, NUMBERS[:, :1]))
    found = outputs_of(network, task.validation.inputs)
    assert checked.judge.score(found, checked.labels) == pytest.approx(r2_score(checked.labels, found), abs=1e-6)
    assert score(check(metric=accuracy_score), CLASSIFIER) > 0.9
    assert score(check(metric=partial(f1_score, average="macro")), CLASSIFIER) > 0.9
    refuse("given labels and answers, ValueError: Target is multiclass but average='binary'", metric=f1_score)


def test_a_metric_may_change_what_it_is_given():
    def in_place(outputs, labels):
        outputs[:] = outputs.argmax(1)[:, None]
        labels += 0 * labels
        right = (outputs[:, 0] == labels).mean()
        labels[:] = -1
        return right

    checked = check(metric=in_place)
    assert checked.labels.min() == 0
    checked.labels.flags.writeable = False  # as in a worker, which maps a file
    assert validated(checked, CLASSIFIER, Y) > 0.9


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)], ids=["(n,)", "(n, 1)"])
@pytest.mark.parametrize(
    "loss",
    [
        lambda o, t: ((o - t) ** 2).mean(),
        lambda o, t: (o[:, 0] - t).square().sum(),
        lambda o, t: functional.mse_loss(o.squeeze(1), t),
    ],
    ids=["difference", "of a column", "squeezed"],
)
def test_a_loss_holds_each_output_against_its_own_label(loss, shape):
    network, numbers = fit(functional.mse_loss, NUMBERS[:, :1], 1), NUMBERS[:, 0]
    checked = check(network, numbers.reshape(shape), loss=loss)
    outputs = torch.zeros(140, 1, requires_grad=True)
    loss(outputs, torch.from_numpy(checked.targets)).backward()
    slope = outputs.grad[:, 0] / -torch.from_numpy(checked.targets).reshape(-1)
    torch.testing.assert_close(slope, slope[:1].expand(140))  # d/do (o − t)² at o = 0 is −2 t


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_a_loss_gets_one_hot_labels_as_floats_where_it_needs_them(dtype):
    one_hot = functional.one_hot(Y, CLASSES).to(dtype)
    checked = check(labels=one_hot, loss=nn.BCEWithLogitsLoss())
    assert checked.targets.dtype == np.float32
    assert checked.targets.shape == (140, CLASSES)


def test_batches_of_one_are_trained_on():
    for network, labels in ((REGRESSION_OF_ONE, NUMBERS[:, 0]), (CLASSIFIER, Y)):
        check(network, labels, batch_size=1)


def test_what_a_metric_opens_by_a_relative_name_lies_where_the_search_began(tmp_path, monkeypatch):
    for name in ("here", "elsewhere", "bench"):
        (tmp_path / name).mkdir()
    (tmp_path / "here" / "weights.txt").write_text("0.5")

    def weighted(outputs, labels):
        with open("weights.txt") as file:
            return float(file.read()) * (outputs.argmax(1) == labels).mean()

    monkeypatch.chdir(tmp_path / "here")
    bench = Bench.make(Task(CLASSIFIER, train=(X, Y), metric=weighted), tmp_path / "bench")
    monkeypatch.chdir(tmp_path / "elsewhere")
    outputs = outputs_of(CLASSIFIER, bench.validation_inputs)
    with bench.where_made():
        assert bench.judge.score(outputs, bench.validation_labels) == pytest.approx(0.5)
    assert Path.cwd() == tmp_path / "elsewhere"
    (tmp_path / "here").rename(tmp_path / "gone")  # as on another machine
    with bench.where_made():
        assert Path.cwd() == tmp_path / "elsewhere"
