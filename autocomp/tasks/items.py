"""Data sets and loaders, item by item or batch by batch: what of each is the input, and what the label."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, Sampler, SubsetRandomSampler, default_collate

from autocomp.errors import UserError
from autocomp.tasks.arrays import as_input, as_labels, of_objects, stack

#: Whether the network takes inputs of this shape, (…) without the axis of examples.
Fits = Callable[[tuple[int, ...]], bool]

INPUT_KEYS = frozenset({
    "image", "images", "img", "pixel_values", "x", "input", "inputs", "input_ids", "input_values", "input_features",
    "features", "audio", "data",
})  # fmt: skip
LABEL_KEYS = frozenset({"label", "labels", "y", "target", "targets", "class", "classes"})

_NO_LABEL = object()


def read_items(source: Any, what: str, fits: Fits | None = None) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Inputs (n, …) and labels (n, …) or None, of a DataLoader, a data set, or an iterable of items or batches.

    A loader's items come in the order of its data set, all of them, put together by its own `collate_fn`; whatever
    its data set draws at random is drawn the same each time. fits: asked where items and batches look alike.
    """
    with _same_draws():
        if isinstance(source, DataLoader):
            certain = _has_batches(source)
            pieces = _loaded(source, what)
        else:
            certain = False if _is_map_style(source) else None
            pieces = _listed(source, what)
        part = "batch" if certain else "item"
        pairs = [_pair(piece, f"{what}: {part} {index}") for index, piece in pieces]
    if not pairs:
        raise UserError(f"{what} is empty")
    with_labels = [label is not _NO_LABEL and label is not None for _, label in pairs]
    if any(with_labels) and not all(with_labels):
        raise UserError(f"{what}: item {with_labels.index(False)} has no label, others have one")
    inputs = [as_input(x, f"{what}: the input of item {i}") for i, (x, _) in enumerate(pairs)]
    labels = [label for _, label in pairs] if all(with_labels) else None
    if certain if certain is not None else _are_batches(inputs, labels, what, fits):
        return _joined(inputs, labels, what)
    found = stack(inputs, what, "input")
    return found, None if labels is None else as_labels(of_objects(labels), what)


def columns_of(source: Mapping[Any, Any], what: str) -> tuple[Any, Any]:
    """The inputs and labels of a dict of columns, or of one item as a dict; labels are None where it has none."""
    found, label = _pair(source, what)
    return found, None if label is _NO_LABEL else label


@contextmanager
def _same_draws() -> Iterator[None]:
    """Seeded generators inside, those of the caller as they were outside."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (what data sets draw from)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002


def _is_map_style(source: Any) -> bool:
    """A data set whose items are asked for by index; a list may as well hold batches."""
    return not isinstance(source, Sequence) and hasattr(source, "__getitem__") and hasattr(source, "__len__")


def _listed(source: Any, what: str) -> Iterator[tuple[int, Any]]:
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, IterableDataset):
        for index in range(len(source)):
            yield index, _read(f"{what}: item {index}", source.__getitem__, index)
        return
    yield from _iterated(source, what, "item")


def _iterated(source: Iterable[Any], what: str, part: str) -> Iterator[tuple[int, Any]]:
    iterator = iter(source)
    index = 0
    while True:
        piece = _read(f"{what}: {part} {index}", next, iterator, _NO_LABEL)
        if piece is _NO_LABEL:
            return
        yield index, piece
        index += 1


def _has_batches(loader: DataLoader[Any]) -> bool | None:
    """Whether `_loaded` gives batches: not where the loader only stacks items, which are then taken one by one.

    None where the data set's own pieces come as they are, which may be either.
    """
    if loader.batch_size is None and loader.batch_sampler is None:
        return None
    return isinstance(loader.dataset, IterableDataset) or loader.collate_fn is not default_collate


def _loaded(loader: DataLoader[Any], what: str) -> Iterator[tuple[int, Any]]:
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset):
        yield from _iterated(loader, what, "batch")
        return
    indices = _indices(loader, len(dataset))
    if not _has_batches(loader):
        for index in indices:
            yield index, _read(f"{what}: item {index}", dataset.__getitem__, index)
        return
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 64
    for number, start in enumerate(range(0, len(indices), size)):
        items = [_read(f"{what}: item {i}", dataset.__getitem__, i) for i in indices[start : start + size]]
        yield number, _read(f"{what}: batch {number}", loader.collate_fn, items)


def _indices(loader: DataLoader[Any], count: int) -> list[Any]:
    """Which of a data set's items a loader draws, in their order. One that only shuffles or weights draws them all."""
    sampler: Any = loader.sampler
    if isinstance(sampler, SubsetRandomSampler):
        return sorted(int(i) for i in sampler.indices)
    own = type(sampler).__module__.startswith("torch.") or type(sampler) is Sampler
    if own and type(loader.batch_sampler).__module__.startswith("torch."):
        return [*range(count)]
    drawn = [i for batch in loader.batch_sampler for i in batch] if loader.batch_sampler is not None else [*sampler]
    return sorted(set(drawn))


def _read(what: str, read: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return read(*arguments)
    except UserError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
        raise UserError(f"{what} cannot be read: {reason}") from error


def _pair(piece: Any, what: str) -> tuple[Any, Any]:
    """(input, label) of an item or a batch; the label is _NO_LABEL where there is none."""
    if piece is None:
        raise UserError(f"{what} is None: expected (input, label), or the input alone")
    if isinstance(piece, Mapping):
        return _by_keys(piece, what)
    if is_dataclass(piece) and not isinstance(piece, type) and not _is_array(piece):
        return _by_keys({f.name: getattr(piece, f.name) for f in fields(piece)}, what)
    named = getattr(piece, "_fields", ())
    if isinstance(piece, tuple) and {str(name).lower() for name in named} & INPUT_KEYS:
        return _by_keys(dict(zip(named, piece, strict=True)), what)
    if isinstance(piece, tuple | list):
        if len(piece) == 2:
            return piece[0], piece[1]
        if len(piece) == 1:
            return piece[0], _NO_LABEL
        if all(isinstance(member, int | float) for member in piece):
            return piece, _NO_LABEL  # a row of numbers
        raise UserError(f"{what} has {len(piece)} members: expected (input, label), or the input alone")
    return piece, _NO_LABEL


def _by_keys(piece: Mapping[Any, Any], what: str) -> tuple[Any, Any]:
    inputs = [key for key in piece if str(key).lower() in INPUT_KEYS]
    labels = [key for key in piece if str(key).lower() in LABEL_KEYS]
    others = [key for key in piece if key not in inputs and key not in labels and not _says_nothing(key, piece[key])]
    # Beside a label, what is no array (a path, a number of the item) is no second input.
    others = [key for key in others if not labels or _is_array(piece[key])]
    if len(inputs) != 1 or len(labels) > 1 or others:
        saw = ", ".join(repr(key) for key in piece)
        raise UserError(
            f"{what} is a dict with the keys {saw}: expected one input ({', '.join(sorted(INPUT_KEYS))}) and one label "
            f"({', '.join(sorted(LABEL_KEYS))}); hand over pairs (input, label) instead"
        )
    return piece[inputs[0]], piece[labels[0]] if labels else _NO_LABEL


def _is_array(value: Any) -> bool:
    return getattr(value, "ndim", 0) > 0 or (isinstance(value, list) and bool(value) and not isinstance(value[0], str))


def _length(value: Any) -> int | None:
    """Of an array or a list; None of a single number."""
    return len(value) if _is_array(value) else None


def _says_nothing(key: Any, value: Any) -> bool:
    """A mask that hides nothing, or types of tokens that are all the same."""
    if str(key) not in ("attention_mask", "token_type_ids"):
        return False
    return bool(np.all(np.asarray(value) == (1 if key == "attention_mask" else 0)))


def _are_batches(inputs: list[NDArray[Any]], labels: list[Any] | None, what: str, fits: Fits | None) -> bool:
    """Whether pieces of a list or a stream are batches. Where they may be both, the network says which it takes."""
    first = inputs[0]
    if first.ndim < 2:
        return False
    if labels is not None:
        if [len(x) for x in inputs] != [_length(y) for y in labels]:
            return False
    elif len({x.shape[1:] for x in inputs}) > 1:
        return False
    if fits is None:
        return False
    item, of_batch = fits(first.shape), fits(first.shape[1:])
    if of_batch and not item:
        return True
    if item and of_batch and labels is not None:
        raise UserError(
            f"{what}: pieces of shape {first.shape} may be items or batches: hand over a DataLoader for batches, or "
            "arrays (inputs, labels)"
        )
    return False


def _joined(
    inputs: list[NDArray[Any]], labels: list[Any] | None, what: str
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Batches put one behind the other."""
    for index, batch in enumerate(inputs):
        if batch.ndim == 0 or batch.shape[1:] != inputs[0].shape[1:]:
            raise UserError(
                f"{what}: the inputs of batch {index} have shape {batch.shape}, those of batch 0 {inputs[0].shape}: "
                "all items must be of one shape; resize, crop or pad them"
            )
    found = np.concatenate(inputs)
    if labels is None:
        return found, None
    parts = [as_labels(part, f"{what}, batch {index}") for index, part in enumerate(labels)]
    for index, (x, y) in enumerate(zip(inputs, parts, strict=True)):
        if y.ndim == 0 or len(y) != len(x) or y.shape[1:] != parts[0].shape[1:]:
            raise UserError(
                f"{what}: batch {index} has {len(x)} inputs and labels of shape {y.shape}: expected one label an input"
            )
    return found, np.concatenate(parts)
