"""One split of a task's data, from whatever users hold, and how a split is divided."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autocomp.errors import UserError
from autocomp.tasks.arrays import as_input, as_labels, check_inputs
from autocomp.tasks.items import LABEL_KEYS, Fits, columns_of, read_items


@dataclass(frozen=True)
class Data:
    """One split. inputs: (n, …) float32, or int64 of tokens. labels: (n, …), or None where there are none.

    source: what it was taken from, such as "Task.train", for errors. items: (n,) indices in there, None where all of it
    was taken.
    """

    inputs: NDArray[Any]
    labels: NDArray[Any] | None = None
    source: str = ""
    items: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def item(self, index: int) -> int:
        """Which item of its source an example is."""
        return index if self.items is None else int(self.items[index])

    @classmethod
    def of(cls, source: Any, what: str, fits: Fits | None = None) -> "Data":
        """A split from what users have: Data, arrays, tensors or frames, inputs alone or (inputs, labels), a dict of
        such columns, a DataLoader, or a data set, list or stream of items or batches.

        fits: whether the network takes inputs of a shape; asked where a list may hold items or batches.
        UserError naming `what`, and the item where one is at fault, where it is none of these, is empty, or is not
        finite, or where inputs or labels differ in shape or number.
        """
        inputs, labels = _parts(source, what, fits)
        check_inputs(inputs, what)
        if labels is not None and (labels.ndim == 0 or len(labels) != len(inputs)):
            count = len(labels) if labels.ndim else 1
            turned = f": labels of shape {labels.shape} look transposed" if len(inputs) in labels.shape[1:] else ""
            raise UserError(f"{what}: {len(inputs)} inputs but {count} labels{turned}")
        return cls(inputs, labels, what)


def _parts(source: Any, what: str, fits: Fits | None) -> tuple[NDArray[Any], NDArray[Any] | None]:
    if isinstance(source, Data):
        source = (source.inputs, source.labels)
    if isinstance(source, str | bytes | type | ModuleType) or inspect.isroutine(source):
        raise _unknown(source, what)
    if isinstance(source, Mapping):
        source = columns_of(source, what)
    if _is_columns(source):
        inputs, labels = source
        _check_frame(inputs, what, labels is not None)
        array = as_input(inputs, f"{what}: the inputs")
        return array, None if labels is None else as_labels(labels, what)
    if _is_array(source):
        if not getattr(source, "is_nested", False) and not source.shape:
            raise UserError(f"{what}: expected inputs of shape (n, …), got a single number")
        _check_frame(source, what, False)
        return as_input(source, f"{what}: the inputs"), None
    if isinstance(source, Iterable) or hasattr(source, "__getitem__"):
        return read_items(source, what, fits)
    raise _unknown(source, what)


def _unknown(source: Any, what: str) -> UserError:
    return UserError(
        f"{what}: expected arrays (inputs, labels), inputs alone, a data set or a DataLoader, "
        + (
            f"got {getattr(source, '__name__', source)} itself: call it"
            if callable(source)
            else f"got {type(source).__name__}"
        )
    )


def _is_columns(source: Any) -> bool:
    """Whether this is (inputs, labels) rather than two items."""
    if not isinstance(source, tuple | list) or len(source) != 2:
        return False
    inputs, labels = source
    if _is_array(inputs) and _is_array(labels):
        return True
    if not isinstance(source, tuple):
        return False
    if labels is None:
        return True
    if isinstance(inputs, tuple) or isinstance(labels, tuple):
        return False  # two items
    return hasattr(inputs, "__len__") and hasattr(labels, "__len__") and not isinstance(labels, str)


def _is_array(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or hasattr(value, "shape")  # nested tensors raise when asked for theirs


def _check_frame(inputs: Any, what: str, labelled: bool) -> None:
    """UserError where a data frame holds its own labels, or a column that is no numbers."""
    columns = getattr(inputs, "columns", None)
    if columns is None or not hasattr(inputs, "dtypes"):
        return
    own = [column for column in columns if str(column).lower() in LABEL_KEYS - {"y"}]
    if own and not labelled:
        raise UserError(
            f"{what} is a frame with a column {own[0]!r}: hand over (frame.drop(columns={own[0]!r}), frame[{own[0]!r}])"
        )
    for column, dtype in zip(columns, inputs.dtypes, strict=True):
        if getattr(dtype, "kind", "O") not in "fiub":
            raise UserError(f"{what}: column {column!r} holds {dtype}: expected numbers; encode it or drop it")


def split(data: Data, share: float) -> tuple[Data, Data]:
    """(rest, `share` of the data), stratified by class where labels are classes; always the same examples."""
    rng = np.random.default_rng(0)
    n = len(data.inputs)
    chosen = np.zeros(n, dtype=bool)
    classes = _strata(data.labels)
    if classes is not None:
        for label in np.unique(classes):
            members = rng.permutation(np.flatnonzero(classes == label))
            chosen[members[: round(len(members) * share)]] = True
    if not 0 < chosen.sum() < n:
        chosen[:] = False
        chosen[rng.permutation(n)[: max(1, round(n * share))]] = True
    return _take(data, ~chosen), _take(data, chosen)


def _strata(labels: NDArray[Any] | None) -> NDArray[Any] | None:
    """(n,) what examples are alike by; None where labels are no classes. However labels are meant, a hint is enough."""
    if labels is None:
        return None
    if labels.ndim == 1 and labels.dtype.kind in "iu":
        return labels
    flat = labels.reshape(len(labels), -1)
    if flat.shape[1] == 1:
        flat = flat[:, 0]
        few = np.unique(flat).size <= max(2, len(flat) // 4)
        return flat if few and bool((flat == np.floor(flat)).all()) else None
    one_hot = labels.ndim == 2 and bool(np.isin(labels, (0, 1)).all()) and bool((labels.sum(axis=1) == 1).all())
    return labels.argmax(axis=1) if one_hot else None


def _take(data: Data, chosen: NDArray[np.bool_]) -> Data:
    items = np.flatnonzero(chosen)
    return Data(
        data.inputs[chosen], None if data.labels is None else data.labels[chosen], data.source,
        items if data.items is None else data.items[items],
    )  # fmt: skip
