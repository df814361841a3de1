"""What a task promises, tried before a search begins: its metric, its loss, one training step, what was learned."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from autocomp.compress.finetune import finetune, outputs_of
from autocomp.errors import UserError
from autocomp.tasks.data import Data
from autocomp.tasks.judge import Judge, splits_of
from autocomp.tasks.labels import Split
from autocomp.tasks.own import (
    OwnMetric,
    loss_fault,
    loss_shapes,
    mixes,
    number,
    reason_of,
    shuffled,
    usable_metric,
)
from autocomp.tasks.task import Loss, Task

#: Share of labels whose classes a network may never answer before it looks as if its inputs were wrong.
_UNANSWERED = 0.25


@dataclass(frozen=True)
class Checked:
    """What is known of a task after its checks.

    teacher: (n, …) the float network's outputs on the training inputs. labels: of the validation split, as the judge
    scores against them. targets: of the training split, as its loss takes them; None where it has no labels. notes:
    what the user should read before the search, a line each.
    """

    judge: Judge
    teacher: NDArray[Any]
    labels: NDArray[Any]
    targets: NDArray[Any] | None
    notes: list[str]


def check_task(task: Task, graph: nn.Module) -> Checked:
    """Try all that trials will need. graph: the float network, which stays as it is. UserError where some of it
    fails."""
    reference = _outputs_of(graph, task.validation)
    judge = judge_of(task, reference)
    for split in splits_of(task):
        judge.encode(split)
    check_metric(judge, task, reference)
    # What is cheap to find wrong was found ahead of the outputs for training, which take a while.
    teacher = _outputs_of(graph, task.train)
    judge, targets = check_training(judge, task, graph, teacher)
    labels = judge.labels_of(Split.of(task.validation, "Task.validation"), reference)
    notes = [judge.describe(), chance_note(judge, task, reference)]
    return Checked(judge, teacher, labels, targets, [note for note in notes if note])


def _outputs_of(graph: nn.Module, data: Data) -> NDArray[Any]:
    """Of the float network. UserError where it fails, or gives no row of finite numbers for each input."""
    try:
        outputs = outputs_of(graph, data.inputs)
    except Exception as error:
        raise UserError(
            f"the network fails on inputs of shape {data.inputs.shape} from {data.source}: {reason_of(error)}"
        ) from error
    if outputs.ndim == 0 or len(outputs) != len(data):
        raise UserError(f"the network gives outputs of shape {outputs.shape} for {len(data)} inputs of {data.source}")
    if outputs.dtype.kind not in "fiu":
        raise UserError(f"the network gives outputs of type {outputs.dtype}: expected real numbers")
    finite = np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)
    if not finite.all():
        item = data.item(int(np.argmin(finite)))
        raise UserError(
            f"the float network's output for item {item} of {data.source} is not finite: look at its weights and at "
            "that input"
        )
    return outputs


def judge_of(task: Task, outputs: NDArray[Any], scale: float | None = None) -> Judge:
    """How the task is judged, its metric in a form that takes arrays. outputs: (n, …) of the float network on the
    validation split. scale: as an earlier judge of the same task recorded it."""
    judge = Judge.of(task, outputs)
    if task.metric is None:
        return judge
    labels = judge.labels_of(Split.of(task.validation, "Task.validation"), outputs)
    metric = usable_metric(task.metric, outputs, labels, judge.meaning if judge.against == "labels" else None)
    if task.maximize is False:
        return replace(judge, metric=metric, scale=scale or _scale(metric, outputs, labels))
    return replace(judge, metric=metric)


def check_metric(judge: Judge, task: Task, outputs: NDArray[Any]) -> None:
    """UserError where a metric of the task's own is out of its range, or seems to be meant the other way round."""
    if judge.metric is None:
        return
    labels = judge.labels_of(Split.of(task.validation, "Task.validation"), outputs)
    value = number(judge.metric(outputs, labels))
    if not np.isfinite(value):
        raise UserError(f"the task's metric gives {value:g} for the float network: expected a finite number")
    if task.maximize is False:
        if value < 0:
            raise UserError(
                f"the task's metric gives {value:g}, where less is better than 0: expected errors from 0 up"
            )
        return
    guesses = [number(judge.metric(other, labels)) for other in shuffled(outputs)]
    if task.maximize is None and _is_reversed(value, guesses):
        raise UserError(
            f"the task's metric gives {value:.4g} for the float network and {np.median(guesses):.4g} for its outputs "
            "shuffled among the examples: where less is better, say Task(maximize=False); where more is, the labels do "
            "not belong to the outputs, or say Task(maximize=True)"
        )
    if not 0 <= value <= 1:
        hint = "; give an error instead, with Task(maximize=False)" if value < 0 else ""
        hint = "; divide percent by 100" if 1 < value <= 100 and max(guesses) < value else hint
        raise UserError(
            f"the task's metric must lie in [0, 1], higher is better; it gave {value:g} for the float network{hint}"
        )


def chance_note(judge: Judge, task: Task, outputs: NDArray[Any]) -> str:
    """A line where the float network is no better than chance on the validation split, or never answers classes that
    are a quarter of it; "" as a rule."""
    if judge.against == "answers":
        return ""
    labels = judge.encode(Split.of(task.validation, "Task.validation"))
    score, guessed = judge.score(outputs, labels), judge.guessed(outputs, labels)
    if judge.metric is not None:
        margin = 0.0  # `guessed` is the best of several
    elif judge.meaning is not None and judge.meaning.kind == "numbers":
        margin = 0.02
    else:  # twice the standard deviation of a share that was counted on so many examples
        margin = 2 * (guessed * (1 - guessed) / len(outputs)) ** 0.5
    if score <= guessed + min(margin, 0.5 * (1 - guessed)):
        what = f"where guessing gives {100 * guessed:.1f} %"
    elif judge.metric is None and judge.never_answered(outputs, labels) > _UNANSWERED:
        what = f"and never answers classes that {100 * judge.never_answered(outputs, labels):.0f} % of the labels have"
    else:
        return ""
    return (
        f"warning: the float network scores {100 * score:.1f} % on the validation split, {what}: check that inputs are "
        "prepared as for its training (range, order of channels) and that labels belong to its outputs"
    )


def check_training(
    judge: Judge, task: Task, graph: nn.Module, teacher: NDArray[Any]
) -> tuple[Judge, NDArray[Any] | None]:
    """One training step, on a copy of the float network. teacher: (n, …) its outputs on the training inputs.

    Returns the judge with its loss in a form that takes the labels, and the labels in the form that it takes.
    UserError where the loss fails, is no number, or does not depend on the outputs, or where the step fails.
    """
    train = task.train
    targets = None
    if train.labels is not None:
        split = Split.of(train, "Task.train")
        if task.loss is not None:
            judge = _usable_loss(judge, task.loss, split, teacher, task.batch_size)
        targets = judge.targets(split)
    if task.epochs <= 0:
        return judge, targets
    some = slice(0, min(task.batch_size, len(train)))
    try:
        loss = finetune(
            copy.deepcopy(graph), train.inputs[some], None if targets is None else targets[some], teacher[some],
            epochs=1, batch_size=task.batch_size, learning_rate=task.learning_rate, seed=0,
            loss=judge.training_loss, distillation=judge.distillation,
        )  # fmt: skip
    except Exception as error:
        raise UserError(
            f"a training step fails on inputs of shape {train.inputs[some].shape} and outputs of shape "
            f"{teacher[some].shape}: {reason_of(error)}"
        ) from error
    if not np.isfinite(loss):
        raise UserError(
            "a training step of the float network gives a loss that is not a number: "
            + ("check the task's loss" if task.loss is not None else "check the sizes of labels and outputs")
        )
    return judge, targets


def _scale(metric: OwnMetric, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
    """What guessing gets by a metric of which less is better."""
    scale = float(np.median([metric(other, labels) for other in shuffled(outputs)]))
    if not np.isfinite(scale) or scale <= 0:
        raise UserError(
            f"the task's metric gives {scale:g} for outputs shuffled among the examples: with Task(maximize=False) it "
            "must be an error, 0 for a match and larger for less"
        )
    return scale


def _is_reversed(value: float, guesses: list[float]) -> bool:
    """Whether outputs that know nothing of the inputs do clearly better than the float network's own."""
    finite = [g for g in guesses if np.isfinite(g)]
    return bool(finite) and min(finite) > value + 0.2 * abs(value) + 1e-9


def _usable_loss(judge: Judge, loss: Loss, split: Split, teacher: NDArray[Any], batch_size: int) -> Judge:
    """The judge, whose loss takes labels as they came or, where that fails, as they are understood."""
    count = min(batch_size, len(teacher))
    forms = [judge]
    if judge.meaning is not None:
        shapes = loss_shapes(split.labels, teacher.shape[1:])
        forms = [replace(judge, encoded_loss=e, loss_shape=s) for s in shapes for e in (False, True)]
    reasons, working = [], []
    for form in forms:
        targets = form.targets(split)[:count]
        reason = loss_fault(loss, teacher[:count], targets)
        if reason:
            reasons.append(reason)
        elif len(forms) <= 2 or not mixes(loss, teacher[:count], targets):
            return form
        else:
            working.append(form)
    if working:  # a loss over the batch as a whole
        return working[0]
    raise UserError(
        f"the task's loss fails on outputs {teacher[:count].shape} {teacher.dtype} and labels "
        f"{split.labels[:count].shape} {split.labels.dtype}: {reasons[0]}"
    )
