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
    """2·TP / (2·TP + FP + FN) over all examples and labels that are judged; 1 where nothing is to be found or was."""
    judged = labels != IGNORED
    answers, labels = answers[judged], labels[judged]
    hits, claimed, there = (answers * labels).sum(), answers.sum(), labels.sum()
    return float(2 * hits / (claimed + there)) if claimed + there else 1.0


def deviations(values: NDArray[Any]) -> tuple[float, ...]:
    """Standard deviations of numbers (n, …): of each column of (n, k), or one over all positions of anything else.

    Each is about the mean of its position, which guessing knows. What never changes has its size instead, 1 where that
    is 0, so that what is divided by it is an error relative to something.
    """
    values = np.asarray(values, dtype=np.float64)
    flat = values.reshape(len(values), -1)
    size = np.abs(flat).max(axis=0, initial=0.0)
    scale = np.where(size > 0, size, 1.0)
    variances = (flat / scale).var(axis=0)  # squares of 1e200 would overflow
    if values.ndim == 2:
        changing = variances > 1e-12
        return tuple(float(x) for x in np.where(changing, np.sqrt(variances), 1.0) * scale)
    largest = float(scale[size > 0].max(initial=0.0)) or 1.0
    shares = variances * np.square(scale / largest)
    variance = float(shares[size > 0].mean()) if (size > 0).any() else 0.0
    return ((variance**0.5 if variance > 1e-12 else 1.0) * largest,)


def relative_fit(outputs: NDArray[Any], targets: NDArray[Any]) -> float:
    """1 / (1 + mean of (error / the targets' deviation)²): 1 for a match, 0.5 for what their means would get.

    Each column of (n, k) has its own deviation, so that one in thousands does not hide one in hundredths.
    """
    outputs, targets = np.asarray(outputs, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    error = float(np.square((outputs.reshape(targets.shape) - targets) / np.array(deviations(targets))).mean())
    return 1.0 / (1.0 + error)


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

    deviations: of numbers to be met, so that the loss has no unit.
    """

    meaning: Meaning
    deviations: tuple[float, ...] = (1.0,)

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
        targets = targets.reshape(outputs.shape)
        if meaning.kind == "binary":
            judged = targets != IGNORED
            outputs, targets = outputs[judged], targets[judged]
            if not len(targets):
                return outputs.sum()  # a batch of which nothing is judged
            if meaning.probabilities:
                # What is quantized may leave [0, 1] by a step.
                return functional.binary_cross_entropy(outputs.clamp(1e-4, 1 - 1e-4), targets)
            return functional.binary_cross_entropy_with_logits(outputs, targets)
        return relative_error(outputs, targets.to(outputs.dtype), self.deviations)


@dataclass(frozen=True)
class Distillation:
    """(outputs, the float network's) → scalar: softened classes at each position, or numbers by their deviations.

    meaning: None where it is unknown what outputs mean; several of an example are then taken for classes.
    """

    meaning: Meaning | None
    deviations: tuple[float, ...] = (1.0,)

    def __call__(self, outputs: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        meaning = self.meaning
        if meaning is None and outputs.ndim == 2 and outputs.shape[1] > 1:
            return distillation_loss(outputs, teacher)
        if meaning is not None and meaning.kind == "classes":
            scores, theirs = class_scores(meaning, outputs), class_scores(meaning, teacher)
            if scores.ndim > 2:  # each position is an example
                scores, theirs = (x.movedim(1, -1).reshape(-1, meaning.classes) for x in (scores, theirs))
            return distillation_loss(scores, theirs)
        return relative_error(outputs, teacher, self.deviations)


def relative_error(outputs: torch.Tensor, targets: torch.Tensor, deviations: tuple[float, ...]) -> torch.Tensor:
    """Mean of (error / deviation)², both (n, …)."""
    scale = torch.tensor(deviations, dtype=outputs.dtype)
    return ((outputs - targets) / scale).square().mean()


def class_scores(meaning: Meaning, outputs: torch.Tensor) -> torch.Tensor:
    """Logits (n, classes, *positions), from outputs (n, …) that may be probabilities."""
    assert meaning.axis is not None
    scores = torch.movedim(outputs, meaning.axis + 1, 1).reshape(len(outputs), meaning.classes, *meaning.positions)
    return scores.clamp_min(1e-6).log() if meaning.probabilities else scores
