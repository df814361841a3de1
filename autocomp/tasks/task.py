"""What a search needs to know about a network: the network, its data, and how it is judged."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autocomp.errors import UserError
from autocomp.space import SpaceOptions

Metric = Callable[[NDArray[Any], NDArray[Any]], float]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Data:
    """One split. inputs: (n, …) float32. labels: (n, …), or None where there are none."""

    inputs: NDArray[np.float32]
    labels: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @classmethod
    def of(cls, source: Any, what: str) -> "Data":
        """A split from what users have: Data, an array or tensor, (inputs, labels), or a dataset of (input, label).

        UserError naming `what` where it is none of these, is empty or is not finite.
        """
        if isinstance(source, Data):
            data = source
        elif isinstance(source, tuple | list) and len(source) == 2 and all(hasattr(s, "shape") for s in source):
            data = cls(_floats(source[0]), np.asarray(source[1]))
        elif hasattr(source, "shape"):
            data = cls(_floats(source))
        elif isinstance(source, Iterable) or hasattr(source, "__getitem__"):
            data = cls._from_items(source, what)
        else:
            raise UserError(
                f"{what}: expected arrays (inputs, labels), inputs alone, or a dataset, got {type(source).__name__}"
            )
        if len(data.inputs) == 0:
            raise UserError(f"{what} is empty")
        if not np.isfinite(data.inputs).all():
            raise UserError(f"{what}: the inputs contain NaN or infinity")
        if data.labels is not None and len(data.labels) != len(data.inputs):
            raise UserError(f"{what}: {len(data.inputs)} inputs but {len(data.labels)} labels")
        return data

    @classmethod
    def _from_items(cls, source: Any, what: str) -> "Data":
        items = [source[i] for i in range(len(source))] if hasattr(source, "__len__") else list(source)
        if not items:
            raise UserError(f"{what} is empty")
        if isinstance(items[0], tuple | list):
            return cls(np.stack([_floats(item[0]) for item in items]), np.asarray([np.asarray(i[1]) for i in items]))
        return cls(np.stack([_floats(item) for item in items]))


def _floats(value: Any) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.asarray(value, dtype=np.float32))


def top1(outputs: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of examples whose largest output is the label's. outputs: (n, classes); labels: (n,) ints."""
    return float((outputs.argmax(axis=1) == labels).mean())


@dataclass
class Task:
    """A network and how it is judged. Everything but the network and one split has a default.

    network: any torch.nn.Module that returns one tensor; trained already.
    validation: what candidates are scored on; taken from `train` where it is None (30 % of it).
    train: what finetuning sees (labels are optional: it distils from the float network). Calibration uses it too;
    where it is None, half of the validation split serves instead, and the search scores on the other half.
    test: scored once, for the files on the front; half of the validation split where it is None.
    metric: (outputs, labels) → number in [0, 1], higher is better;
    top-1 accuracy by default, and agreement with the float network where there are no labels. loss: (outputs, labels)
    → scalar; cross-entropy for integer labels, else mean squared error. epochs: of finetuning per trial. minutes: of
    searching where the command line does not say.
    """

    network: nn.Module
    validation: Any = None
    train: Any = None
    test: Any = None
    name: str = "task"
    metric: Metric | None = None
    loss: Loss | None = None
    epochs: float = 1
    batch_size: int = 64
    learning_rate: float = 1e-3
    minutes: float = 5.0
    space: SpaceOptions = field(default_factory=lambda: SpaceOptions(weight_only=False))
    space_name: str = "default"

    def __post_init__(self) -> None:
        if not isinstance(self.network, nn.Module):
            raise UserError(f"Task.network must be a torch.nn.Module, got {type(self.network).__name__}")
        if self.train is None and self.validation is None:
            raise UserError("Task needs data: give train, validation, or both")
        train = None if self.train is None else Data.of(self.train, "Task.train")
        validation = None if self.validation is None else Data.of(self.validation, "Task.validation")
        if validation is None:
            assert train is not None
            train, validation = split(train, 0.3)
        elif train is None:
            validation, train = split(validation, 0.5)
            train = Data(train.inputs)  # labels that candidates might be scored on are not trained on
        self.train, self.validation = train, validation
        if self.test is None:
            validation, self.test = split(validation, 0.5)
            self.validation = validation
        else:
            self.test = Data.of(self.test, "Task.test")
        if len(train.inputs) < 2 or len(validation.inputs) < 2:
            raise UserError(f"Task needs at least 2 examples a split, got {len(train.inputs) + len(validation.inputs)}")
        shapes = {d.inputs.shape[1:] for d in (train, validation, self.test)}
        if len(shapes) > 1:
            raise UserError(f"the splits of the task have inputs of different shapes: {sorted(shapes)}")

    @property
    def example(self) -> torch.Tensor:
        """Two inputs, (2, …)."""
        return torch.from_numpy(np.ascontiguousarray(self.validation.inputs[:2]))


def split(data: Data, share: float) -> tuple[Data, Data]:
    """(rest, `share` of the data), stratified by integer labels; always the same examples."""
    rng = np.random.default_rng(0)
    n = len(data.inputs)
    chosen = np.zeros(n, dtype=bool)
    labels = data.labels
    if labels is not None and labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            chosen[members[: round(len(members) * share)]] = True
    if not 0 < chosen.sum() < n:
        chosen[:] = False
        chosen[rng.permutation(n)[: max(1, round(n * share))]] = True
    return _take(data, ~chosen), _take(data, chosen)


def _take(data: Data, chosen: NDArray[np.bool_]) -> Data:
    return Data(data.inputs[chosen], None if data.labels is None else data.labels[chosen])
