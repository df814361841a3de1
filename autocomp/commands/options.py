"""Options that several verbs take, and the checks of their plain values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from autocomp.budget import Budget
from autocomp.errors import UserError

if TYPE_CHECKING:
    from autocomp.policy import Policy
    from autocomp.settings import SearchSettings

#: A value such as -4MB must reach its own check, which says what is wrong with it better than the option parser.
Quantity = Annotated[str | None, Parameter(allow_leading_hyphen=True)]
Number = Annotated[int | None, Parameter(allow_leading_hyphen=True)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """What is compressed. Shared by the verbs that need a network."""

    task: str = "mnist"
    """Built-in task, or path/to/file.py:function for a network of your own."""
    network: str | None = None
    """Which of the task's networks."""
    data: Path | None = None
    """Folder of images in one folder per class."""
    test_data: Path | None = None
    """A second such folder, held out for the final score; otherwise --data is split."""
    space: str | None = None
    """Search space: a name (`autocomp space list`) or the path of a YAML file."""
    seed: Annotated[int, Parameter(allow_leading_hyphen=True)] = 0
    """Same seed, settings and machine: same sequence of candidates."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TaskOptions(NetworkOptions):
    """What is compressed, for which device."""

    hw: str
    """Device: a profile name (`autocomp hw list`) or the path of a profile file. `search` takes several, with commas
    between them: one network for all; the first is the primary one."""


def search_settings(
    options: NetworkOptions,
    hw: str,
    *,
    budget: Budget = Budget(),  # noqa: B008  (frozen)
    controller: str = "tpe",
    trials: int | None = None,
    minutes: float | None = None,
    workers: int | None = None,
    address: str | None = None,
    out: Path | None = None,
    epochs: int | None = None,
    strict: bool = False,
    device_budgets: Mapping[str, Budget] | None = None,
) -> "SearchSettings":
    """Settings whose plain values are in range. Names are looked up by whoever owns the registry."""
    at_least("--trials", trials, 1)
    at_least("--workers", workers, 1)
    at_least("--epochs", epochs, 0)
    at_least("--seed", options.seed, 0)
    if minutes is not None and not 0 < minutes < float("inf"):
        raise UserError(f"--minutes: expected a number greater than 0, got {minutes:g}; try --minutes 5")
    for option, folder in (("--data", options.data), ("--test-data", options.test_data)):
        if folder is not None and not folder.is_dir():
            state = "is not a folder" if folder.exists() else "does not exist"
            raise UserError(f"{option}: {folder} {state}; expected a folder with one folder of images per class")
    from autocomp.controllers import NAMES
    from autocomp.errors import unknown_name

    if controller not in NAMES:
        raise unknown_name("controller", controller, NAMES)
    from autocomp.settings import SearchSettings

    return SearchSettings(
        task=options.task,
        network=options.network,
        data=options.data,
        test_data=options.test_data,
        hw=hw,
        budget=budget,
        controller=controller,
        space=options.space,
        trials=trials,
        minutes=minutes,
        seed=options.seed,
        workers=workers,
        address=address,
        out=out,
        epochs=epochs,
        strict=strict,
        device_budgets=device_budgets or {},
    )


def device_names(hw: str) -> list[str]:
    """The names of the profiles that `hw` names, the primary one first: bounds are given by them."""
    from autocomp.settings import split_devices

    return [_profile_name(profile) for profile in split_devices(hw)]


def _profile_name(profile: str) -> str:
    if not profile.endswith((".yaml", ".yml")):
        return profile  # whether there is one is for whoever opens it to say
    from autocomp.hardware.profile import find_profile

    return find_profile(profile).name


def one_device(hw: str, verb: str) -> str:
    """`hw` itself. UserError where it names several devices."""
    from autocomp.settings import split_devices

    if len(split_devices(hw)) > 1:
        raise UserError(f"--hw: {verb} takes one device, got {hw}; autocomp hw compare shows several")
    return hw


def at_least(option: str, value: int | None, least: int) -> None:
    """UserError where the value of `option` is below `least`."""
    if value is not None and value < least:
        raise UserError(f"{option}: expected a whole number of at least {least}, got {value}")


def read_policy(path: Path, option: str = "") -> "Policy":
    """The policy in a file that `option`, or an argument, names. UserError where it holds none."""
    from autocomp.policy import Policy

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fault = error.strerror if isinstance(error, OSError) else "it is not text"
        prefix = f"{option}: " if option else ""
        raise UserError(f"{prefix}cannot read {path}: {fault}; expected a policy file such as search writes") from None
    return Policy.from_json(text, str(path))


def is_network_file(path: Path) -> bool:
    """Whether `path` names an ONNX file, or else a policy. UserError where it names neither, or does not exist."""
    if path.suffix not in (".onnx", ".json"):
        raise UserError(f"expected an .onnx file or the .json file of a policy, got {path}")
    if not path.is_file():
        raise UserError(f"there is no file {path}; expected an .onnx file or the .json file of a policy")
    return path.suffix == ".onnx"
