"""How outputs are judged and what training minimizes, decided once from a task and its float network's outputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autocomp.errors import UserError
from autocomp.tasks.labels import IGNORED, Meaning, Split, meaning_of, without_labels
from autocomp.tasks.metrics import DefaultLoss, Distillation, Measured, guess, measure_of
from autocomp.tasks.task import Loss, Metric, Task

#: How often outputs are shuffled to see what guessing gets by a metric of the user's own.
_SHUFFLES = 10


@dataclass(frozen=True)
class OnTensors:
    """A metric that was written for torch tensors, as one for arrays."""

    function: Callable[..., Any]

    def __call__(self, outputs: NDArray[Any], labels: NDArray[Any]) -> Any:
        return self.function(torch.from_numpy(np.array(outputs)), torch.from_numpy(np.array(labels)))


@dataclass(frozen=True)
class Judge:
    """Scores outputs (n, …) against labels (n, …); the score lies in [0, 1], and more is better.

    meaning: of labels, None where the task's own metric and loss leave nothing to be told. metric, loss: the task's
    own, or None. encoded_loss: whether its loss takes labels as `meaning` has them rather than as they came. against:
    whether there are labels, or the float network's own answers stand in for them. scale: of a metric of which less is
    better, what guessing gets by it; None where more is better. variance: of training labels that are numbers.
    trains_on_labels: whether training sees labels beside the float network's outputs.
    """

    meaning: Meaning | None
    metric: Metric | None = None
    loss: Loss | None = None
    encoded_loss: bool = False
    against: str = "labels"
    scale: float | None = None
    variance: float = 1.0
    trains_on_labels: bool = True

    @classmethod
    def of(cls, task: Task, outputs: NDArray[Any], scale: float | None = None) -> "Judge":
        """outputs: (n, …) of the float network on the validation split. scale: recorded by an earlier judge.

        UserError where labels fit no reading that the task's metric and loss need.
        """
        splits = splits_of(task)
        against = "answers" if task.validation.labels is None else "labels"
        for_training = task.train.labels is not None and task.loss is None
        needed = (task.metric is None and against == "labels") or for_training
        meaning = None
        if splits and (needed or task.metric is None or task.loss is None):
            try:
                meaning = meaning_of(outputs, splits, task.labels)
            except UserError:
                if needed:
                    raise
        if meaning is None and not splits:
            meaning = without_labels(outputs.shape[1:], task.labels)
        variance = 1.0
        if meaning is not None and meaning.kind == "numbers" and task.train.labels is not None:
            variance = max(float(np.var(task.train.labels.astype(np.float64))), 1e-12)
        return cls(
            meaning, task.metric, task.loss, against=against, scale=scale, variance=variance,
            trains_on_labels=task.train.labels is not None,
        )  # fmt: skip

    @property
    def measured(self) -> Measured:
        """The metric with its name."""
        if self.metric is not None:
            own = self.metric.function if isinstance(self.metric, OnTensors) else self.metric
            name = getattr(own, "__name__", type(own).__name__)
            return Measured("the task's metric" if name == "<lambda>" else name, self.metric)
        assert self.meaning is not None
        return measure_of(self.meaning)

    def score(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
        """labels: as `encode` or `answers` gave them. Of a metric of which less is better: 1 / (1 + value / scale)."""
        if self.metric is None:
            assert self.meaning is not None
            return float(self.measured.measure(self.meaning.decode(outputs), labels))
        value = number(self.metric(outputs, labels))
        if self.scale is None:
            return min(max(value, 0.0), 1.0) if np.isfinite(value) else 0.0
        return 1 / (1 + max(value, 0.0) / self.scale) if np.isfinite(value) else 0.0

    def encode(self, split: Split) -> NDArray[Any]:
        """Labels as `score` takes them: a metric of the task's own gets them as they came."""
        if self.metric is not None or self.meaning is None:
            return split.labels
        return self.meaning.encode(split)

    def answers(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """What stands in for labels where there are none: the float network's own answers."""
        meaning = self.meaning if self.meaning is not None else without_labels(outputs.shape[1:])
        return meaning.decode(outputs)

    def labels_of(self, split: Split, outputs: NDArray[Any] | None) -> NDArray[Any]:
        """What a split is scored against: its labels, or the answers in the float network's outputs for it."""
        if split.labels is not None:
            return self.encode(split)
        assert outputs is not None
        return self.answers(outputs)

    def changed(self, outputs: NDArray[Any], others: NDArray[Any]) -> float:
        """How many examples are answered differently, positions by their share; 0 where answers are numbers."""
        meaning = self.meaning if self.meaning is not None else without_labels(outputs.shape[1:])
        if meaning.kind == "numbers":
            return 0.0
        differ = meaning.decode(outputs) != meaning.decode(others)
        return float(differ.reshape(len(differ), -1).mean(axis=1).sum())

    def targets(self, split: Split) -> NDArray[Any]:
        """Labels as `training_loss` takes them."""
        if self.loss is not None and not self.encoded_loss:
            return split.labels
        assert self.meaning is not None
        return self.meaning.targets(split)

    @property
    def training_loss(self) -> Loss:
        """(outputs, targets) → scalar tensor."""
        if self.loss is not None:
            return self.loss
        return DefaultLoss(self.meaning or Meaning("numbers", ()), self.variance)

    @property
    def distillation(self) -> Loss | None:
        """(outputs, the float network's) → scalar tensor; None where it goes by the shape of the outputs alone."""
        return None if self.meaning is None else Distillation(self.meaning)

    def guessed(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
        """The score of who does not look at the inputs. labels: as `encode` gives them."""
        if self.metric is None:
            assert self.meaning is not None
            return float(self.measured.measure(guess(self.meaning, labels), labels))
        return max(self.score(other, labels) for other in shuffled(outputs))

    def never_answered(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
        """Share of the judged labels, as `encode` gives them, whose class is never answered; 0 without classes."""
        if self.meaning is None or self.meaning.kind != "classes":
            return 0.0
        judged = labels[labels != IGNORED]
        return 1.0 - float(np.isin(judged, np.unique(self.meaning.decode(outputs))).mean())

    def describe(self) -> str:
        """What was taken for what, in a line."""
        name, less = self.measured.name, ""
        if self.scale is not None:
            less = f", less is better: score 1 / (1 + value / {self.scale:.4g}), where guessing gets {self.scale:.4g}"
        better = less or ", higher is better"
        if self.against == "answers":
            labels = "none"
            judged = f"agreement with the float network ({name}){less}"
        else:
            labels = "as they come" if self.meaning is None else spelled(self.meaning)
            judged = f"{name}{better}"
        return f"labels: {labels}; judged by {judged}; loss: {self.loss_name}"

    @property
    def loss_name(self) -> str:
        if not self.trains_on_labels or (self.loss is None and self.meaning is None):
            return "the float network's outputs alone"
        if self.loss is not None:
            name = getattr(self.loss, "__name__", type(self.loss).__name__)
            return "the task's own" if name == "<lambda>" else name
        assert self.meaning is not None
        return DefaultLoss(self.meaning).name

    def facts(self) -> dict[str, Any]:
        """For run.yaml."""
        return {
            "metric": self.measured.name, "higher_is_better": self.scale is None, "scale": self.scale,
            "against": self.against, "labels": None if self.meaning is None else spelled(self.meaning),
            "loss": self.loss_name, "sentence": self.describe(),
        }  # fmt: skip


def splits_of(task: Task) -> list[Split]:
    """The labels of a task, by split."""
    named = {"Task.train": task.train, "Task.validation": task.validation, "Task.test": task.test}
    return [Split.of(data, name) for name, data in named.items() if data.labels is not None]


def recorded_scale(facts: Mapping[str, Any] | None) -> float | None:
    """The scale in what `Judge.facts` left in run.yaml."""
    scale = (facts or {}).get("scale")
    return None if scale is None else float(scale)


def number(value: Any) -> float:
    """A metric's result as a float. TypeError where it is no single number."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if np.size(value) != 1 or isinstance(value, str | dict | list | tuple):
        raise TypeError(f"it must return one number, got {type(value).__name__}")
    return float(np.asarray(value).reshape(()))


def shuffled(outputs: NDArray[Any], times: int = _SHUFFLES) -> list[NDArray[Any]]:
    """Outputs (n, …), each time in another order: what knows how outputs are spread, and nothing of the inputs."""
    rng = np.random.default_rng(0)
    return [outputs[rng.permutation(len(outputs))] for _ in range(times)]


def spelled(meaning: Meaning) -> str:
    """What labels are taken for, in words."""
    if meaning.kind == "numbers":
        count = int(np.prod(meaning.shape, dtype=int))
        return f"numbers to be met, {count} an example"
    each = f" at each of {'×'.join(map(str, meaning.positions))} positions" if meaning.positions else ""
    if meaning.kind == "classes":
        how = {"indices": "integers", "one-hot": "one-hot", "shares": "as shares"}[meaning.spelling]
        return f"{meaning.classes} classes ({how}){each}"
    threshold = "each output above 0.5" if meaning.probabilities else "the sign of each output"
    if len(meaning.positions) == 1:
        return f"{meaning.positions[0]} yes-or-no labels an example (by {threshold})"
    return f"two classes (by {threshold.replace('each', 'the')}){each}"
