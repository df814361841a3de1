"""A profile of a machine that was measured, derived from one that says what such a device executes."""

import datetime
import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from autocomp.errors import UserError
from autocomp.hardware.profile import HardwareProfile, find_profile
from autocomp.hardware.table import LatencyTable

#: First line of the profiles that are written here: only such are replaced by a later one.
_MARK = "# Written by `autocomp profile`.\n"


@dataclass(frozen=True, slots=True)
class Machine:
    """What a table was measured on.

    processor: its name. device: the processor with its architecture and cores. onnxruntime: version. details: what
    else its latencies depend on.
    """

    processor: str
    device: str
    onnxruntime: str
    threads: int
    details: str = ""

    @property
    def how(self) -> str:
        """How its latencies were measured, for their provenance."""
        details = self.details or f"{self.threads} thread"
        return (
            f"ONNX Runtime {self.onnxruntime} kernels measured on {self.processor}, {details}, "
            "difference of two chain lengths"
        )


def check_target(name: str, out: Path) -> None:
    """UserError where `write_profile` would refuse the name or the folder: worth knowing before measuring."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_]{0,63}", name):
        raise UserError(f"--name: expected lower-case letters, digits and underscores such as my_board, got {name!r}")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is not a folder")
    profile, table = out / f"{name}.yaml", out / f"{name}.csv"
    if profile.is_file() and profile.read_text("utf-8", "replace").startswith(_MARK):
        return
    for path in (profile, table):
        if path.exists():
            raise UserError(f"{path} is there, and not from an earlier measurement; choose another --name or --out")


def write_profile(
    base: HardwareProfile,
    name: str,
    out: Path,
    table: LatencyTable,
    machine: Machine,
    coverage: str,
    date: datetime.date,
) -> tuple[Path, Path]:
    """Writes `name`.yaml and its table `name`.csv to the folder `out`; returns both paths.

    coverage: which kernels were measured, in words. The band of a board is that of host_cpu, which is measured by the
    same code and held against whole networks. UserError as by `check_target`.
    """
    check_target(name, out)
    band = base if base.on_the_spot else find_profile("host_cpu")
    document = base.model_dump(exclude_none=True, exclude={"cuda_device"}) | {
        "name": name,
        "title": machine.processor,
        "device": machine.device,
        "core": machine.processor,
        "runtime": {"name": "onnxruntime", "version": machine.onnxruntime},
        "threads": machine.threads,
        "provenance": {
            "kind": "measured",
            "text": f"{machine.how}; {coverage}",
            "date": date,
        },
        "unit": "us",
        "table": f"{name}.csv",
        "rows": len(table),
        "calibration": {"relative_error": band.calibration["relative_error"]},
    }
    text = _MARK + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    HardwareProfile.parse(text, f"profile {name}")  # as strict as it will be read
    yaml_path, csv_path = out / f"{name}.yaml", out / f"{name}.csv"
    table.write(csv_path)
    partial = yaml_path.with_name(f"{yaml_path.name}.{os.getpid()}.tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(yaml_path)
    return yaml_path, csv_path
