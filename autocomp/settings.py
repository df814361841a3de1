"""What a search was asked for: one value, which run.yaml records and `resume` reads again."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from autocomp import rundir
from autocomp.budget import Budget
from autocomp.errors import UserError

if TYPE_CHECKING:
    from autocomp.tasks import TaskRequest


@dataclass(frozen=True)
class SearchSettings:
    """What the command line says; None means that the task's own default holds.

    hw: profile names or paths of profile files, separated by commas; the first is the primary device. budget: of every
    device that `device_budgets` does not name.
    """

    hw: str
    task: str = "mnist"
    network: str | None = None
    data: Path | None = None
    test_data: Path | None = None
    budget: Budget = field(default_factory=Budget)
    controller: str = "tpe"
    space: str | None = None
    trials: int | None = None
    minutes: float | None = None
    seed: int = 0
    workers: int | None = None
    address: str | None = None
    out: Path | None = None
    epochs: float | None = None
    strict: bool = False
    device_budgets: Mapping[str, Budget] = field(default_factory=dict)

    @property
    def profiles(self) -> tuple[str, ...]:
        """Names or paths of the profiles, the primary device's first."""
        return split_devices(self.hw)

    def budget_of(self, device: str) -> Budget:
        """device: the name of a profile."""
        return self.device_budgets.get(device, self.budget)

    @property
    def request(self) -> "TaskRequest":
        from autocomp.tasks import TaskRequest  # settings are checked before torch is loaded

        return TaskRequest(self.task, self.network, self.data, self.test_data, self.space)

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        for name in ("data", "test_data"):
            values[name] = None if values[name] is None else str(Path(values[name]).resolve())
        if ":" in self.task:
            path, _, function = self.task.rpartition(":")
            values["task"] = f"{Path(path).resolve()}:{function}"
        values["out"] = None if self.out is None else str(self.out)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str) -> "SearchSettings":
        try:
            paths = {n: None if values[n] is None else Path(values[n]) for n in ("data", "test_data", "out")}
            budgets = {name: Budget(**bounds) for name, bounds in values.get("device_budgets", {}).items()}
            return cls(**{**values, **paths, "budget": Budget(**values["budget"]), "device_budgets": budgets})
        except (KeyError, TypeError) as error:
            raise UserError(f"{origin} does not hold the settings of a run: {error}") from None

    @classmethod
    def of_run(cls, run: Path) -> "SearchSettings":
        """The settings that a run directory records. UserError where it records none."""
        path = run / rundir.SETTINGS
        recorded = yaml.safe_load(path.read_text(encoding="utf-8"))
        return cls.from_dict((recorded or {}).get("settings", {}), str(path))


def split_devices(hw: str) -> tuple[str, ...]:
    """The profiles that `hw` names. UserError where one is empty, or named twice."""
    if "," not in hw or Path(hw).is_file():
        return (hw,)
    names = tuple(name.strip() for name in hw.split(","))
    if "" in names:
        raise UserError(f"--hw: expected names with a comma between them such as mobile_arm,host_cpu, got {hw!r}")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--hw: expected different devices, got {name} twice")
    return names


def workers_of(settings: SearchSettings) -> int:
    return settings.workers or os.cpu_count() or 1
