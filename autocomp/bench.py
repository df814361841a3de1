"""Everything a worker needs to run trials of one task, as files: the traced network, data, how to judge.

A bench is made once by the search and read by each worker, on this machine or, as bytes, on another. The test split
is not in it: selection never sees it.
"""

import contextlib
import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from autocomp.compress.trace import Traced, load, trace
from autocomp.compress.trace_cache import TraceCache
from autocomp.errors import UserError
from autocomp.tasks import own_folders
from autocomp.tasks.check import check_task
from autocomp.tasks.judge import Judge
from autocomp.tasks.task import Task

_SETTINGS, _FUNCTIONS = "bench.json", "functions.pickle"


@dataclass(frozen=True)
class Bench:
    """A task in a folder. Arrays are memory-mapped: workers on one machine share them."""

    folder: Path

    @classmethod
    def make(cls, task: Task, folder: Path) -> "Bench":
        """Trace the task's network and write the bench. UserError where the network cannot be traced,
        or where its metric, its loss or a training step fails."""
        traced = trace(task.network, task.example, task.name, folder, TraceCache(), task.output)
        train, validation = task.train, task.validation
        np.save(folder / "train_inputs.npy", train.inputs)
        np.save(folder / "validation_inputs.npy", validation.inputs)
        checked = check_task(task, traced.graph)
        np.save(folder / "train_teacher.npy", checked.teacher)
        np.save(folder / "validation_labels.npy", checked.labels)
        if checked.targets is not None:
            np.save(folder / "train_labels.npy", checked.targets)
        folders = own_folders()
        # By value: a user's own modules cannot be imported on another machine.
        (folder / _FUNCTIONS).write_bytes(_by_value(checked.judge, folders))
        settings = {
            "epochs": task.epochs, "batch_size": task.batch_size, "learning_rate": task.learning_rate,
            "judge": checked.judge.facts(), "notes": checked.notes,
            "folders": [str(place) for place in folders], "directory": str(Path.cwd()),
        }  # fmt: skip
        (folder / _SETTINGS).write_text(json.dumps(settings))
        bench = cls(folder)
        bench.__dict__["traced"] = traced  # read already
        return bench

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
    def judge(self) -> Judge:
        """How outputs are judged, and what training minimizes."""
        for place in self.settings["folders"]:  # what a metric imports when it is called
            if place not in sys.path and Path(place).is_dir():
                sys.path.append(place)
        judge: Judge = cloudpickle.loads((self.folder / _FUNCTIONS).read_bytes())
        return judge

    @contextmanager
    def where_made(self) -> Iterator[None]:
        """Work in the directory that the bench was made in, where this machine has it: what a user's functions open by
        a relative name lies there."""
        place = Path(self.settings["directory"])
        with contextlib.chdir(place) if place.is_dir() else contextlib.nullcontext():
            yield

    @property
    def notes(self) -> list[str]:
        """What was taken for what, and what looks wrong: for the user to read before the search, a line each."""
        return [str(note) for note in self.settings["notes"]]

    def _array(self, name: str) -> NDArray[Any]:
        return np.asanyarray(np.load(self.folder / name, mmap_mode="r"))

    @property
    def train_inputs(self) -> NDArray[Any]:
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
    def validation_inputs(self) -> NDArray[Any]:
        return self._array("validation_inputs.npy")

    @property
    def validation_labels(self) -> NDArray[Any]:
        return self._array("validation_labels.npy")


def _by_value(judge: Judge, folders: Sequence[Path]) -> bytes:
    """The judge as bytes, with what modules in `folders` define."""
    own = [module for name, module in list(sys.modules.items()) if name != "__main__" and _is_in(module, folders)]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps(judge))
    except Exception as error:
        raise UserError(
            f"the task's metric or loss cannot be sent to the workers: {type(error).__name__}: {error}; what they hold "
            "must be picklable: open files and connections inside the function"
        ) from error
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)


def _is_in(module: ModuleType, folders: Sequence[Path]) -> bool:
    """Whether a module lies beside a task file or under its folder, and is no installed package."""
    path = getattr(module, "__file__", None)
    if path is None or module.__name__.partition(".")[0] in ("autocomp", "cloudpickle"):
        return False
    if {"site-packages", "dist-packages"} & set(Path(path).parts) or module.__name__ in sys.stdlib_module_names:
        return False
    place = Path(path).resolve()
    standard = Path(sysconfig.get_paths()["stdlib"]).resolve()
    return not place.is_relative_to(standard) and any(place.is_relative_to(folder) for folder in folders)
