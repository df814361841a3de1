"""Times kernels given as chains of ONNX models: the stopwatch of every measured table, here and on a board.

This file needs Python 3.9, numpy and onnxruntime, and nothing of the package that it belongs to: a bundle carries it
as it stands, so that a board measures by the very same code. There it is run as

    python3 run.py [--minutes N] [--resume | --fresh]

A kernel's latency is the slope between a short and a long chain of copies: what a session adds is in both. Chains are
timed in rounds over all kernels of a batch, so that a disturbance of the machine falls on many kernels a little and
not on one a lot. Disturbances only ever slow a chain down, by up to 1.7 times where another process keeps the sibling
of a hyper-threaded core busy, and they come and go within a second; the undisturbed times repeat to 1 %. So a chain's
time is the third fastest of its rounds, and there are further rounds until the three fastest agree. (With the median
over rounds, half of the kernels moved by more than 8 % on a machine under load.) Each chain is timed twice a round:
once after something else went through the caches, and then warm. How much of the difference a kernel bears inside a
network is for the reader of the results to say. A reference kernel is timed in every round; a result carries its
time, so that whoever reads results can tell a change of the clock frequency, which on a laptop is larger than the
differences between kernels.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import re
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import onnxruntime

FEWEST_ROUNDS, MOST_ROUNDS = 8, 40
CALLS = 3
#: Read before a chain is timed cold: several second-level caches.
FLUSHED_BYTES = 8_000_000
AGREE, WITHIN = 3, 0.015  # so many of the fastest rounds of a chain must lie within this fraction
#: Chains that are timed in the same rounds.
BATCH = 20

#: Files of a bundle, and what measuring adds to them.
MANIFEST, MODELS, RESULTS = "manifest.json", "kernels.zip", "results.jsonl"
WEIGHTS, _MODEL = "weights.bin", "model.onnx"
FORMAT = 1

Key = TypeVar("Key")
Clock = Callable[[], float]


class Timing(NamedTuple):
    """Microseconds a copy takes with warm caches, half of what the fastest rounds differ by, and the number of rounds.

    cold_us: microseconds a copy takes in a chain whose weights and activations are no longer in the caches.
    """

    us: float
    spread_us: float
    rounds: int
    cold_us: float


def single_thread_options() -> Any:
    """ONNX Runtime's default optimizations, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    return options


def keeps_blocks(convolution: bytes | str) -> bool:
    """Whether this runtime keeps float images in blocks of channels (NCHWc), as ONNX Runtime does on some processors.

    convolution: a model of float convolutions over a multiple of 16 channels, serialized or the path of a file. It
    shows in the operators that are left of it after optimization.
    """
    options = single_thread_options()
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(convolution, options, ["CPUExecutionProvider"])
        return b"ReorderInput" in Path(options.optimized_model_filepath).read_bytes()


class BoundModel:
    """A model with its input and its first output bound to fixed memory, ready to be timed on one thread.

    model: serialized, or the path of a file. values: for its input; drawn by `input_values` where there are none.
    """

    def __init__(self, model: bytes | str, values: Any = None) -> None:
        self._session = onnxruntime.InferenceSession(model, single_thread_options(), ["CPUExecutionProvider"])
        source = self._session.get_inputs()[0]
        if values is None:
            values = input_values(source.type, source.shape)
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(source.name, onnxruntime.OrtValue.ortvalue_from_numpy(values))
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


def input_values(kind: str, shape: Iterable[int]) -> Any:
    """Values of an ONNX type and shape that keep kernels away from denormals, which would slow float ones down."""
    rng = np.random.default_rng(0)
    if kind == "tensor(float)":
        return rng.uniform(0.9, 1.1, tuple(shape)).astype(np.float32)
    return rng.integers(0, 256, tuple(shape)).astype(np.uint8)


@functools.lru_cache
def _flushed() -> Any:
    """What is read to drive everything else out of the caches; made when something is timed, not on import."""
    return np.ones(FLUSHED_BYTES // 4, np.float32)


class TimedInRounds(Protocol):
    """What `time_in_rounds` times. `Chains` is one."""

    def time_once(self) -> None:
        """One round."""
        ...

    @property
    def settled(self) -> bool:
        """Whether further rounds would not tell more."""
        ...

    @property
    def timing(self) -> Timing:
        """By the rounds so far."""
        ...


class Chains:
    """A short and a long chain of one kernel. more: copies that the long one has more."""

    def __init__(self, short: BoundModel, long: BoundModel, more: int) -> None:
        self._models = (short, long)
        self._more = more
        self._times: tuple[list[float], list[float]] = ([], [])
        self._cold: tuple[list[float], list[float]] = ([], [])

    def time_once(self) -> None:
        """One round: both chains, one right after the other, each cold and then warm."""
        for model, cold, warm in zip(self._models, self._cold, self._times):  # noqa: B905  (Python 3.9)
            if len(cold) < FEWEST_ROUNDS:  # the later rounds wait for the warm times to settle
                _flushed().max()
                cold.append(model.fastest_us(1))
            warm.append(model.fastest_us(CALLS))

    @property
    def settled(self) -> bool:
        """Whether the fastest rounds of both chains agree."""
        return all(np.ptp(np.sort(times)[:AGREE]) <= WITHIN * min(times) for times in self._times)

    @property
    def timing(self) -> Timing:
        """The slope between the chains; it may be noise around 0 where a kernel costs nothing that can be measured."""
        fastest = [np.sort(times)[:AGREE] for times in self._times]
        slope = float(fastest[1][-1] - fastest[0][-1]) / self._more
        spread = float(sum(np.ptp(times) for times in fastest)) / 2 / self._more
        short, long = (float(np.sort(times)[:AGREE][-1]) for times in self._cold)
        return Timing(slope, spread, len(self._times[0]), (long - short) / self._more)


def time_in_rounds(
    chains: Mapping[Key, TimedInRounds],
    reference: TimedInRounds,
    deadline: float = float("inf"),
    clock: Clock = time.monotonic,
) -> Iterator[tuple[Key, Timing, Timing]]:
    """(key, its timing, that of the reference) of each of `chains`, as soon as both have settled.

    After `MOST_ROUNDS`, or at the first round after the `deadline` of `clock`, what has not settled comes as it is:
    its spread tells. There are at least `FEWEST_ROUNDS` in any case.
    """
    left = dict(chains)
    for done in range(1, MOST_ROUNDS + 1):
        for each in (reference, *left.values()):
            each.time_once()
        if done < FEWEST_ROUNDS:
            continue
        last = done == MOST_ROUNDS or clock() >= deadline
        if last or reference.settled:
            for key in [key for key in left if last or left[key].settled]:
                yield key, left.pop(key).timing, reference.timing
        if not left:
            return


def cpu_name() -> str:
    """The CPU model of this machine, or the board where the processor has no name of its own."""
    for path, pattern in (
        ("/proc/cpuinfo", r"^model name\s*:\s*(.+)$"),
        ("/proc/device-tree/model", r"^([^\0]+)"),
        ("/proc/cpuinfo", r"^Model\s*:\s*(.+)$"),
    ):
        try:
            found = re.search(pattern, Path(path).read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        except OSError:
            continue
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


# --- a bundle ---------------------------------------------------------------------------------------------------------


class Fault(Exception):
    """Something that whoever started the measurement can mend, in one line."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a bundle is to measure. Fault where there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise Fault(f"{folder / MANIFEST} has format {manifest['format']!r}, this runner reads {FORMAT}")
        return {key: manifest[key] for key in ("format", "bundle", "base", "space", "reference", "kernels", "weights")}
    except (OSError, ValueError, KeyError, TypeError):
        raise Fault(f"{folder / MANIFEST} is missing or damaged: copy the whole bundle again") from None


def facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a result is true of: the first line of the results. The date says when, and is not compared."""
    return {
        "format": FORMAT,
        "bundle": manifest["bundle"],
        "base": manifest["base"],
        "space": manifest["space"],
        "kernels": len(manifest["kernels"]),
        "cpu": cpu_name(),
        "machine": platform.machine(),
        "cores": os.cpu_count() or 1,
        "threads": 1,
        "onnxruntime": onnxruntime.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


class ResultsFile:
    """Results as they come, one JSON document a line: a kill loses at most the line that is being written."""

    def __init__(self, path: Path, header: Mapping[str, Any], fresh: bool = False) -> None:
        """Goes on with `path` where it is there. Fault where that was measured elsewhere or from another bundle."""
        self.done: set[str] = set()
        # What follows the last line end is empty, or was cut off.
        lines = [] if fresh or not path.exists() else path.read_bytes().split(b"\n")[:-1]
        if lines:
            try:
                before, *rows = (json.loads(line) for line in lines)
                self.done = {row["kernel"] for row in rows}
                differ = [key for key in header if key != "date" and before[key] != header[key]]
            except (ValueError, KeyError, TypeError):
                raise Fault(f"{path} is damaged: remove it, or start anew with --fresh") from None
            if differ:
                key = differ[0]
                there, here = repr(before[key]), repr(header[key])
                raise Fault(f"{path} was measured with {key} {there}, here it is {here}: start anew with --fresh")
        self._file = open(path, "r+b" if lines else "wb")  # noqa: SIM115
        if lines:
            self._file.truncate(sum(len(line) + 1 for line in lines))
            self._file.seek(0, os.SEEK_END)
        else:
            self.add(header)

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a line and hands it to the operating system at once."""
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def write_weights(path: Path, regions: Iterable[Mapping[str, Any]]) -> None:
    """The file that all models take their weights from: random, so it is drawn here instead of carried.

    regions: kind and bytes of each part, in their order.
    """
    draw: dict[str, Callable[[Any, int], Any]] = {
        "zeros": lambda rng, n: np.zeros(n, np.uint8),
        "normal": lambda rng, n: (0.05 * rng.standard_normal(n // 4)).astype(np.float32),
        "positive": lambda rng, n: rng.uniform(5e-4, 2e-3, n // 4).astype(np.float32),
        "small": lambda rng, n: rng.integers(-500, 500, n // 4).astype(np.int32),
        "bytes": lambda rng, n: rng.integers(-127, 128, n).astype(np.int8),
    }
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        for region in regions:
            file.write(draw[region["kind"]](np.random.default_rng(0), region["bytes"]).tobytes())
    partial.replace(path)


class Bundle:
    """The folder that `run.py` stands in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        try:
            self._models = zipfile.ZipFile(folder / MODELS)
        except (OSError, zipfile.BadZipFile):
            raise Fault(f"{folder / MODELS} is missing or damaged: copy the whole bundle again") from None
        weights = folder / WEIGHTS
        wanted = sum(region["bytes"] for region in self.manifest["weights"])
        if not weights.exists() or weights.stat().st_size != wanted:
            write_weights(weights, self.manifest["weights"])
        self._layout = "plain"
        if keeps_blocks(self._unpacked(self.manifest["reference"]["plain"][0])):
            self._layout = "blocked"

    def chains(self, entry: Mapping[str, Any]) -> Chains:
        """The chains of one kernel of the manifest, as this runtime lays out images."""
        short, long = (BoundModel(self._unpacked(name)) for name in entry[self._layout])
        return Chains(short, long, entry["more"])

    def _unpacked(self, name: str) -> str:
        """Path of a model that lies beside its weights, which it names by a relative path; until the next call."""
        path = self.folder / _MODEL
        path.write_bytes(self._models.read(name))
        return str(path)


def measure(bundle: Bundle, results: ResultsFile, seconds: float, say: Callable[[str], None]) -> bool:
    """Measures what `results` lacks, in the manifest's order. Whether everything is measured now."""
    deadline = time.monotonic() + seconds
    kernels = [entry for entry in bundle.manifest["kernels"] if entry["kernel"] not in results.done]
    total = len(bundle.manifest["kernels"])
    began = time.monotonic()
    for start in range(0, len(kernels), BATCH):
        reference = bundle.chains(bundle.manifest["reference"])
        chains = {}
        for entry in kernels[start : start + BATCH]:
            try:
                chains[entry["kernel"]] = bundle.chains(entry)
            except Exception as error:  # noqa: BLE001  ONNX Runtime's own exceptions share no base class
                results.add({"kernel": entry["kernel"], "error": " ".join(str(error).split())[:200]})
                results.done.add(entry["kernel"])
        for kernel, timing, yardstick in time_in_rounds(chains, reference, deadline):
            results.add({"kernel": kernel, **timing._asdict(), "reference_us": yardstick.us})
            results.done.add(kernel)
        now = time.monotonic()
        measured = min(start + BATCH, len(kernels))
        left = min((now - began) / measured * (len(kernels) - measured), max(0.0, deadline - now))
        say(f"{len(results.done)}/{total} kernels, {left:.0f} s left")
        if now >= deadline:
            break
    return len(results.done) >= total


def main() -> int:
    """Measures the bundle that this file stands in. 0: everything is measured; 3: the time was up before that."""
    parser = argparse.ArgumentParser(description="Measures the kernels of this bundle; what was measured stays.")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after that time (default: when done)")
    parser.add_argument("--resume", action="store_true", help="go on with results.jsonl (so it does without, too)")
    parser.add_argument("--fresh", action="store_true", help="discard what was measured")
    arguments = parser.parse_args()
    folder = Path(__file__).resolve().parent
    try:
        if not arguments.minutes > 0 or (arguments.resume and arguments.fresh):
            raise Fault("expected --minutes above 0, and not both of --resume and --fresh")
        bundle = Bundle(folder)
        results = ResultsFile(folder / RESULTS, facts(bundle.manifest), arguments.fresh)
    except Fault as fault:
        print(f"run.py: {fault}", file=sys.stderr)
        return 2
    if results.done:
        print(f"{len(results.done)} kernels are measured already", flush=True)
    try:
        complete = measure(bundle, results, 60 * arguments.minutes, lambda line: print(line, flush=True))
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    finally:
        results.close()
    print(f"{len(results.done)} of {len(bundle.manifest['kernels'])} kernels are in {RESULTS}", flush=True)
    return 0 if complete else 3


if __name__ == "__main__":
    sys.exit(main())
