"""Everything a worker needs to run trials of one task, as files: the traced network, data, how to judge.

A bench is made once by the search and read by each worker, on this machine or, as bytes, on another. The test split
is not in it: selection never sees it.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray

from autocomp.compress.finetune import outputs_of
from autocomp.compress.trace import Traced, load, trace
from autocomp.errors import UserError
from autocomp.tasks.task import Loss, Metric, Task, top1

_SETTINGS, _FUNCTIONS = "bench.json", "functions.pickle"


@dataclass(frozen=True)
class Bench:
    """A task in a folder. Arrays are memory-mapped: workers on one machine share them."""

    folder: Path

    @classmethod
    def make(cls, task: Task, folder: Path) -> "Bench":
        """Trace the task's network and write the bench. UserError where the network cannot be traced or scored."""
        traced = trace(task.network, task.example, task.name, folder)
        train, validation = task.train, task.validation
        np.save(folder / "train_inputs.npy", train.inputs)
        np.save(folder / "validation_inputs.npy", validation.inputs)
        teacher = outputs_of(traced.graph, train.inputs)
        np.save(folder / "train_teacher.npy", teacher)
        reference = outputs_of(traced.graph, validation.inputs)
        labels = validation.labels
        if labels is None:  # agreement with the float network
            labels = answers_of(reference)
        np.save(folder / "validation_labels.npy", labels)
        if train.labels is not None:
            np.save(folder / "train_labels.npy", train.labels)
        metric, loss = task.metric, task.loss
        if metric is None:
            metric = default_metric(reference, labels)
        if loss is None:
            loss = _default_loss(reference, train.labels)
        _check_metric(metric, reference, labels)
        # By value: a user's own module cannot be imported on another machine.
        (folder / _FUNCTIONS).write_bytes(_by_value((metric, loss)))
        settings = {"epochs": task.epochs, "batch_size": task.batch_size, "learning_rate": task.learning_rate}
        (folder / _SETTINGS).write_text(json.dumps(settings))
        return cls(folder)

    @classmethod
    def from_files(cls, files: dict[str, bytes], folder: Path) -> "Bench":
        """Write a bench that came as bytes from another machine."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return cls(folder)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir()) if path.is_file()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the float network and the data: two runs with the same digest compressed the same thing."""
        digest = hashlib.sha256()
        for name in ("float.onnx", "train_inputs.npy", "validation_inputs.npy", "validation_labels.npy"):
            digest.update((self.folder / name).read_bytes())
        return digest.hexdigest()

    @cached_property
    def traced(self) -> Traced:
        return load(self.folder)

    @cached_property
    def settings(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / _SETTINGS).read_text()))

    @cached_property
    def _functions(self) -> tuple[Metric, Loss]:
        metric, loss = cloudpickle.loads((self.folder / _FUNCTIONS).read_bytes())
        return metric, loss

    @property
    def metric(self) -> Metric:
        return self._functions[0]

    @property
    def loss(self) -> Loss:
        return self._functions[1]

    def _array(self, name: str) -> NDArray[Any]:
        return np.asanyarray(np.load(self.folder / name, mmap_mode="r"))

    @property
    def train_inputs(self) -> NDArray[np.float32]:
        return self._array("train_inputs.npy")

    @property
    def train_teacher(self) -> NDArray[np.float32]:
        return self._array("train_teacher.npy")

    @property
    def train_labels(self) -> NDArray[Any] | None:
        return self._array("train_labels.npy") if (self.folder / "train_labels.npy").is_file() else None

    @property
    def validation_inputs_path(self) -> Path:
        return self.folder / "validation_inputs.npy"

    @property
    def validation_inputs(self) -> NDArray[np.float32]:
        return self._array("validation_inputs.npy")

    @property
    def validation_labels(self) -> NDArray[Any]:
        return self._array("validation_labels.npy")


def answers_of(outputs: NDArray[Any]) -> NDArray[Any]:
    """What stands in for labels where there are none: the class of largest score, or the outputs themselves."""
    return outputs.argmax(axis=1) if outputs.ndim == 2 else outputs


def default_metric(outputs: NDArray[Any], labels: NDArray[Any]) -> Metric:
    """Top-1 accuracy for class scores; for anything else 1 / (1 + relative squared error) against the targets."""
    if outputs.ndim == 2 and labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
        return top1
    return relative_fit


def relative_fit(outputs: NDArray[Any], targets: NDArray[Any]) -> float:
    """1 for a perfect match, 0.5 where the error is as large as the targets' own variance."""
    error = float(np.square(np.asarray(outputs).reshape(targets.shape) - targets).mean())
    return 1.0 / (1.0 + error / max(float(np.var(targets)), 1e-12))


def classification_loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs, labels.long())


def regression_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.mse_loss(outputs, targets.reshape(outputs.shape).float())


def _default_loss(outputs: NDArray[Any], labels: NDArray[Any] | None) -> Loss:
    whole = labels is not None and labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
    return classification_loss if whole and outputs.ndim == 2 else regression_loss


def _by_value(functions: tuple[Metric, Loss]) -> bytes:
    import sys

    modules = {getattr(f, "__module__", "") for f in functions}
    own = [sys.modules[m] for m in modules if m in sys.modules and not m.startswith(("autocomp.", "torch", "numpy"))]
    own = [m for m in own if m.__name__ != "__main__" and m.__name__.startswith("autocomp_task_")]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps(functions))
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)


def _check_metric(metric: Metric, outputs: NDArray[Any], labels: NDArray[Any]) -> None:
    try:
        value = float(metric(outputs, labels))
    except Exception as error:
        raise UserError(f"the task's metric fails on the float network's outputs {outputs.shape}: {error}") from error
    if not 0 <= value <= 1:
        raise UserError(
            f"the task's metric must lie in [0, 1], higher is better; it gave {value:g} for the float network"
        )
