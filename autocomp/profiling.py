"""Filling a device's table: on this machine, by a bundle for a board, or on a board through SSH."""

import datetime
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from autocomp.display import Display
from autocomp.errors import UserError
from autocomp.hardware.local import LocalDevice, local_device
from autocomp.hardware.profile import HardwareProfile
from autocomp.hardware.profiling.bundle import write_bundle
from autocomp.hardware.profiling.derived import check_target, write_profile
from autocomp.hardware.profiling.fill import Filling, Measure, Tier, fill
from autocomp.hardware.profiling.growing import GrowingTable
from autocomp.hardware.profiling.planning import informative_order
from autocomp.hardware.profiling.results import Imported, import_results
from autocomp.hardware.profiling.ssh import Board, check_board, measure_on
from autocomp.hardware.profiling.summary import Summary, summarize
from autocomp.hardware.table import LatencyTable
from autocomp.tasks.reach import Reach, reach

#: How long this machine is measured where nobody says.
DEFAULT_MINUTES = 10.0
#: Networks that widen the table in the time that a space leaves, one of each family, and how many variants of each.
_WIDER = ("mobilenet_v2", "resnet18", "squeezenet", "mobilenet_v1", "resnet20", "efficientnet_lite0")
#: They grow from round to round: the first round of all comes before the second of any.
_OWN_VARIANTS, _WIDER_VARIANTS, _WIDER_ROUNDS = 16, 16, 3
#: Another network is only traced where so many seconds are left to measure it.
_WORTH_TRACING_S = 30.0
#: Kept for the summary, which fits the estimator once more: a share of the time, and at most so many seconds.
_FOR_SUMMARY, _SUMMARY_S = 0.03, 10.0


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured; see `tasks.reach.reach`."""

    space: str | None = None
    network: str | None = None
    task: str | None = None


@dataclass(frozen=True)
class Measurement:
    """What measuring this machine came to.

    table: where `search --hw host_cpu` finds it. known: rows that were there before. profile: of the copy, where one
    was asked for. interrupted: by Ctrl-C. summary: None where there are no rows, or where it was interrupted.
    """

    table: Path
    known: int
    filling: Filling
    seconds: float
    interrupted: bool
    summary: Summary | None
    profile: Path | None = None

    def document(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "table": str(self.table), "profile": None if self.profile is None else str(self.profile),
            "known": self.known, "added": len(self.filling.added), "measured_again": len(self.filling.checked),
            "corrected": self.filling.corrected, "refused": [str(kernel) for kernel in self.filling.refused],
            "seconds": round(self.seconds, 1), "interrupted": self.interrupted,
            **({} if self.summary is None else self.summary.document()),
        }  # fmt: skip

    def lines(self) -> list[str]:
        """For a person."""
        filling = self.filling
        lines = [
            f"table             {self.table}",
            f"measured          {len(filling.added)} kernels in {self.seconds:.0f} s, {self.known} were known; "
            f"{len(filling.checked)} doubtful ones again, {filling.corrected} corrected",
        ]
        if filling.refused:
            lines.append(f"refused           {len(filling.refused)} kernels that the runtime does not build")
        if self.profile is not None:
            lines.append(f"profile           {self.profile} (use it with --hw)")
        return lines + ([] if self.summary is None else self.summary.lines())


def measure_here(
    profile: HardwareProfile,
    subject: Subject,
    display: Display,
    *,
    minutes: float | None = None,
    began: float | None = None,
    resume: bool = False,
    fresh: bool = False,
    out: Path | None = None,
    name: str | None = None,
    measure: Measure | None = None,
    folder: Path | None = None,
) -> Measurement:
    """Measures this machine for `minutes` in all: kernels of the subject's space, then what widens the table.

    In the time that the space leaves, come the same layers with channel counts in between (odd ones, too), then
    networks of other families: pruned networks are made of such kernels. What the table has is never measured again;
    `fresh` discards it before, `resume` demands it. began: when the time began, by `time.monotonic`; now by default.
    measure, folder: what measures, and of the tables, for tests.
    UserError where `profile` is not this machine or not at hand, and for a subject that names no network.
    """
    seconds = 60 * (DEFAULT_MINUTES if minutes is None else minutes)
    began = time.monotonic() if began is None else began
    end = began + seconds - min(_FOR_SUMMARY * seconds, _SUMMARY_S)
    if not profile.on_the_spot:
        raise UserError(
            f"{profile.name} is not this machine ({profile.device}): make a folder to run on it with `autocomp profile "
            f"bundle {profile.name} --space … --out DIR`, or add --ssh user@board"
        )
    target = name or profile.name
    if out is not None:
        check_target(target, out)
    device = local_device(profile, folder)
    path, measure = device.table, measure or device.measure
    if resume and not path.exists():
        raise UserError(f"--resume: nothing was measured on this machine yet ({path}); leave --resume away")
    ours = reach(profile, subject.space, subject.network, subject.task, display)
    if fresh:
        path.unlink(missing_ok=True)
    table, filling = GrowingTable(path), Filling()
    known = len(table.table)
    if known:
        display.note(f"{known} rows are there already and stay as they are ({path}); --fresh starts anew")
    interrupted = False
    try:
        tiers = [
            Tier("measuring what the space reaches", ours.kernels),
            Tier("measuring channel counts in between", ours.between(_OWN_VARIANTS)),
            Tier("measuring what else the device runs", device.in_other_precisions(ours.kernels)),
        ]
        fill(table, tiers, max(1.0, end - time.monotonic()), measure, display, filling=filling)
        for wider in _wider(profile, ours, end, display):
            fill(table, [wider], max(1.0, end - time.monotonic()), measure, display, filling=filling)
        display.phase("fitting the estimator")
    except KeyboardInterrupt:
        interrupted = True
        display.note(f"interrupted; {len(table.table)} rows are saved, and the same command goes on")
    summary = None
    if table.table and not interrupted:
        summary = summarize(table.table, ours.kernels, profile.calibration)
    copy = _copy(profile, device, target, out, table.table, ours) if out is not None and len(table.table) else None
    return Measurement(path, known, filling, time.monotonic() - began, interrupted, summary, copy)


def _wider(profile: HardwareProfile, ours: Reach, end: float, display: Display) -> Iterator[Tier]:
    """Kernels of networks of every family, as long as there is time to measure them before `end`."""
    traced: dict[str, Reach] = {}
    for seed, name in product(range(1, 1 + _WIDER_ROUNDS), _WIDER):
        if end - time.monotonic() < _WORTH_TRACING_S:
            return
        if name not in traced:
            traced[name] = ours if name == ours.network.name else reach(profile, None, name, None, display)
        yield Tier(f"widening the table by {name}", traced[name].between(_WIDER_VARIANTS, seed))


def _copy(
    profile: HardwareProfile, device: LocalDevice, name: str, out: Path, table: LatencyTable, ours: Reach
) -> Path:
    measured = sum(kernel in table for kernel in ours.kernels)
    coverage = f"{len(table)} kernels, {measured} of the {len(ours.kernels)} of {ours.name}"
    return write_profile(profile, name, out, table, device.machine, coverage, datetime.date.today())[0]


def make_bundle(profile: HardwareProfile, subject: Subject, out: Path, display: Display) -> int:
    """Writes the bundle for a board of the profile's kind to `out`; returns the number of its kernels.

    UserError for a GPU: the runner of a bundle measures a CPU.
    """
    if profile.cuda_device is not None:
        raise UserError(f"{profile.name}: a bundle measures a CPU; run autocomp profile {profile.name} beside the GPU")
    ours = reach(profile, subject.space, subject.network, subject.task, display)
    display.phase("writing the bundle", detail=str(out))
    order = informative_order(ours.kernels, LatencyTable({}))
    return len(write_bundle(out, profile, ours.name, order)["kernels"])


def measure_by_ssh(
    profile: HardwareProfile,
    subject: Subject,
    board: Board,
    display: Display,
    *,
    name: str,
    out: Path,
    minutes: float | None = None,
    fresh: bool = False,
) -> tuple[Imported, bool]:
    """Measures a board of the profile's kind and writes its profile `name` to `out`; whether Ctrl-C ended it.

    What was measured is imported however it ended; see `profiling.ssh`. UserError where the board cannot be used.
    """
    check_target(name, out)
    check_board(board)
    with tempfile.TemporaryDirectory(prefix="autocomp-bundle-") as temporary:
        folder = Path(temporary)
        make_bundle(profile, subject, folder, display)
        try:
            measure_on(board, folder, minutes, fresh, display)
        except KeyboardInterrupt:
            display.note("interrupted; the same command goes on")
            return import_results(folder, name, out), True
        return import_results(folder, name, out), False
