"""How outputs are judged and what training minimizes, decided once from a task and its float network's outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocomp.errors import UserError
from autocomp.tasks.labels import IGNORED, Meaning, Split, meaning_of, without_labels
from autocomp.tasks.metrics import DefaultLoss, Distillation, Measured, deviations, guess, measure_of
from autocomp.tasks.own import Shape, metric_name, number, shaped, shuffled
from autocomp.tasks.task import Loss, Metric, Task


@dataclass(frozen=True)
class Judge:
    """Scores outputs (n, …) against labels (n, …); the score lies in [0, 1], and more is better.

    meaning: of labels, None where the task's own metric and loss leave nothing to be told. metric, loss: the task's
    own, or None. encoded_loss: whether its loss takes labels as `meaning` has them rather than as they came;
    loss_shape: in which shape. against: whether there are labels, or the float network's own answers stand in for them.
    scale: of a metric of which less is better, what guessing gets by it; None where more is better. of_labels,
    of_outputs: standard deviations of training labels that are numbers, and of the float network's outputs, see
    `deviations`.
    trains_on_labels: whether training sees labels beside the float network's outputs.
    """

    meaning: Meaning | None
    metric: Metric | None = None
    loss: Loss | None = None
    encoded_loss: bool = False
    loss_shape: Shape = "given"
    against: str = "labels"
    scale: float | None = None
    of_labels: tuple[float, ...] = (1.0,)
    of_outputs: tuple[float, ...] = (1.0,)
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
        of_labels: tuple[float, ...] = (1.0,)
        if meaning is not None and meaning.kind == "numbers" and task.train.labels is not None:
            of_labels = deviations(task.train.labels.reshape(len(task.train.labels), *meaning.shape))
        return cls(
            meaning, task.metric, task.loss, against=against, scale=scale, of_labels=of_labels,
            of_outputs=deviations(outputs), trains_on_labels=task.train.labels is not None,
        )  # fmt: skip

    @property
    def measured(self) -> Measured:
        """The metric with its name."""
        if self.metric is not None:
            return Measured(metric_name(self.metric), self.metric)
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
            labels = split.labels
        else:
            assert self.meaning is not None
            labels = self.meaning.targets(split)
        return labels if self.meaning is None else shaped(labels, self.loss_shape, self.meaning.shape)

    @property
    def training_loss(self) -> Loss:
        """(outputs, targets) → scalar tensor."""
        if self.loss is not None:
            return self.loss
        return DefaultLoss(self.meaning or Meaning("numbers", ()), self.of_labels)

    @property
    def distillation(self) -> Loss:
        """(outputs, the float network's) → scalar tensor."""
        return Distillation(self.meaning, self.of_outputs)

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
            name = metric_name(self.loss)
            return "the task's own" if name == "the task's metric" else name
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


def spelled(meaning: Meaning) -> str:
    """What labels are taken for, in words."""
    if meaning.kind == "numbers":
        count = int(np.prod(meaning.shape, dtype=int))
        return f"numbers to be met, {count} an example"
    each = f" at each of {'×'.join(map(str, meaning.positions))} positions" if meaning.positions else ""
    if meaning.kind == "classes":
        how = {"indices": "integers", "one-hot": "one-hot", "shares": "as shares", "signs": "−1 and 1"}[
            meaning.spelling
        ]
        return f"{meaning.classes} classes ({how}){each}"
    threshold = "each output above 0.5" if meaning.probabilities else "the sign of each output"
    if len(meaning.positions) == 1:
        return f"{meaning.positions[0]} yes-or-no labels an example (by {threshold})"
    return f"two classes (by {threshold.replace('each', 'the')}){each}"
