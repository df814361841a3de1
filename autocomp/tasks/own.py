"""In what form a metric and a loss of the user's own take outputs and labels: found out by trying."""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from autocomp.errors import UserError
from autocomp.tasks.labels import Meaning, Split

#: Of labels: as they came, of the outputs' own shape, the same as floats, or (n,). What is (n, 1) less what is (n,)
#: makes (n, n) differences of which nobody is warned.
Shape = Literal["given", "outputs", "floats", "flat"]
#: How functions call the labels that they take first, as those of scikit-learn do, and the answers behind them.
_TRUE = frozenset({"y_true", "labels_true", "true", "labels", "label", "target", "targets", "gt", "ground_truth"})
_ANSWERS = frozenset({
    "y_pred", "y_score", "y_prob", "y_proba", "labels_pred", "pred", "preds", "prediction", "predictions", "outputs",
    "output", "logits", "scores",
})  # fmt: skip
#: How often outputs are shuffled to see what guessing gets, and whether a metric sees it at all.
_SHUFFLES, _LOOKS = 10, 3


def shaped(labels: NDArray[Any], shape: Shape, of_outputs: tuple[int, ...]) -> NDArray[Any]:
    """Labels (n, …) in that shape. of_outputs: of one output, (…)."""
    if shape == "given":
        return labels
    if shape == "flat":
        return labels.reshape(len(labels))
    labels = labels.reshape(len(labels), *of_outputs)
    return labels.astype(np.float32) if shape == "floats" else labels


@dataclass(frozen=True)
class OwnMetric:
    """A metric of the user's own as (outputs, labels) → number, both arrays (n, …), which stay as they are.

    tensors: it was written for torch. swapped: it takes (labels, outputs), as its parameters are named. encoded: it
    takes labels as `encoded` has them rather than as they came. decoded: it takes answers rather than outputs.
    """

    function: Callable[..., Any]
    tensors: bool = False
    swapped: bool = False
    shape: Shape = "given"
    encoded: Meaning | None = None
    decoded: Meaning | None = None

    def __call__(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
        """TypeError where the result is no single number."""
        if self.encoded is not None:
            labels = self.encoded.encode(Split("the labels", np.asarray(labels)))
        labels = shaped(np.array(labels), self.shape, outputs.shape[1:])
        outputs = np.array(outputs)
        if self.decoded is not None:
            outputs = self.decoded.decode(outputs).reshape(labels.shape)
        pair: tuple[Any, Any] = outputs, labels
        if self.tensors:
            pair = torch.from_numpy(outputs), torch.from_numpy(labels)
        return number(self.function(*(pair[::-1] if self.swapped else pair)))


def metric_name(metric: Callable[..., Any]) -> str:
    """As its author calls it."""
    own = metric.function if isinstance(metric, OwnMetric) else metric
    while isinstance(own, functools.partial):
        own = own.func
    name = str(getattr(own, "__name__", type(own).__name__))
    return "the task's metric" if name == "<lambda>" else name


def usable_metric(
    metric: Callable[..., Any], outputs: NDArray[Any], labels: NDArray[Any], meaning: Meaning | None
) -> OwnMetric:
    """The metric in the first form in which it gives a number.

    labels: as they came. meaning: what they are taken for, None where that cannot be told or they need no encoding.
    UserError where it fails in every form.
    """
    reasons = []
    for form in _forms(metric, meaning):
        reason = fault_of(form, outputs, labels)
        if not reason:
            return _looking(form, outputs, labels)
        reasons.append(reason)
    hint = ""
    if _labels_come_first(metric):
        hint = f"; given labels and answers, {reasons[-1]}" if len(reasons) > 2 else ""
        hint += "; it takes labels first: hand over lambda outputs, labels: …, with what it needs of either"
    raise UserError(
        f"the task's metric fails on outputs {outputs.shape} {outputs.dtype} and labels {labels.shape} {labels.dtype}: "
        f"given numpy arrays, {reasons[0]}; given torch tensors, {reasons[1]}{hint}"
    )


def _forms(metric: Callable[..., Any], meaning: Meaning | None) -> Iterator[OwnMetric]:
    plain = OwnMetric(metric, swapped=_labels_come_first(metric))
    yield plain
    yield replace(plain, tensors=True)
    if meaning is None or meaning.kind == "numbers":
        return
    yield replace(plain, encoded=meaning)
    yield replace(plain, encoded=meaning, tensors=True)
    if plain.swapped:
        yield replace(plain, encoded=meaning, decoded=meaning)


def _labels_come_first(metric: Callable[..., Any]) -> bool:
    """Whether a function names its parameters the other way round than (outputs, labels)."""
    try:
        names = [name.lower() for name in inspect.signature(metric).parameters]
    except (TypeError, ValueError):  # built-in ones have none
        return False
    return len(names) > 1 and names[0] in _TRUE and names[1] in _ANSWERS


def _looking(form: OwnMetric, outputs: NDArray[Any], labels: NDArray[Any]) -> OwnMetric:
    """The form, or the same with labels in a shape in which the metric sees which output belongs to which."""
    if not _is_blind(form, outputs, labels):
        return form
    for shape in _other_shapes(labels.shape[1:], outputs.shape[1:]):
        other = replace(form, shape=shape)
        if not fault_of(other, outputs, labels) and not _is_blind(other, outputs, labels):
            return other
    return form


def _other_shapes(of_labels: tuple[int, ...], of_outputs: tuple[int, ...]) -> list[Shape]:
    shapes: list[Shape] = []
    if of_labels != of_outputs and np.prod(of_labels, dtype=int) == np.prod(of_outputs, dtype=int):
        shapes.append("outputs")
    if of_labels and np.prod(of_labels, dtype=int) == 1:
        shapes.append("flat")
    return shapes


def _is_blind(metric: OwnMetric, outputs: NDArray[Any], labels: NDArray[Any]) -> bool:
    """Whether it gives the same however outputs are shuffled among the examples."""
    value = metric(outputs, labels)
    return all(np.isclose(metric(other, labels), value, rtol=1e-5) for other in shuffled(outputs, _LOOKS))


def fault_of(metric: OwnMetric, outputs: NDArray[Any], labels: NDArray[Any]) -> str:
    """Why a metric cannot judge; "" where it can."""
    try:
        metric(outputs, labels)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (whatever a user's function raises is its reason)
        return reason_of(error)
    return ""


def loss_fault(loss: Callable[..., Any], outputs: NDArray[Any], targets: NDArray[Any]) -> str:
    """Why a loss cannot be trained with; "" where it can."""
    leaf = torch.from_numpy(np.array(outputs)).requires_grad_()
    try:
        with warnings.catch_warnings():
            # Outputs (n, 1) less targets (n,) are (n, n) numbers: torch warns, and trains on nonsense.
            warnings.filterwarnings("error", message="Using a target size")
            value = loss(leaf, torch.from_numpy(np.array(targets)))
    except (Exception, SystemExit) as error:  # noqa: BLE001  (whatever a user's function raises is its reason)
        return reason_of(error)
    if not isinstance(value, torch.Tensor):
        return f"it must return a tensor, got {type(value).__name__}"
    if value.numel() != 1:
        return f"it must return one number, got shape {tuple(value.shape)}: take the mean"
    if not bool(torch.isfinite(value).all()):
        return f"it gives {value.item():g}"
    if not value.requires_grad:
        return "its result does not depend on the outputs (no gradient): compute it by torch, from what it is given"
    try:
        value.reshape(()).backward()
    except Exception as error:  # noqa: BLE001
        return f"its gradient fails: {reason_of(error)}"
    if leaf.grad is None or not bool(torch.isfinite(leaf.grad).all()):
        return "its gradient is not finite" if leaf.grad is not None else "its result does not depend on the outputs"
    return ""


def loss_shapes(labels: NDArray[Any], of_outputs: tuple[int, ...]) -> list[Shape]:
    """In which shapes a loss may take labels, as they came first of all."""
    shapes: list[Shape] = ["given", *_other_shapes(labels.shape[1:], of_outputs)]
    if labels.dtype.kind != "f" and np.prod(labels.shape[1:], dtype=int) == np.prod(of_outputs, dtype=int):
        shapes.append("floats")
    return shapes


def mixes(loss: Callable[..., Any], outputs: NDArray[Any], targets: NDArray[Any]) -> bool:
    """Whether a loss, which works, holds one example's output against other examples' labels."""
    gradients = []
    for others in (targets, np.broadcast_to(targets[:1], targets.shape)):  # all but the first have its label
        leaf = torch.from_numpy(np.array(outputs)).requires_grad_()
        loss(leaf, torch.from_numpy(np.array(others))).reshape(()).backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad[0])
    return not torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-12)


def number(value: Any) -> float:
    """A metric's result as a float. TypeError where it is no single number."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if value is None or np.size(value) != 1 or isinstance(value, str | dict | list | tuple):
        raise TypeError(f"it must return one number, got {type(value).__name__}")
    if np.iscomplexobj(value):
        raise TypeError(f"it must return one real number, got {value}")
    return float(np.asarray(value).reshape(()))


def shuffled(outputs: NDArray[Any], times: int = _SHUFFLES) -> list[NDArray[Any]]:
    """Outputs (n, …), each time in another order: what knows how outputs are spread, and nothing of the inputs."""
    rng = np.random.default_rng(0)
    return [outputs[rng.permutation(len(outputs))] for _ in range(times)]


def reason_of(error: BaseException) -> str:
    """An error in a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
