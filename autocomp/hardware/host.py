"""Measures kernels on this machine, as few as are needed, and remembers them per CPU model and runtime version.

A kernel's latency is the slope between a short and a long chain of copies (see `kernel_models`): what a session adds
is in both. Chains are timed in rounds over all kernels of a batch, so that a disturbance of the machine falls on
many kernels a little and not on one a lot. Disturbances only ever slow a chain down, by up to 1.7 times where another
process keeps the sibling of a hyper-threaded core busy, and they come and go within a second; the undisturbed times
repeat to 1 %. So a chain's time is the third fastest of its rounds, and there are further rounds until the three
fastest agree. (With the median over rounds, half of the kernels moved by more than 8 % on a machine under load.) A
reference kernel is timed in every round, and latencies are divided by how much it has drifted since the first
session, for the clock frequency of a laptop changes by more than the kernels differ.

Weights come from the same level of the memory as inside a network: the copies of a kernel with large weights add up
to more than a second-level cache holds, as the layers of the network that it comes from do. (Measured with copies
that fit the cache, a MobileNetV2 of 9 MB came out 17 % too fast; with this rule, 5 %.)
"""

import logging
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import platformdirs
from numpy.typing import NDArray

from autocomp.errors import UserError
from autocomp.hardware.estimator import LatencyModel, kernel_positions
from autocomp.hardware.kernel_models import INPUT, input_values, kernel_model, max_repeats
from autocomp.hardware.table import Latency, LatencyTable
from autocomp.kernel import Kernel

log = logging.getLogger(__name__)

#: Timed in every round, and kept in the table: the yardstick for drift. As short as the kernels that it stands for,
#: because a longer chain is disturbed more often.
REFERENCE = Kernel("conv", "fp32", 32, 32, 16, 16)

_BATCH = 20
_FEWEST_ROUNDS, _MOST_ROUNDS = 8, 40
_CALLS = 3
_AGREE, _WITHIN = 3, 0.015  # so many of the fastest rounds of a chain must lie within this fraction
_DRIFT = 0.04  # the reference kernel repeats within this
_SURPRISING = 0.08  # measured above what the other rows predict by so much (log): measured once more
_LONG_US, _MOST_COPIES = 60.0, 16  # a long chain takes this much more than a short one, within so many copies
_SLOWEST_CHAIN_US = 4_000.0  # a longer chain hardly ever runs undisturbed
_LARGE_WEIGHTS, _COLD_BYTES = 40_000, 9_000_000
_SMALLEST_US = 0.02  # what a slope of noise around zero is set to: kernels that cost nothing that can be measured
#: What a kernel takes more inside a network, where another kernel ran before it: its code and parameters are no longer
#: in the first-level caches. Mean over six int8 networks (experiments/latency_estimator): 0.3 to 0.6 µs a kernel.
_IN_NETWORK_US = 0.45

#: Called with kernels done, kernels in all, and seconds left of the time that was given.
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True, slots=True)
class Sample:
    """Microseconds of each kernel, and of the reference kernel in the same rounds."""

    latencies: Mapping[Kernel, Latency]
    reference_us: float


Measure = Callable[[Sequence[Kernel]], Sample]


def cpu_name() -> str:
    """The CPU model of this machine."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def host_table_path(folder: Path | None = None) -> Path:
    """Where this machine's latencies are kept: a file per CPU model, number of cores and runtime version."""
    folder = folder or Path(platformdirs.user_cache_dir("autocomp")) / "host_cpu"
    machine = re.sub(r"[^A-Za-z0-9]+", "-", cpu_name()).strip("-").lower()
    return folder / f"{machine}-{os.cpu_count()}cores-onnxruntime-{onnxruntime.__version__}.csv"


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

    Stops after `max_seconds` (a batch that was begun is finished); kernels that were not reached are left to the
    estimator. In the time that remains, rows that are clearly slower than the others predict are measured once more,
    and a clearly lower value replaces the first: it was measured while something disturbed it. Each batch is saved as
    soon as it is measured, so an interruption loses a batch at most, and no later call measures a row again.
    UserError if `max_seconds` is not above 0 or the cached table is damaged.
    """
    if not max_seconds > 0:
        raise UserError(f"the time for measuring must be above 0 seconds, got {max_seconds!r}")
    end = clock() + max_seconds
    table = host_table(folder)
    measure = measure or measure_batch
    wanted = [kernel for kernel in dict.fromkeys(kernels) if kernel not in table and kernel != REFERENCE]
    order = informative_order(wanted, table)
    done = 0
    while done < len(order) and clock() < end:
        batch = order[done : done + _BATCH]
        table = _measured(batch, host_table(folder), measure)  # read again: another process may have added rows
        table.write(host_table_path(folder))
        done += len(batch)
        if progress is not None:
            progress(done, len(order), max(0.0, end - clock()))
    doubtful = _doubtful(order[:done], table)
    for start in range(0, len(doubtful), _BATCH):
        if clock() >= end:
            break
        batch = doubtful[start : start + _BATCH]
        again = _measured(batch, table, measure)
        # Only a clear fall: the lower of any two would favour lucky placements in memory, which networks don't have.
        fall = np.exp(-_SURPRISING)
        table = again.with_rows({k: table[k] for k in batch if again[k].latency_us > fall * table[k].latency_us})
        table.write(host_table_path(folder))
    return table


def _measured(batch: Sequence[Kernel], table: LatencyTable, measure: Measure) -> LatencyTable:
    """`table` with the rows of `batch`, all at the speed of the fastest reference kernel seen so far.

    A slower reference means that the whole batch ran slower (clock frequency, a busy neighbour): it is scaled down.
    A faster one means that about all rows before. Changes within the noise of the reference are left alone.
    """
    sample = measure(batch)
    yardstick = table[REFERENCE].latency_us if REFERENCE in table else sample.reference_us
    drift = sample.reference_us / yardstick
    if abs(drift - 1) < _DRIFT:
        drift = 1.0
    before = {kernel: _scaled(latency, min(drift, 1.0)) for kernel, latency in table.items()}
    rows = {kernel: _scaled(latency, 1 / max(drift, 1.0)) for kernel, latency in sample.latencies.items()}
    return LatencyTable({**before, REFERENCE: Latency(yardstick * min(drift, 1.0)), **rows})


def _doubtful(kernels: Sequence[Kernel], table: LatencyTable) -> list[Kernel]:
    """Those of `kernels` that came out slower than the other rows predict: measured while something disturbed them?"""
    if not kernels:
        return []
    surprises = LatencyModel.from_table(table).surprises()
    slow = [kernel for kernel in kernels if surprises.get(kernel, 0.0) > _SURPRISING]
    return sorted(slow, key=lambda kernel: -table[kernel].latency_us)


def _scaled(latency: Latency, factor: float) -> Latency:
    spread = None if latency.spread_us is None else latency.spread_us * factor
    return Latency(latency.latency_us * factor, spread, latency.repeats)


def rough_us(kernel: Kernel) -> float:
    """Order of magnitude of a latency before anything was measured: 30 GMAC/s, 4 GB/s and a microsecond a call."""
    return 1.0 + kernel.macs / 3e4 + (kernel.in_elements + kernel.out_elements) / 4e3


def informative_order(kernels: Sequence[Kernel], table: LatencyTable) -> list[Kernel]:
    """`kernels` by how much measuring each tells: far from those already known, and costly.

    Greedy k-centre (Gonzalez 1985) over the estimator's sizes within an (op, precision), distances weighted by the
    square root of the expected latency.
    """
    if not kernels:
        return []
    known = LatencyModel.from_table(table).predict(kernels).us if len(table) > 30 else None
    expected = np.sqrt(known if known is not None else np.array([rough_us(kernel) for kernel in kernels]))
    points = kernel_positions(kernels)
    family = np.array([f"{kernel.op} {kernel.precision}" for kernel in kernels])
    unseen = 40.0  # farther than any two kernels of one family are apart
    distance = np.full(len(kernels), unseen)
    if table:
        rows = list(table)
        row_points, row_family = kernel_positions(rows), np.array([f"{row.op} {row.precision}" for row in rows])
        for index in range(len(rows)):
            _approach(distance, points, family == row_family[index], row_points[index])
    order: list[Kernel] = []
    left = np.ones(len(kernels), np.bool_)
    for _ in kernels:
        best = int(np.argmax(np.where(left, (distance + 1e-6) * expected, -1.0)))
        order.append(kernels[best])
        left[best] = False
        _approach(distance, points, family == family[best], points[best])
    return order


def _approach(
    distance: NDArray[np.float64], points: NDArray[np.float64], alike: NDArray[np.bool_], centre: NDArray[np.float64]
) -> None:
    """Lowers `distance`, in place, to that from `centre` where it is nearer, among those `alike`."""
    distance[alike] = np.minimum(distance[alike], np.abs(points[alike] - centre).sum(1))


def measure_batch(kernels: Sequence[Kernel]) -> Sample:
    """Times `kernels` on this machine now. Kernels that the runtime refuses to build are left out, with a warning."""
    reference = _Pair(REFERENCE)
    pairs: dict[Kernel, _Pair] = {}
    for kernel in kernels:
        try:
            pairs[kernel] = _Pair(kernel)
        except Exception as error:  # noqa: BLE001  ONNX Runtime's own exceptions share no base class
            log.warning("no latency of %s: ONNX Runtime refuses it: %s", kernel, " ".join(str(error).split())[:200])
    open_pairs = list(pairs.values())
    for done in range(_MOST_ROUNDS):
        for pair in (reference, *open_pairs):
            pair.time_once()
        if done + 1 >= _FEWEST_ROUNDS:
            open_pairs = [pair for pair in open_pairs if not pair.settled]
            if not open_pairs and reference.settled:
                break
    return Sample({kernel: pair.latency for kernel, pair in pairs.items()}, reference.latency.latency_us)


def chain_copies(kernel: Kernel) -> tuple[int, int]:
    """Copies in the short and in the long chain."""
    expected = rough_us(kernel)
    more = int(np.clip(_LONG_US / expected, 2, _MOST_COPIES))
    weight_bytes = kernel.weight_count * (4 if kernel.precision == "fp32" else 1)
    if weight_bytes > _LARGE_WEIGHTS:
        more = max(more, min(_MOST_COPIES, _COLD_BYTES // weight_bytes))
    more = max(1, min(more, int(_SLOWEST_CHAIN_US / expected)))
    limit = max_repeats(kernel)
    if limit is not None:
        more = max(1, min(more, limit - 1))
    return 1, 1 + more


class _Pair:
    """A short and a long chain of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        short, long = chain_copies(kernel)
        values = input_values(kernel)
        self._short, self._long = (BoundModel(kernel_model(kernel, copies), values) for copies in (short, long))
        self._more = long - short

        self._times: tuple[list[float], list[float]] = ([], [])

    def time_once(self) -> None:
        """One round: both chains, one right after the other."""
        for model, times in zip((self._short, self._long), self._times, strict=True):
            times.append(model.fastest_us(_CALLS))

    @property
    def settled(self) -> bool:
        """Whether the fastest rounds of both chains agree."""
        return all(np.ptp(np.sort(times)[:_AGREE]) <= _WITHIN * min(times) for times in self._times)

    @property
    def latency(self) -> Latency:
        """Microseconds a copy takes; the spread is that of the fastest rounds."""
        fastest = [np.sort(times)[:_AGREE] for times in self._times]
        slope = float(fastest[1][-1] - fastest[0][-1]) / self._more
        spread = float(sum(np.ptp(times) for times in fastest)) / 2 / self._more
        return Latency(max(slope, _SMALLEST_US) + _IN_NETWORK_US, spread, len(self._times[0]))


def single_thread_options() -> onnxruntime.SessionOptions:
    """ONNX Runtime's default optimizations, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    return options


class BoundModel:
    """A model with its input and its first output bound to fixed memory, ready to be timed on one thread."""

    def __init__(self, model: bytes, values: NDArray[Any]) -> None:
        self._session = onnxruntime.InferenceSession(model, single_thread_options(), ["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(INPUT, onnxruntime.OrtValue.ortvalue_from_numpy(values))
        output = self._session.get_outputs()[0].name
        self._binding.bind_output(output, "cpu")
        self._session.run_with_iobinding(self._binding)
        self._binding.bind_ortvalue_output(output, self._binding.get_outputs()[0])
        self._session.run_with_iobinding(self._binding)

    def fastest_us(self, calls: int) -> float:
        """Microseconds of the fastest of `calls` calls."""
        best = float("inf")
        for _ in range(calls):
            start = time.perf_counter()
            self._session.run_with_iobinding(self._binding)
            best = min(best, time.perf_counter() - start)
        return best * 1e6
