"""From kernels to microseconds: models are run on the simulated core, their blocks counted and priced."""

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from autocomp.errors import RunError
from autocomp.hardware.arm_simulation.blocks import Block, difference, instructions, read_dump
from autocomp.hardware.arm_simulation.cores import Core
from autocomp.hardware.arm_simulation.price import Pricer
from autocomp.hardware.arm_simulation.sandbox import Sandbox
from autocomp.hardware.kernel_models import EXECUTED_AS, kernel_model, max_repeats
from autocomp.kernel import Kernel

#: Marked inferences of each model; the one of fewest instructions counts.
RUNS = 3
#: Work of all the copies that differ between a kernel's two models, in rough instructions: enough to drown the noise
#: of a few hundred instructions.
_DIFFERENCE_WORK = 300_000
_MAX_COPIES = 8
#: Seconds that a batch may take before it is given up, per model.
_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Simulation:
    """A kernel on a simulated core.

    instructions, cycles: of one execution, before any calibration. latency_us: calibrated, and no less than the time
    to read the weights from DRAM. spread_us: half width of the band around it.
    """

    kernel: Kernel
    instructions: float
    cycles: float
    latency_us: float
    spread_us: float


@dataclass(frozen=True, slots=True)
class ModelRun:
    """A whole ONNX model on a simulated core.

    cycles: of one inference, the call of the session included, before any calibration. operators: how often each
    stands in the optimized graph.
    """

    cycles: float
    operators: Counter[str]


def repeats(kernel: Kernel) -> tuple[int, int]:
    """Copies of the kernel in its two models, whose difference is priced."""
    work = kernel.macs // 4 + kernel.in_elements + kernel.out_elements
    extra = min(max(1, _DIFFERENCE_WORK // work), _MAX_COPIES)
    limit = max_repeats(kernel)
    return 1, 1 + extra if limit is None else min(1 + extra, limit)


def latency_us(kernel: Kernel, cycles: float, core: Core) -> tuple[float, float]:
    """Calibrated latency and half width of its band, in µs.

    The weights of a kernel are read once for each inference, and come from DRAM, because the other kernels of a
    network have driven them out of the caches: that time is a floor. Where it binds, the band reaches down to the
    latency without it, since the weights of a small network do stay in the caches.
    """
    warm = core.microseconds(cycles)
    weight_bytes = kernel.weight_count * kernel.value_bytes
    cold = max(warm, core.read_microseconds(weight_bytes))
    return cold, max(core.scale_error * cold, cold - warm)


class Simulator:
    """Simulates kernels on one core.

    failures: why a kernel could not be simulated, for those that could not.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._pricer = Pricer(sandbox.core.mca_cpu)
        self.failures: dict[Kernel, str] = {}

    def simulate(self, kernels: Sequence[Kernel]) -> list[Simulation]:
        """The kernels that could be simulated, in order; the others are added to `failures`.

        One process runs all their models. If a model kills it, its kernel has failed and the rest are run again.
        """
        done: list[Simulation] = []
        waiting = list(kernels)
        while waiting:
            with TemporaryDirectory(prefix="arm_simulation-") as folder:
                reports, ending = self._run(waiting, Path(folder))
                for kernel, report in zip(waiting, reports, strict=False):
                    result = report if isinstance(report, str) else self._price(kernel, *report)
                    if isinstance(result, str):
                        self.failures[kernel] = result
                    else:
                        done.append(result)
            if len(reports) < len(waiting):
                self.failures[waiting[len(reports)]] = ending
            waiting = waiting[len(reports) + 1 :]
        return done

    def run_models(self, models: Sequence[bytes]) -> list[ModelRun]:
        """One inference of each whole ONNX model, in one process. RunError if one does not run."""
        with TemporaryDirectory(prefix="arm_simulation-") as name:
            folder = Path(name)
            paths = [folder / f"{index}.onnx" for index in range(len(models))]
            for path, model in zip(paths, models, strict=True):
                path.write_bytes(model)
            errors, ending = self._run_guest(paths, folder / "blocks")
            if errors != [None] * len(models):
                failed = [error for error in errors if error is not None]
                raise RunError(f"a model did not run on the simulated core: {failed[0] if failed else ending}")
            cycles = [self._pricer.cycles(_fewest(folder / "blocks", index)) for index in range(len(models))]
            return [
                ModelRun(count, executed_operators(_optimized(path))) for count, path in zip(cycles, paths, strict=True)
            ]

    def _run(self, kernels: Sequence[Kernel], folder: Path) -> tuple[list[tuple[Counter[Block], ...] | str], str]:
        """Histograms of each kernel's two models, or why there are none; fewer than kernels if the process died.

        The second result says how the process ended.
        """
        paths = [folder / f"{i}-{count}.onnx" for i, kernel in enumerate(kernels) for count in repeats(kernel)]
        for path, (kernel, count) in zip(paths, [(k, n) for k in kernels for n in repeats(k)], strict=True):
            path.write_bytes(kernel_model(kernel, count))
        lines, ending = self._run_guest(paths, folder / "blocks")
        results: list[tuple[Counter[Block], ...] | str] = []
        for index, kernel in enumerate(kernels[: len(lines) // 2]):
            pair = (2 * index, 2 * index + 1)
            errors = [lines[i] for i in pair if lines[i] is not None]
            errors += [text for i in pair if not errors and (text := _not_as_asked(kernel, paths[i]))]
            results.append(str(errors[0]) if errors else tuple(_fewest(folder / "blocks", i) for i in pair))
        return results, ending

    def _run_guest(self, paths: Sequence[Path], out: Path) -> tuple[list[str | None], str]:
        """Errors by model (None where it ran), and how the process ended."""
        with as_file(files("autocomp.hardware.arm_simulation") / "count.py") as script:
            command = self._sandbox.command(script, [str(RUNS), *map(str, paths)], out)
            process = subprocess.Popen(
                command, env=self._sandbox.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            try:
                output, errors = process.communicate(timeout=_TIMEOUT_S * len(paths))
                ending = f"the simulated process ended with code {process.returncode}: {errors.strip()[-300:]}"
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
                ending = f"the simulated process took more than {_TIMEOUT_S * len(paths)} s"
        return [json.loads(line)["error"] for line in output.splitlines()], ending

    def _price(self, kernel: Kernel, short: Counter[Block], long: Counter[Block]) -> Simulation | str:
        """The kernel's simulation, or why its two histograms have none."""
        few, many = repeats(kernel)
        extra = difference(long, short)
        cycles = self._pricer.cycles(extra) / (many - few)
        if cycles <= 0:
            return f"{many} copies cost no more cycles than {few}"
        latency, spread = latency_us(kernel, cycles, self._sandbox.core)
        return Simulation(kernel, instructions(extra) / (many - few), cycles, latency, spread)


def executed_operators(optimized: Path) -> Counter[str]:
    """Operators of an optimized graph that ONNX Runtime wrote."""
    return Counter(node.op_type for node in onnx.load(str(optimized)).graph.node)


def _optimized(model: Path) -> Path:
    """Where the guest writes the optimized graph of a model."""
    return model.with_name(f"{model.name}.optimized")


def _not_as_asked(kernel: Kernel, model: Path) -> str:
    """What is wrong with the graph that ONNX Runtime executed; empty if it holds the kernel's own operator."""
    operators = executed_operators(_optimized(model))
    expected = EXECUTED_AS[kernel.op, kernel.precision]
    if any(operators[name] for name in expected):
        return ""
    return f"expected {' or '.join(expected)} in the optimized graph, got {dict(operators)}"


def _fewest(out: Path, model: int) -> Counter[Block]:
    """The histogram of fewest instructions among a model's marked inferences."""
    dumps = [read_dump(out.with_name(f"{out.name}.{model * RUNS + run}")) for run in range(RUNS)]
    return min(dumps, key=instructions)
