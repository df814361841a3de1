"""The main job: from settings to a run directory whose front is a set of verified files."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autocomp import rundir
from autocomp.artifact import Draft
from autocomp.controllers import create
from autocomp.display import Display, SearchState
from autocomp.errors import RunError, UserError
from autocomp.journal import Entry, Journal
from autocomp.outcome import Status
from autocomp.prepare import Prepared, check_reachable, plain_int8, prepare
from autocomp.results import References, measure_references, write_results
from autocomp.run_folder import discard_if_empty, new_run, run_facts, write_settings
from autocomp.schedule import Report, Schedule
from autocomp.settings import SearchSettings, workers_of
from autocomp.whole_file import write_whole


def run_search(settings: SearchSettings, display: Display) -> Path:
    """Search from scratch; returns the run directory. `rundir` says what is in it."""
    run = new_run(settings)
    try:
        return _search(settings, run, display, known={})
    except UserError:
        discard_if_empty(run)
        raise


def resume_search(run: Path, display: Display) -> Path:
    """Go on with an interrupted run: the same sequence of candidates, and what is journaled is not run again."""
    settings = SearchSettings.of_run(run)
    with Journal(run, read_only=True) as journal:
        known = {entry.id: entry for entry in journal}
    return _search(settings, run, display, known)


def _search(settings: SearchSettings, run: Path, display: Display, known: dict[int, Entry]) -> Path:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="autocomp-bench-") as folder:
        prepared = prepare(settings, display, Path(folder))
        check_reachable(prepared)
        seconds = 60 * (settings.minutes if settings.minutes is not None else prepared.task.minutes)
        if settings.trials is not None and settings.minutes is None:
            seconds = None  # type: ignore[assignment]  # whoever counts trials wants them all
        (run / rundir.MODELS).mkdir(exist_ok=True)
        (run / rundir.POLICIES).mkdir(exist_ok=True)
        display.phase("scoring the float network and its plain int8 version")
        # First of all: a network that the devices' files cannot express is refused before there is a run.
        references = measure_references(prepared, run)
        for name, reason in references.failed.items():
            display.note(f"{name}: failed: {reason}")
        if "float" in references.failed:
            display.note(f"the float network's accuracy is torch's, not a file's: {references.float_accuracy:.2%}")
        facts = run_facts(prepared, run)
        write_settings(run, facts, "running")
        rundir.write_network(run, prepared.bench.traced.spec)
        with Journal(run) as journal:
            schedule = _make_schedule(prepared, journal, references, seconds, known, display)
            interrupted = False
            try:
                display.phase(
                    "searching", total=settings.trials, detail=f"{settings.controller} on {prepared.devices.title}"
                )
                _run_trials(prepared, schedule, run)
            except KeyboardInterrupt:
                interrupted = True
            display.phase("scoring the front on the test split")
            front = write_results(prepared, schedule, run, references)
        facts |= {
            "seconds": round(time.monotonic() - started, 1),
            "search_seconds": round(schedule.clock() - schedule.started, 1),
            "counts": {str(s): sum(e.outcome.status is s for e in schedule.entries.values()) for s in Status},
            "float_accuracy": references.float_accuracy,
            "front": len(front),
        }
        write_settings(run, facts, "interrupted" if interrupted else "done")
        if interrupted:
            display.note(f"interrupted; everything so far is saved. To go on: autocomp resume {run}")
        else:
            _conclude(schedule, run, front, display)
    return run


def _conclude(schedule: Schedule, run: Path, front: Sequence[Entry], display: Display) -> None:
    """RunError where a search came to nothing, with the reason; a note where some of its trials failed."""
    failures = schedule.failures
    count = sum(times for _, times in failures)
    if schedule.hopeless is not None:
        reason, alike = schedule.hopeless.outcome.reason, "for this reason" if len(failures) == 1 else "the last thus"
        raise RunError(
            f"every trial failed, so the search ended after {count}; mend this, then start anew ({alike}): {reason}"
        )
    if not front and count and not schedule.complete():
        infeasible = len(schedule.entries) - count
        beside = f"; {infeasible} were over the budget" if infeasible else ""
        raise RunError(f"no trial gave a file: {count} failed{beside}; most often: {failures[0][0]}")
    if not front:
        raise RunError(f"no trial completed within the budget; `autocomp report {run}` lists the reasons")
    if count:
        display.note(
            f"{count} of {len(schedule.entries)} trials failed, {failures[0][1]} of them thus: {failures[0][0]}"
        )


def _make_schedule(
    prepared: Prepared, journal: Journal, references: References, seconds: float | None,
    known: dict[int, Entry], display: Display,
) -> Schedule:  # fmt: skip
    settings, devices = prepared.settings, prepared.devices
    if "int8" in references.measured:
        spec, profiles = prepared.bench.traced.spec, [device.profile for device in devices]
        devices.learn(plain_int8(spec, *profiles), _compiled(references.measured["int8"], devices.primary.name))
    controller = create(settings.controller, prepared.space, devices.joint_costs, devices.joint_budget, settings.seed)
    controller.aim(references.float_accuracy)
    workers = workers_of(settings)

    def ended(entry: Entry, state: SearchState) -> None:
        new = entry.id not in known and entry.outcome.status is Status.COMPLETE
        display.trial(entry, replace(state, on_front=new and entry in schedule.front()))

    schedule = Schedule(
        controller, devices, journal, lag=2 * workers, trials=settings.trials, seconds=seconds, known=known,
        on_entry=ended,
    )  # fmt: skip
    return schedule


def _compiled(reference: rundir.Measured, primary: str) -> dict[str, Draft]:
    """What compilers made of a reference, by device."""
    found = {primary: (reference.compiled_bytes, reference.latency_ms)}
    found |= {name: (made.compiled_bytes, made.latency_ms) for name, made in reference.devices.items()}
    return {name: Draft(size, latency, 0) for name, (size, latency) in found.items() if size and latency}


def _run_trials(prepared: Prepared, schedule: Schedule, run: Path) -> None:
    from autocomp.ray_tune import Files, run_trials

    def on_result(candidate: int, report: Report, files: Files) -> None:
        paths = {suffix: run / rundir.MODELS / f"{candidate}{suffix}" for suffix in files}
        # The files lie there before the journal says so: a kill in between costs one trial, never a point.
        for suffix, content in files.items():
            write_whole(paths[suffix], content)
        entry = schedule.finished(candidate, report)
        if entry not in schedule.front():
            for path in paths.values():
                path.unlink(missing_ok=True)

    settings = prepared.settings
    run_trials(
        schedule, prepared.bench, on_result, targets=prepared.targets, seed=settings.seed,
        workers=workers_of(settings), address=settings.address, epochs=settings.epochs,
    )  # fmt: skip
