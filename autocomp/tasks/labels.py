"""What labels mean beside a network's outputs: classes, two-class or several labels, or numbers.

Outputs are (n, …) of one shape; labels say by their shape and their values what they are. What they may be twice is
asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autocomp.errors import UserError
from autocomp.tasks.data import Data

#: classes: one of several at each position. binary: yes or no for each output. numbers: values to be met.
Kind = Literal["classes", "binary", "numbers"]
#: What `Task.labels` may say.
SAID = ("classes", "binary", "numbers")
#: Label of a position that is not judged (torch's own `ignore_index`), and how data sets of masks spell it.
IGNORED, VOID = -100, 255


class Split(NamedTuple):
    """Labels (n, …) of one split, None where it has none. name, items: where they come from, for errors; see `Data`."""

    name: str
    labels: Any
    items: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, data: Data, name: str) -> "Split":
        return cls(data.source or name, data.labels, data.items)

    def item(self, index: int) -> int:
        """Which item of its source an example is."""
        return index if self.items is None else int(self.items[index])


@dataclass(frozen=True)
class Meaning:
    """What labels, and the outputs beside them, are taken for.

    shape: of one output, (…). axis: of classes, counted in that shape; None without classes. spelling: how labels come
    ("indices", "one-hot", "shares", "signs", "yes or no", "numbers"): "signs" are −1 and 1, of two classes or of yes
    and no; "shares" add up to 1, or are chances of yes. probabilities: the network ends in a softmax or sigmoid, so
    that its outputs are no logits.
    """

    kind: Kind
    shape: tuple[int, ...]
    axis: int | None = None
    spelling: str = "numbers"
    probabilities: bool = False

    @property
    def classes(self) -> int:
        """How many classes there are at each position."""
        assert self.axis is not None
        return self.shape[self.axis]

    @property
    def positions(self) -> tuple[int, ...]:
        """Shape of what is answered for one example, of axes longer than 1: () where it has one answer."""
        rest = self.shape if self.axis is None else self.shape[: self.axis] + self.shape[self.axis + 1 :]
        return tuple(size for size in rest if size != 1)

    def decode(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """Answers of outputs (n, *shape): class indices (n, *positions), 0 or 1 (n, *shape), or the numbers."""
        outputs = np.asarray(outputs).reshape(len(outputs), *self.shape)
        if self.kind == "classes":
            assert self.axis is not None
            return outputs.argmax(axis=self.axis + 1).reshape(len(outputs), *self.positions)
        if self.kind == "binary":
            return (outputs > (0.5 if self.probabilities else 0)).astype(np.int64)
        return outputs

    def encode(self, split: Split) -> NDArray[Any]:
        """Labels in the form of `decode`; IGNORED where a position is not judged.

        UserError with the label and the item where one is no class of the network.
        """
        labels = split.labels
        if self.kind == "numbers":
            return labels.astype(np.float32 if labels.itemsize <= 4 else np.float64).reshape(len(labels), *self.shape)
        if self.kind == "binary":
            answers = (labels > (0.5 if self.spelling == "shares" else 0)).astype(np.int64)
            if self.spelling == "yes or no":
                answers[np.isin(labels, (IGNORED, VOID))] = IGNORED
            return answers.reshape(len(labels), *self.shape)
        if self.spelling in ("one-hot", "shares"):
            assert self.axis is not None
            full = labels.reshape(len(labels), *self.shape)
            return full.argmax(axis=self.axis + 1).reshape(len(labels), *self.positions)
        found = (labels > 0 if self.spelling == "signs" else labels).astype(np.int64)
        found = found.reshape(len(labels), *self.positions)
        if self.positions:
            if self.classes <= VOID:
                found = np.where(found == VOID, IGNORED, found)
            ignored = found == IGNORED
            if ignored.all():
                raise UserError(f"{split.name}: every label is {IGNORED} or {VOID}, which are not judged")
        else:
            ignored = np.zeros(found.shape, dtype=bool)
        self._check_range(found, ignored, split)
        return found

    def targets(self, split: Split) -> NDArray[Any]:
        """Labels as the loss takes them: as `encode`, but shares of classes as they are, and yes or no as floats."""
        if self.spelling == "shares":
            return split.labels.astype(np.float32).reshape(len(split.labels), *self.shape)
        encoded = self.encode(split)
        return encoded if self.kind == "classes" else encoded.astype(np.float32)

    def _check_range(self, found: NDArray[Any], ignored: NDArray[np.bool_], split: Split) -> None:
        wrong = ((found < 0) | (found >= self.classes)) & ~ignored
        if not wrong.any():
            return
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        judged = found[~ignored]
        hint = ""
        if judged.min() == 1 and judged.max() == self.classes:
            hint = ": these count from 1, so subtract 1"
        elif (judged >= -1).all() and judged.max() < self.classes:
            hint = f"; {IGNORED} marks positions that are not judged" if self.positions else "; leave such items out"
        item = f"{split.item(where[0])}" + (f" at {list(where[1:])}" if len(where) > 1 else "")
        raise UserError(
            f"{split.name}: the label of item {item} is {found[where]}, and the network has {self.classes} outputs: "
            f"classes are expected from 0 to {self.classes - 1}{hint}"
        )


def without_labels(shape: tuple[int, ...], said: str | None = None) -> Meaning:
    """What outputs are agreed upon by where there are no labels: the largest of several, or else the numbers."""
    if said == "binary":
        return Meaning("binary", shape, spelling="yes or no")
    several = [axis for axis, size in enumerate(shape) if size > 1]
    if said == "classes" and several:
        return Meaning("classes", shape, several[0], "indices")
    return Meaning("classes", shape, 0, "indices") if said is None and len(shape) == 1 and several else Meaning(
        "numbers", shape
    )  # fmt: skip


def meaning_of(outputs: NDArray[Any], splits: Sequence[Split], said: str | None = None) -> Meaning:
    """What the labels of all splits are. outputs: (n, …) of the float network. said: by the user, one of SAID.

    UserError where their shape fits no reading, or their values fit several.
    """
    shape = outputs.shape[1:]
    for split in splits:
        if _long(split.labels.shape[1:]) != _long(splits[0].labels.shape[1:]):
            raise UserError(
                f"{split.name} has labels of shape {split.labels.shape}, {splits[0].name} of {splits[0].labels.shape}: "
                "all splits must have the same"
            )
    one = splits[0].labels.shape[1:]
    if np.prod(one, dtype=int) == np.prod(shape, dtype=int) and _long(one) == _long(shape):
        return _elementwise(outputs, splits, said)
    ends = dict.fromkeys((0, len(shape) - 1)) if shape else ()
    axes = [a for a in ends if shape[a] > 1 and _long(one) == _long(_less(shape, a))]
    if not axes or said in ("numbers", "binary"):
        raise UserError(_no_fit(splits[0], outputs.shape, said))
    if len(shape) > 2:  # maps have their channels first where both would fit, as torch has them
        axes = axes[:1]
    if len(axes) > 1:
        raise UserError(
            f"{splits[0].name}: labels of shape {splits[0].labels.shape} for outputs of shape {outputs.shape} may be "
            "classes along the second or the last axis: give the task's metric and loss"
        )
    for split in splits:
        broken = ~_is_whole(split.labels)
        if broken.any():
            where = tuple(int(i) for i in np.argwhere(broken)[0])
            raise UserError(
                f"{split.name}: the label of item {split.item(where[0])} is {split.labels[where]}: for outputs of "
                f"shape {outputs.shape} labels of shape {split.labels.shape} are class indices, which are whole "
                "numbers; numbers to be met must have the shape of the outputs"
            )
    two = shape[axes[0]] == 2 and _few_values([split.labels for split in splits]) == {-1, 1}
    return Meaning("classes", shape, axes[0], "signs" if two else "indices", _are_shares(outputs, axes[0] + 1))


def _elementwise(outputs: NDArray[Any], splits: Sequence[Split], said: str | None) -> Meaning:
    """What labels of the outputs' own shape are."""
    shape = outputs.shape[1:]
    every = [split.labels.reshape(len(split.labels), *shape) for split in splits]
    values = _few_values(every)
    several = [a for a in dict.fromkeys((0, len(shape) - 1)) if 0 <= a < len(shape) and shape[a] > 1]
    zero_one = values is not None and values <= {0, 1}
    if said == "numbers":
        return Meaning("numbers", shape)
    if several and said in (None, "classes") and all((labels >= 0).all() for labels in every):
        for axis in several:
            if all(np.allclose(labels.sum(axis=axis + 1, dtype=np.float64), 1, atol=1e-3) for labels in every):
                spelling = "one-hot" if zero_one else "shares"
                return Meaning("classes", shape, axis, spelling, _are_shares(outputs, axis + 1))
    if several and said in (None, "classes") and values == {-1, 1}:
        for axis in several:
            if all(((labels > 0).sum(axis=axis + 1) == 1).all() for labels in every):
                return Meaning("classes", shape, axis, "one-hot", _are_shares(outputs, axis + 1))
    if said == "classes" and several:
        raise UserError(_no_fit(splits[0], outputs.shape, said))
    between = bool((outputs >= 0).all() and (outputs <= 1).all())
    # Maps and tokens, and labels of several, have positions that are not judged; an example of one label is left out.
    unjudged = {IGNORED, VOID} if len(shape) > 1 else {IGNORED} if several else set()
    if zero_one or (values is not None and said is None and {0, 1} <= values <= {0, 1} | unjudged):
        return Meaning("binary", shape, None, "yes or no", between)
    if values == {-1, 1}:
        return Meaning("binary", shape, None, "signs", between)
    if _are_chances(every, said):
        return Meaning("binary", shape, None, "shares", between)
    if values is not None and said is None and _looks_coded(values):
        *_, high = sorted(values)
        mark = next(iter(values - {0, 1}))
        raise UserError(
            f"{splits[0].name}: the labels take the values {', '.join(f'{v:g}' for v in sorted(values))} only, for "
            f"outputs of shape {outputs.shape}: give 0 and 1 where they mean no and yes"
            + (
                f" (labels == {high:g})"
                if len(values) == 2
                else f", and {IGNORED} instead of {mark:g} where an output is not judged"
                if unjudged
                else f", and leave out what is not judged ({mark:g})"
            )
            + ', or say Task(labels="numbers") where they are numbers to be met'
        )
    if said in ("binary", "classes"):
        raise UserError(_no_fit(splits[0], outputs.shape, said))
    return Meaning("numbers", shape)


def _are_chances(every: Sequence[NDArray[Any]], said: str | None) -> bool:
    """Whether labels are chances of yes: said to be, or yes and no, smoothed (Szegedy et al. 2016, §7)."""
    if not all(bool(((labels >= 0) & (labels <= 1)).all()) for labels in every):
        return False
    if said is not None:
        return said == "binary"
    values = np.unique(np.concatenate([np.unique(np.asarray(labels, np.float32))[:3] for labels in every]))
    return values.size == 2 and values[0] > 0 and bool(np.isclose(values.sum(), 1, atol=1e-3))


def _looks_coded(values: set[float]) -> bool:
    """Two whole numbers, or yes and no beside a mark for what is not judged."""
    return len(values) == 2 or {0, 1} <= values <= {0, 1, IGNORED, VOID, -1}


def _few_values(every: Sequence[NDArray[Any]]) -> set[float] | None:
    """The values of all labels where they are whole numbers and at most five; else None."""
    found: set[float] = set()
    for labels in every:
        found |= {float(value) for value in np.unique(labels)[:6]}
    return found if len(found) <= 5 and all(value == int(value) for value in found) else None


def _long(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _less(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _is_whole(labels: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(labels == np.floor(labels)) if labels.dtype.kind == "f" else np.ones(labels.shape, dtype=bool)


def _are_shares(outputs: NDArray[Any], axis: int) -> bool:
    """Whether outputs come from a softmax."""
    return bool((outputs >= 0).all()) and np.allclose(outputs.sum(axis=axis, dtype=np.float64), 1, atol=1e-3)


def _no_fit(split: Split, outputs: tuple[int, ...], said: str | None) -> str:
    what = f" as {said}" if said else ""
    classes = f"class indices of shape {('n', *outputs[2:])}, ".replace("'n'", "n") if len(outputs) > 1 else ""
    same = f"{('n', *outputs[1:])}".replace("'n'", "n")
    return (
        f"{split.name}: labels of shape {split.labels.shape} do not fit outputs of shape {outputs}{what}: expected "
        f"{classes}or one-hot classes, yes-or-no labels or numbers of shape {same}; or give the task's metric and loss"
    )


def check_said(labels: str | None) -> None:
    """UserError where `Task.labels` is none of the known."""
    if labels is not None and labels not in SAID:
        raise UserError(f"Task.labels: expected one of {', '.join(map(repr, SAID))}, got {labels!r}")
