"""The folder of a run: made, or refused, or taken back; and run.yaml, which says what the run is."""

import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from autocomp import __version__, rundir
from autocomp.devices import Devices
from autocomp.errors import UserError
from autocomp.prepare import Prepared
from autocomp.settings import SearchSettings, workers_of
from autocomp.whole_file import write_whole


def new_run(settings: SearchSettings) -> Path:
    """The run directory, made; `runs/latest` points to it. UserError if it holds another run or cannot be made."""
    devices = "+".join(Path(name).stem for name in settings.profiles)
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{task_label(settings.task)}-{devices}"
    run = settings.out if settings.out is not None else Path("runs") / name
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(
            f"--out {run} already holds something: choose another folder"
            + (f", or go on with its run: autocomp resume {run}" if (run / rundir.SETTINGS).is_file() else "")
        )
    try:
        run.mkdir(parents=True, exist_ok=True)
        probe = run / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out: cannot write to {run}: {error.strerror}; choose another folder") from None
    latest = Path("runs") / "latest"
    if settings.out is None or run.parent.resolve() == latest.parent.resolve():
        latest.unlink(missing_ok=True)
        latest.symlink_to(run.name, target_is_directory=True)
    else:
        _point_latest(run, latest)
    return run


def _point_latest(run: Path, latest: Path) -> None:
    """`runs/latest` points to the newest run wherever it lies; without permission it stays as it is."""
    try:
        latest.parent.mkdir(exist_ok=True)
        latest.unlink(missing_ok=True)
        latest.symlink_to(run.resolve(), target_is_directory=True)
    except OSError:
        pass


def task_label(task: str) -> str:
    return Path(task.rpartition(":")[0]).stem if ":" in task else task


def discard_if_empty(run: Path) -> None:
    """A search that was refused leaves no folder behind."""
    if (run / rundir.SETTINGS).is_file():
        return
    shutil.rmtree(run, ignore_errors=True)
    latest = Path("runs") / "latest"
    if latest.is_symlink() and not latest.exists():
        latest.unlink()
        others = sorted(
            (p for p in latest.parent.iterdir() if (p / rundir.SETTINGS).is_file()), key=lambda p: p.stat().st_mtime
        )
        if others:
            latest.symlink_to(others[-1].name, target_is_directory=True)


def run_facts(prepared: Prepared, run: Path) -> dict[str, Any]:
    settings, spec = prepared.settings, prepared.bench.traced.spec
    return {
        "autocomp": __version__,
        "task": settings.task,
        "network": spec.name if settings.network is None else settings.network,
        "hw": settings.hw,
        "hw_title": prepared.devices.title,
        "budget": asdict(prepared.devices.primary.budget),
        "controller": settings.controller,
        "seed": settings.seed,
        "trials": settings.trials,
        "minutes": settings.minutes if settings.minutes is not None else prepared.task.minutes,
        "workers": workers_of(settings),
        "space": prepared.task.space_name,
        "decisions": len(prepared.space),
        "provenance": prepared.provenance,
        "profile_digest": prepared.profile.digest(),
        **_several(prepared.devices),
        "bench_digest": prepared.bench.digest,
        "judge": prepared.bench.settings["judge"],
        "examples": {
            "train": len(prepared.task.train), "validation": len(prepared.task.validation),
            "test": len(prepared.task.test),
        },
        "versions": _versions(prepared),
        "started_at": datetime.now().astimezone().isoformat(timespec="seconds"),
        "left_alone": [asdict(item) for item in spec.left_alone],
        "removed_choices": _summarize(prepared.space.removed),
        "settings": settings.to_dict(),
    }  # fmt: skip


def _several(devices: Devices) -> dict[str, Any]:
    """What run.yaml says of each device where there are several."""
    if not devices.several:
        return {}
    facts = {
        device.name: {
            "title": device.profile.title, "budget": asdict(device.budget),
            "provenance": device.profile.provenance_note, "profile_digest": device.profile.digest(),
        }
        for device in devices
    }  # fmt: skip
    return {"devices": facts}


def _summarize(removed: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Refused choices, one line a layer and reason."""
    merged: dict[tuple[str, str], list[str]] = {}
    for choice, reason in removed:
        layer, _, decision = choice.rpartition(": ")
        merged.setdefault((layer, reason), []).append(decision)
    return [[f"{layer}: {', '.join(decisions)}", reason] for (layer, reason), decisions in merged.items()]


def _versions(prepared: Prepared) -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    compiled = any(device.profile.integer_only for device in prepared.devices)
    only_npus = ("ai-edge-litert", "ethos-u-vela") if compiled else ()
    for package in ("torch", "onnxruntime", "onnx", "optuna", "ray", "numpy", *only_npus):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def write_settings(run: Path, facts: dict[str, Any], status: str) -> None:
    text = yaml.safe_dump({**facts, "status": status}, sort_keys=False, allow_unicode=True, width=120)
    write_whole(run / rundir.SETTINGS, text.encode())
