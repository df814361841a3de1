"""The one distributed engine: Ray Tune runs the trials, on this machine or on a cluster.

Tune asks a Searcher for configurations and tells it when a trial is complete; here the Searcher is a thin coat over
the Schedule, which decides. Actors are reused between trials, so that the network is loaded once a worker.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autocomp.artifact import Target
from autocomp.bench import Bench
from autocomp.errors import RunError
from autocomp.outcome import Candidate
from autocomp.policy import Policy
from autocomp.schedule import Next, Report, Schedule

# Read by Ray when it is imported.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "0",
    # The journal is the record of a run: Tune's own result files would only cost time.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    # Ctrl-C belongs to the search, which saves and says what to type next.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "OMP_NUM_THREADS": "1",
    # Ray would run its workers at niceness 15, where anything else on the machine takes the CPU from the trials.
    "RAY_worker_niceness": "0",
}

#: Content of each file that a trial made, by what follows the candidate's id in its name; empty where it failed.
Files = Mapping[str, bytes]
#: Called in the driver with a candidate's id, its report and its files.
OnResult = Callable[[int, Report, Files], None]


def run_trials(
    schedule: Schedule,
    bench: Bench,
    on_result: OnResult,
    *,
    targets: Sequence[Target],
    seed: int,
    workers: int,
    address: str | None = None,
    epochs: float | None = None,
    work: Callable[[dict[str, Any]], Any] | None = None,
) -> None:
    """Run the schedule to its end. targets: what files are made for. workers: trials at once, one CPU each.

    address: a cluster to join.

    work: what an actor does instead of real trials (a benchmark's empty trial); called with the context, it returns
    an object with `run(candidate id, policy) -> (Report, Files)`. KeyboardInterrupt passes through after Ray was shut
    down; RunError where Ray cannot be started or joined.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address and _has_token():
        # `ray start --head` demands a token by default in Ray 2.60; a client offers its own only when told to.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray
    from ray import tune

    _connect(ray, workers, address)
    try:
        mailbox = ray.remote(num_cpus=0)(_Mailbox).remote()
        context = {
            "folder": str(bench.folder), "seed": seed, "epochs": epochs, "mailbox": mailbox, "work": work,
            "targets": tuple(targets),
            # A cluster's other machines do not see this one's files.
            "files": ray.put(bench.files()) if address else None, "digest": bench.digest if address else "",
        }  # fmt: skip
        searcher = _make_searcher(tune, ray, schedule, mailbox, on_result)
        with tempfile.TemporaryDirectory(prefix="autocomp-tune-") as storage:
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(_make_trainable(tune, ray), context=context), {"cpu": 1}),
                tune_config=tune.TuneConfig(
                    search_alg=searcher, num_samples=schedule.trials or 1_000_000, max_concurrent_trials=workers,
                    reuse_actors=True, metric="candidate", mode="max",
                ),
                run_config=tune.RunConfig(name="trials", storage_path=storage, verbose=0),
            )  # fmt: skip
            tuner.fit()
        if searcher.fault is not None:
            raise searcher.fault
    finally:
        ray.shutdown()


def _has_token() -> bool:
    """Whether this machine holds a token for a Ray cluster, where Ray looks for one."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").is_file()


def _connect(ray: Any, workers: int, address: str | None) -> None:
    common = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    try:
        if address:
            ray.init(address=address, **common)
        else:
            ray.init(num_cpus=workers, include_dashboard=False, object_store_memory=300_000_000, **common)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        where = (
            f"no Ray cluster answers at {address}: start one with `ray start --head`"
            if address
            else "Ray did not start"
        )
        raise RunError(f"{where} ({type(error).__name__}: {str(error).splitlines()[0][:200]})") from error


class _Mailbox:
    """Where workers leave what is too large for Tune's result records: reports and files, by candidate."""

    def __init__(self) -> None:
        self.parcels: dict[int, tuple[Report, Files]] = {}

    def put(self, candidate: int, report: Report, files: Files) -> None:
        self.parcels[candidate] = (report, files)

    def take(self, candidate: int) -> tuple[Report, Files] | None:
        return self.parcels.pop(candidate, None)


class _Work:
    """What an actor does with a candidate: a real trial."""

    def __init__(self, context: dict[str, Any], files: dict[str, bytes] | None) -> None:
        from autocomp.trial import TrialRunner

        folder = Path(context["folder"])
        self.scratch = tempfile.TemporaryDirectory(prefix="autocomp-worker-")
        if not folder.is_dir() and files is not None:
            folder = Path(self.scratch.name, "bench")
            Bench.from_files(files, folder)
        self.runner = TrialRunner(Bench(folder), context["targets"])
        self.seed, self.epochs = int(context["seed"]), context["epochs"]

    def run(self, candidate: int, policy: Policy) -> tuple[Report, Files]:
        stem = Path(self.scratch.name, "model")
        started = time.perf_counter()
        try:
            with self.runner.bench.where_made():
                result = self.runner.run(policy, trial_seed(self.seed, candidate), stem, self.epochs)
        except RunError as error:
            return Report(error=str(error), seconds=time.perf_counter() - started), {}
        except (Exception, SystemExit) as error:  # noqa: BLE001  (one trial's fault must not end the search; its reason is kept)
            return Report(error=_reason(error), seconds=time.perf_counter() - started), {}
        seconds = time.perf_counter() - started
        files = {suffix: path.read_bytes() for suffix, path in result.files.items()}
        return Report(result.artifacts, seconds, details=result.details, drafts=result.drafts), files


class _Broken:
    """What an actor does that could not be set up: each trial fails for that reason."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def run(self, candidate: int, policy: Policy) -> tuple[Report, Files]:
        return Report(error=self.reason), {}


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:300]}"


def trial_seed(seed: int, candidate: int) -> int:
    """Seed of one trial: the same for one candidate of one run, different between candidates."""
    return seed * 1_000_003 + candidate


def _make_trainable(tune: Any, ray: Any) -> Any:
    class TrialActor(tune.Trainable):  # type: ignore[misc]
        """One worker. Loaded once, then handed candidate after candidate by `reset_config`."""

        def setup(self, config: dict[str, Any], context: dict[str, Any]) -> None:
            self.mailbox = context["mailbox"]
            files = ray.get(context["files"]) if context["files"] is not None else None
            make = context["work"]
            try:
                self.work = make(context) if make is not None else _Work(context, files)
            except Exception as error:  # noqa: BLE001  (Tune would only say that the worker died)
                self.work = _Broken(f"the worker cannot begin: {_reason(error)}")
            self.job = config

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.job = new_config
            return True

        def step(self) -> dict[str, Any]:
            candidate = int(self.job["candidate"])
            report, files = self.work.run(candidate, Policy.from_json(self.job["policy"]))
            ray.get(self.mailbox.put.remote(candidate, report, files))
            return {"candidate": candidate, "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            pass

        def load_checkpoint(self, checkpoint: Any) -> None:
            pass

    return TrialActor


def _make_searcher(tune: Any, ray: Any, schedule: Schedule, mailbox: Any, on_result: OnResult) -> Any:
    class ScheduleSearcher(tune.search.Searcher):  # type: ignore[misc]
        """Tune's view of the schedule."""

        def __init__(self, schedule: Any, mailbox: Any, on_result: Any) -> None:
            super().__init__(metric="candidate", mode="max")
            self.schedule, self.mailbox, self.on_result = schedule, mailbox, on_result
            self.candidates: dict[str, int] = {}
            self.fault: BaseException | None = None

        def __reduce__(self) -> Any:
            # Tune pickles its searcher to restore experiments; here the journal restores them.
            return (type(self), (None, None, None))

        def suggest(self, trial_id: str) -> Any:
            try:
                following = self.schedule.next()
            except Exception as error:  # noqa: BLE001  (Tune would swallow it; it is raised once Tune has stopped)
                self.fault = error
                return tune.search.Searcher.FINISHED
            if following is Next.WAIT:
                return None
            if not isinstance(following, Candidate):
                return tune.search.Searcher.FINISHED
            self.candidates[trial_id] = following.id
            return {"candidate": following.id, "policy": following.policy.to_json()}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            candidate = self.candidates.pop(trial_id, None)
            if candidate is None:
                return
            try:
                parcel = ray.get(self.mailbox.take.remote(candidate))
                if parcel is None:
                    parcel = Report(error="the worker died before the trial ended"), {}
                self.on_result(candidate, *parcel)
            except Exception as fault:  # noqa: BLE001
                self.fault = fault
                self.schedule.stopped = True

        def save(self, checkpoint_path: str) -> None:
            pass

        def restore(self, checkpoint_path: str) -> None:
            pass

    return ScheduleSearcher(schedule, mailbox, on_result)
