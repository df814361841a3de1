"""What a search was asked for: one value, which run.yaml records and `resume` reads again."""

import os
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
    """What the command line says; None means that the task's own default holds."""

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
            return cls(**{**values, **paths, "budget": Budget(**values["budget"])})
        except (KeyError, TypeError) as error:
            raise UserError(f"{origin} does not hold the settings of a run: {error}") from None

    @classmethod
    def of_run(cls, run: Path) -> "SearchSettings":
        """The settings that a run directory records. UserError where it records none."""
        path = run / rundir.SETTINGS
        recorded = yaml.safe_load(path.read_text(encoding="utf-8"))
        return cls.from_dict((recorded or {}).get("settings", {}), str(path))


def workers_of(settings: SearchSettings) -> int:
    return settings.workers or os.cpu_count() or 1
