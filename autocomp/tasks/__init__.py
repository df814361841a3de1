"""Tasks: a network with its data, built in or a user's own."""

import importlib.util
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from autocomp.errors import UserError, unknown_name
from autocomp.tasks.task import Data, Task

__all__ = ["BUILTIN", "Data", "Task", "TaskRequest", "load_task", "own_folders"]


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """What the command line says about the task.

    task: built-in name or path.py:function. network: which of its networks. space: name or path of a search space.
    """

    task: str = "mnist"
    network: str | None = None
    data: Path | None = None
    test_data: Path | None = None
    space: str | None = None


class Progress(Protocol):
    """What a task may say while it prepares: a phase with its number of steps, and how many are done."""

    def phase(self, name: str, total: int | None = None, detail: str = "") -> None: ...

    def advance(self, done: int) -> None: ...


#: Built-in task → module with a function `task(request, progress) -> Task`.
BUILTIN = {"mnist": "autocomp.tasks.mnist", "imagenet": "autocomp.tasks.imagenet"}

#: How the module of a task file is called: a prefix and the file's name.
_OWN = "autocomp_task_"


def load_task(request: TaskRequest, progress: Progress) -> Task:
    """The task that was asked for. UserError if there is none of that name, or if it cannot be built."""
    if request.task in BUILTIN:
        module = importlib.import_module(BUILTIN[request.task])
        built: Task = module.task(request, progress)
        return built
    if ":" not in request.task:
        if Path(request.task).suffix == ".py":
            raise UserError(f"--task {request.task}: expected path/to/file.py:function, the function is missing")
        raise unknown_name("task", request.task, BUILTIN)
    path, _, name = request.task.rpartition(":")
    for option, value in (("--network", request.network), ("--data", request.data), ("--test-data", request.test_data)):
        if value is not None:
            raise UserError(f"{option} is for built-in tasks; a task of your own chooses its network and data itself")
    return _own_task(Path(path), name)


def own_folders() -> list[Path]:
    """Where the task files lie that were loaded: their functions may use what stands beside them."""
    own = (module for name, module in sys.modules.items() if name.startswith(_OWN))
    return list(dict.fromkeys(Path(str(module.__file__)).resolve().parent for module in own))


def _own_task(path: Path, name: str) -> Task:
    if not path.is_file():
        raise UserError(f"--task: there is no file {path}; expected path/to/file.py:function")
    spec = importlib.util.spec_from_file_location(f"{_OWN}{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--task: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    place = str(path.resolve().parent)
    sys.path.insert(0, place)  # its neighbours can be imported, as when it is run
    try:
        spec.loader.exec_module(module)
        found = getattr(module, name, None)
        if found is None:
            offered = [
                k
                for k, v in vars(module).items()
                if isinstance(v, Task) or (callable(v) and getattr(v, "__module__", None) == spec.name)
            ]
            raise UserError(f"--task: {path} has no function {name!r}; it has {', '.join(offered) or 'none'}")
        built = found if isinstance(found, Task) else _call(found, f"--task {path}:{name}")
    except UserError:
        raise
    except (Exception, SystemExit) as raised:
        error: BaseException = raised
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        line = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where is not None else str(path)
        if isinstance(error, SyntaxError):  # the last frame is Python's own
            line = f"{Path(error.filename or path).name}:{error.lineno}" if error.lineno else path.name
            error = SyntaxError(error.msg)
        raise UserError(f"--task {path}:{name} raised {type(error).__name__} at {line}: {error}") from raised
    finally:
        sys.path.remove(place)
        if place not in sys.path:
            sys.path.append(place)  # for what a metric imports when it is called; behind all that is installed
    if not isinstance(built, Task):
        raise UserError(f"--task: {name}() must return an autocomp.Task, got {type(built).__name__}")
    return built


def _call(function: object, what: str) -> object:
    """What a function of a task file returns. UserError where it is none, or one with arguments."""
    if not callable(function):
        raise UserError(
            f"{what} is of type {type(function).__name__}: expected a function that returns an autocomp.Task"
        )
    try:
        needed = [
            name
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
    except (TypeError, ValueError):  # built-in ones have no signature
        needed = []
    if needed:
        raise UserError(
            f"{what} takes {', '.join(needed)}: expected a function without arguments that returns an autocomp.Task"
        )
    return function()
