"""Latencies of this machine's own CPU: measured as they are needed, kept per CPU model and runtime version."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import onnxruntime
import platformdirs

from autocomp.errors import UserError
from autocomp.hardware.kernel_models import kernel_model
from autocomp.hardware.profiling.chains import REFERENCE, chain_copies, table_latency
from autocomp.hardware.profiling.fill import Measure, Measured, Tier, fill
from autocomp.hardware.profiling.growing import GrowingTable
from autocomp.hardware.runner import BoundModel, Chains, Timing, cpu_name, keeps_blocks, time_in_rounds
from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Kernel

log = logging.getLogger(__name__)

#: Called with kernels done, kernels in all, and seconds left of the time that was given.
Progress = Callable[[int, int, float], None]


#: Names the way of measuring: rows of different ones must not meet in a table. 2: kernels as inside a network.
_METHOD = 2


def host_table_path(folder: Path | None = None) -> Path:
    """Where this machine's latencies are kept: a file per CPU model, number of cores, runtime and way of measuring."""
    folder = folder or Path(platformdirs.user_cache_dir("autocomp")) / "host_cpu"
    machine = re.sub(r"[^A-Za-z0-9]+", "-", cpu_name()).strip("-").lower()
    return folder / f"{machine}-{os.cpu_count()}cores-onnxruntime-{onnxruntime.__version__}-{_METHOD}.csv"


def host_table(folder: Path | None = None) -> LatencyTable:
    """What was measured on this machine so far; empty if nothing was."""
    path = host_table_path(folder)
    return LatencyTable.read(path) if path.exists() else LatencyTable({})


def ensure_host_table(
    kernels: Sequence[Kernel],
    max_seconds: float = 60.0,
    progress: Progress | None = None,
    *,
    folder: Path | None = None,
    measure: Measure | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> LatencyTable:
    """The table of this machine, after those of `kernels` that it lacked were measured, most informative first.

    Stops after `max_seconds`; kernels that were not reached are left to the estimator. Each row is saved as soon as
    it is measured, so an interruption loses none, and no later call measures it again. See `profiling.fill`.
    UserError if `max_seconds` is not above 0 or the cached table is damaged.
    """
    if not max_seconds > 0:
        raise UserError(f"the time for measuring must be above 0 seconds, got {max_seconds!r}")
    table = GrowingTable(host_table_path(folder))
    fill(table, [Tier("", kernels)], max_seconds, measure or measure_batch, _Counting(progress), clock=clock)
    return table.table


class _Counting:
    """Passes on how many of the kernels are done; what is measured a second time is not counted."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._total: int | None = None

    def phase(self, name: str, total: int | None = None, detail: str = "") -> None:
        self._total = None if name else total

    def advance(self, done: int, seconds_left: float | None = None) -> None:
        if self._progress is not None and self._total is not None:
            self._progress(done, self._total, seconds_left or 0.0)


def measure_batch(kernels: Sequence[Kernel], deadline: float = float("inf")) -> Iterator[Measured]:
    """What a table says of `kernels`, timed on this machine now; see `time_kernels`."""
    for kernel, timing, reference in time_kernels(kernels, deadline):
        yield Measured(kernel, table_latency(kernel, timing), table_latency(REFERENCE, reference).latency_us)


def time_kernels(kernels: Sequence[Kernel], deadline: float = float("inf")) -> Iterator[tuple[Kernel, Timing, Timing]]:
    """Times `kernels` on this machine now, in the same rounds, and tells of each as soon as its rounds agree.

    Beside each, the reference kernel in the same rounds. deadline: of `time.monotonic`; past it, they come as they
    are. Kernels that the runtime refuses to build are left out, with a warning.
    """
    chains: dict[Kernel, Chains] = {}
    for kernel in kernels:
        try:
            chains[kernel] = _chains(kernel)
        except Exception as error:  # noqa: BLE001  ONNX Runtime's own exceptions share no base class
            log.warning("no latency of %s: ONNX Runtime refuses it: %s", kernel, " ".join(str(error).split())[:200])
    yield from time_in_rounds(chains, _chains(REFERENCE), deadline)


def _chains(kernel: Kernel) -> Chains:
    short, long = chain_copies(kernel)
    models = [BoundModel(kernel_model(kernel, copies, blocked=_blocked())) for copies in (short, long)]
    return Chains(models[0], models[1], long - short)


@cache
def _blocked() -> bool:
    return keeps_blocks(kernel_model(REFERENCE))
