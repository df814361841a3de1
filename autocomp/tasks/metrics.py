"""Metrics and losses by what labels mean. Metrics compare answers with labels, both of the form `Meaning` says."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from autocomp.compress.finetune import distillation_loss
from autocomp.tasks.labels import IGNORED, Meaning

#: (answers, labels), both (n, …) → number in [0, 1].
Measure = Callable[[NDArray[Any], NDArray[Any]], float]


def top1(outputs: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of examples whose largest output is the label's. outputs: (n, classes); labels: (n,) ints."""
    return share_right(outputs.argmax(axis=1), labels)


def share_right(answers: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of the judged positions that are answered rightly."""
    judged = labels != IGNORED
    return float((answers == labels)[judged].mean()) if judged.any() else 0.0


def mean_iou(answers: NDArray[Any], labels: NDArray[Any]) -> float:
    """Intersection over union of each class, over all positions that are judged; the mean of classes that occur
    (Everingham et al. 2015, §4.2)."""
    judged = labels != IGNORED
    mine, theirs = answers[judged].astype(np.int64), labels[judged].astype(np.int64)
    if not mine.size:
        return 0.0
    classes = int(max(mine.max(), theirs.max())) + 1
    both = np.bincount(mine[mine == theirs], minlength=classes)
    union = np.bincount(mine, minlength=classes) + np.bincount(theirs, minlength=classes) - both
    return float((both[union > 0] / union[union > 0]).mean())


def f1(answers: NDArray[Any], labels: NDArray[Any]) -> float:
    """2·TP / (2·TP + FP + FN) over all examples and labels; 1 where there is nothing to find and nothing was found."""
    hits, claimed, there = (answers * labels).sum(), answers.sum(), labels.sum()
    return float(2 * hits / (claimed + there)) if claimed + there else 1.0


def relative_fit(outputs: NDArray[Any], targets: NDArray[Any]) -> float:
    """1 / (1 + mean squared error over the targets' variance): 1 for a match, 0.5 for what their mean would get."""
    outputs, targets = np.asarray(outputs, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    error = float(np.square(outputs.reshape(targets.shape) - targets).mean())
    return 1.0 / (1.0 + error / max(float(np.var(targets)), 1e-12))


class Measured(NamedTuple):
    """A metric with its name."""

    name: str
    measure: Measure


def measure_of(meaning: Meaning) -> Measured:
    """The metric by which such labels are judged where a task has none."""
    places = len(meaning.positions)
    if meaning.kind == "numbers":
        return Measured("relative fit", relative_fit)
    if meaning.kind == "classes":
        names = ("top-1 accuracy", "accuracy of tokens")
        return Measured("mean IoU", mean_iou) if places > 1 else Measured(names[places], share_right)
    if places > 1:
        return Measured("mean IoU", mean_iou)
    return Measured("F1", f1) if places else Measured("accuracy", share_right)


def guess(meaning: Meaning, labels: NDArray[Any]) -> NDArray[Any]:
    """The best answer that looks at no input, (n, …): the commonest class, the likelier of yes and no, or the mean."""
    if meaning.kind == "numbers":
        return np.broadcast_to(labels.mean(axis=0, dtype=np.float64), labels.shape)
    judged = labels[labels != IGNORED]
    if meaning.kind == "binary" and len(meaning.positions) == 1:
        return np.ones_like(labels)  # the best for F1
    values, counts = np.unique(judged, return_counts=True)
    return np.full_like(labels, values[counts.argmax()])


@dataclass(frozen=True)
class DefaultLoss:
    """(outputs, targets) → scalar, by what the targets mean; outputs (n, …) of torch, targets as `Meaning.targets`.

    scale: variance of numbers to be met, so that the loss has no unit.
    """

    meaning: Meaning
    scale: float = 1.0

    @property
    def name(self) -> str:
        return {"classes": "cross-entropy", "binary": "binary cross-entropy", "numbers": "mean squared error"}[
            self.meaning.kind
        ]

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        meaning = self.meaning
        if meaning.kind == "classes":
            scores = class_scores(meaning, outputs)
            if meaning.spelling == "shares":
                assert meaning.axis is not None
                shares = torch.movedim(targets, meaning.axis + 1, 1).reshape(scores.shape)
                return functional.cross_entropy(scores, shares)
            return functional.cross_entropy(scores, targets.long(), ignore_index=IGNORED)
        if meaning.kind == "binary":
            if meaning.probabilities:
                # What is quantized may leave [0, 1] by a step.
                return functional.binary_cross_entropy(outputs.clamp(1e-4, 1 - 1e-4), targets.reshape(outputs.shape))
            return functional.binary_cross_entropy_with_logits(outputs, targets.reshape(outputs.shape))
        return functional.mse_loss(outputs, targets.reshape(outputs.shape).float()) / self.scale


@dataclass(frozen=True)
class Distillation:
    """(outputs, the float network's) → scalar: softened classes at each position, chances of yes, or the numbers."""

    meaning: Meaning

    def __call__(self, outputs: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        meaning = self.meaning
        if meaning.kind == "classes":
            scores, theirs = class_scores(meaning, outputs), class_scores(meaning, teacher)
            if scores.ndim > 2:  # each position is an example
                scores, theirs = (x.movedim(1, -1).reshape(-1, meaning.classes) for x in (scores, theirs))
            return distillation_loss(scores, theirs)
        if outputs.ndim == 2:
            return functional.mse_loss(outputs, teacher) / teacher.var().clamp_min(1e-6)
        return distillation_loss(outputs, teacher)


def class_scores(meaning: Meaning, outputs: torch.Tensor) -> torch.Tensor:
    """Logits (n, classes, *positions), from outputs (n, …) that may be probabilities."""
    assert meaning.axis is not None
    scores = torch.movedim(outputs, meaning.axis + 1, 1).reshape(len(outputs), meaning.classes, *meaning.positions)
    return scores.clamp_min(1e-6).log() if meaning.probabilities else scores
