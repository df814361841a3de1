"""What a search needs to know about a network: the network, its data, and how it is judged."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autocomp.errors import UserError
from autocomp.space import SpaceOptions
from autocomp.tasks.data import Data, split
from autocomp.tasks.labels import check_said
from autocomp.tasks.metrics import top1

__all__ = ["Data", "Loss", "Metric", "Task", "split", "top1"]

Metric = Callable[[NDArray[Any], NDArray[Any]], float]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Task:
    """A network and how it is judged. Everything but the network and one split has a default.

    network: any torch.nn.Module; trained already. output: name (of a dict or data class) or number of the tensor that
    is scored, where it returns several; by default "logits" or the like, or the first.
    validation: what candidates are scored on; taken from `train` where it is None (30 % of it).
    train: what finetuning sees (labels are optional: it distils from the float network). Calibration uses it too;
    where it is None, half of the validation split serves instead, and the search scores on the other half.
    test: scored once, for the files on the front; half of the validation split where it is None.
    metric: (outputs, labels), both (n, …) arrays, or tensors where it fails on arrays, and labels as they were given →
    number in [0, 1], higher is better. maximize: False where less is better by the metric, from 0 up: files are then
    scored 1 / (1 + value / what guessing gets). By default labels tell the metric: top-1 accuracy of classes, mean IoU
    of maps, F1 of several labels an example, relative fit of numbers, and agreement with the float network where there
    are none. labels: "classes", "binary" or "numbers", where they cannot be told from shape and values. loss: (outputs,
    labels), tensors → scalar; by default cross-entropy of classes, binary cross-entropy, or mean squared error. epochs:
    of finetuning per trial. minutes: of searching where the command line does not say.
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
    labels: str | None = None
    maximize: bool | None = None
    output: str | int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.network, nn.Module):
            raise UserError(f"Task.network must be a torch.nn.Module, got {type(self.network).__name__}")
        self._check_settings()
        if self.train is None and self.validation is None:
            raise UserError("Task needs data: give train, validation, or both")
        train, validation, test = (
            None if source is None else Data.of(source, f"Task.{name}", self._fits)
            for name, source in (("train", self.train), ("validation", self.validation), ("test", self.test))
        )
        if validation is None:
            assert train is not None
            train, validation = split(train, 0.3)
        elif train is None:
            validation, train = split(validation, 0.5)
            train = replace(train, labels=None)  # labels that candidates might be scored on are not trained on
        if test is None:
            validation, test = split(validation, 0.5)
        splits = {"train": train, "validation": validation, "test": test}
        if len(train.inputs) < 2 or len(validation.inputs) < 2:
            counts = ", ".join(f"{len(data)} for {name}" for name, data in splits.items())
            raise UserError(
                f"Task needs at least 2 examples a split for training and validation, got {counts}: give more, or each "
                "split by itself"
            )
        shapes = {name: data.inputs.shape[1:] for name, data in splits.items()}
        if len(set(shapes.values())) > 1:
            named = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise UserError(f"the splits of the task have inputs of different shapes: {named}")
        self.train, self.validation, self.test = self._as_taken(train, validation, test)

    def _check_settings(self) -> None:
        """UserError where a number cannot be trained with, or a function cannot be called."""
        rules = (
            ("learning_rate", "a number greater than 0", lambda value: 0 < value < math.inf),
            ("batch_size", "a whole number from 1 up", lambda value: value >= 1 and value == int(value)),
            ("epochs", "a number from 0 up", lambda value: 0 <= value < math.inf),
            ("minutes", "a number greater than 0", lambda value: value > 0),
        )  # fmt: skip
        for name, expected, holds in rules:
            value = getattr(self, name)
            number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            if not number or not holds(value):
                raise UserError(f"Task.{name}: expected {expected}, got {value!r}")
            setattr(self, name, value.item() if isinstance(value, np.generic) else value)
        for name in ("metric", "loss"):
            function = getattr(self, name)
            if function is not None and not callable(function):
                raise UserError(
                    f"Task.{name} must be a function of (outputs, labels), got {type(function).__name__} {function!r}"
                )
            if isinstance(function, type):
                raise UserError(f"Task.{name} is the class {function.__name__}: give an instance of it")
        if not isinstance(self.name, str) or not self.name:
            raise UserError(f"Task.name: expected a name, got {self.name!r}")
        if not isinstance(self.space, SpaceOptions):
            raise UserError(
                f"Task.space: expected autocomp.space.SpaceOptions, got {self.space!r}; spaces that have a name "
                "or a file go by --space"
            )
        if self.maximize is not None and not isinstance(self.maximize, bool | np.bool_):
            raise UserError(f"Task.maximize: expected True, False or None, got {self.maximize!r}")
        self.maximize = None if self.maximize is None else bool(self.maximize)
        if self.maximize is not None and self.metric is None:
            raise UserError("Task.maximize says which way Task.metric is better: give the metric too")
        if self.output is not None and (not isinstance(self.output, str | int) or isinstance(self.output, bool)):
            raise UserError(f"Task.output: expected the name or number of one of the outputs, got {self.output!r}")
        check_said(self.labels)
        self.batch_size = int(self.batch_size)

    def _fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the network takes inputs of this shape, (…) without the axis of examples."""
        return any(_runs(self.network, torch.zeros(2, *shape, dtype=dtype)) for dtype in (torch.float32, torch.int64))

    def _as_taken(self, *splits: Data) -> tuple[Data, ...]:
        """The splits with inputs of one type: tokens stay integers, whole numbers become floats where floats are
        what the network takes."""
        kinds = {data.inputs.dtype.kind for data in splits}
        embeds = any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in self.network.modules())
        if kinds == {"f"} and not embeds:
            return splits
        whole = all(bool((data.inputs == np.floor(data.inputs)).all()) for data in splits)
        example = torch.from_numpy(np.array(splits[1].inputs[:2]))
        as_ints = whole and _runs(self.network, example.long())
        as_floats = _runs(self.network, example.float())
        if as_ints == as_floats:  # either will do, or neither could be tried
            dtype = np.int64 if whole and (kinds == {"i"} and (as_ints or embeds)) else np.float32
        else:
            dtype = np.int64 if as_ints else np.float32
        return tuple(replace(data, inputs=np.ascontiguousarray(data.inputs, dtype=dtype)) for data in splits)

    @property
    def example(self) -> torch.Tensor:
        """Two inputs, (2, …)."""
        return torch.from_numpy(np.ascontiguousarray(self.validation.inputs[:2]))


def _runs(network: nn.Module, example: torch.Tensor) -> bool:
    """Whether a network computes something of an example; the network stays as it was."""
    try:
        mine = copy.deepcopy(network).eval().cpu()
        with torch.no_grad():
            mine(example)
    except Exception:  # noqa: BLE001  (whatever it raises, it does not take this)
        return False
    return True
