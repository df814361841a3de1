"""Arm's Vela compiler, in a process of its own: which file the NPU stores, and how long it will take.

The compiler's process stays alive between files: Vela's imports take 0.2 s, a small network 15 ms. A damaged file
can crash Vela's C++ core, which ends that process and not this one.
"""

import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from autocomp.errors import MissingPackage, RunError
from autocomp.hardware.ethos_u.accelerator import Accelerator
from autocomp.hardware.ethos_u.performance import (
    OperatorEstimate,
    parse_fallbacks,
    parse_operators,
    parse_summary,
)
from autocomp.reading import shortened
from autocomp.worker import Closing, Worker, WorkerDied, WorkerTooSlow

PACKAGE = "ethos-u-vela"
#: A network of 30 million weights takes a few seconds.
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Compiled:
    """What Vela made of a model.

    path: of the compiled file, which the device stores; size_bytes: its bytes. cycles, latency_ms: Vela's estimate for
    the whole model. operators: one by one, in order of execution. fallbacks: (operator, Vela's reason) of those that
    stay on the CPU. sram_bytes: peak. encoded_weight_bytes: of all weights with biases, as the decoder reads them.
    """

    path: Path
    size_bytes: int
    cycles: int
    latency_ms: float
    operators: tuple[OperatorEstimate, ...]
    fallbacks: tuple[tuple[str, str], ...]
    sram_bytes: int
    encoded_weight_bytes: int
    vela_version: str


def vela_version() -> str:
    """The installed release of Vela. UserError where none is."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        raise MissingPackage("autocomp[npu]", "compiling for an Ethos-U NPU") from None


class Vela(Closing):
    """A compiler process that stays alive between files. Use as a context manager. UserError if Vela is missing."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self.version = vela_version()
        self._timeout_s = timeout_s
        self._scratch = tempfile.TemporaryDirectory(prefix="autocomp-vela-")
        self._worker = Worker("autocomp.hardware.ethos_u.worker")

    def compile(self, model: Path, folder: Path, accelerator: Accelerator) -> Compiled:
        """Compile `model`, a .tflite file, to `folder`/<its stem>_vela.tflite.

        The same file always gives the same bytes and figures. RunError, in one line, for a file that Vela does not
        read or compile, or not within the time limit; `folder` then stays as it was.
        """
        if not model.is_file():
            raise RunError(f"there is no file {model} to compile")
        with tempfile.TemporaryDirectory(dir=self._scratch.name) as scratch:
            work = Path(scratch)
            # A fixed name: Vela derives the names of what it writes from its input's.
            (work / "model.tflite").symlink_to(model.resolve())
            log = self._run(work, accelerator, model.name)
            try:
                summary = parse_summary((work / f"model_summary_{accelerator.system}.csv").read_text())
                operators = parse_operators((work / "model_per-layer.csv").read_text())
            except (OSError, KeyError, ValueError, StopIteration) as error:
                raise RunError(
                    f"{PACKAGE} {self.version} writes its figures for {model.name} in a form that is not known here: "
                    f"{type(error).__name__} {error}"
                ) from None
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{model.stem}_vela.tflite"
            shutil.move(work / "model_vela.tflite", path)
        return Compiled(
            path, path.stat().st_size, summary.cycles, summary.latency_ms, operators,
            parse_fallbacks(operators, log), summary.sram_bytes, summary.encoded_weight_bytes, self.version,
        )  # fmt: skip

    def _run(self, work: Path, accelerator: Accelerator, name: str) -> str:
        """Run Vela on model.tflite in the folder `work`; returns what it printed. name: of the file, for errors."""
        log = work / "log.txt"
        arguments = [
            str(work / "model.tflite"), "--output-dir", str(work), "--config", "Arm/vela.ini",
            "--accelerator-config", accelerator.config, "--system-config", accelerator.system,
            "--memory-mode", accelerator.memory_mode, "--verbose-performance",
        ]  # fmt: skip
        answer = self._ask({"arguments": arguments, "log": str(log)}, name)
        printed = log.read_text(errors="replace")
        if not answer["ok"]:
            last = printed.strip().splitlines()[-1:] or [""]
            reason = shortened("; ".join(filter(None, (answer["error"], last[0]))), 300)
            raise RunError(f"{PACKAGE} {self.version} does not compile {name} for {accelerator}: {reason}")
        return printed

    def _ask(self, request: dict[str, Any], name: str) -> dict[str, Any]:
        try:
            return self._worker.ask(request, self._timeout_s)
        except WorkerTooSlow:
            raise RunError(f"{PACKAGE} {self.version} did not compile {name} within {self._timeout_s:g} s") from None
        except WorkerDied as death:
            raise RunError(
                f"{PACKAGE} {self.version} crashed on {name} ({death.reason}): is it a complete .tflite file?"
            ) from None

    def close(self) -> None:
        self._worker.close()
        self._scratch.cleanup()


_shared: dict[int, Vela] = {}
_one_at_a_time = threading.Lock()


def compile_tflite(model: Path, folder: Path, accelerator: Accelerator) -> Compiled:
    """`Vela.compile` in a process that is kept for the next call. Safe to call from several threads."""
    with _one_at_a_time:
        # By process id: after a fork, the child must not talk over its parent's pipes.
        vela = _shared.get(os.getpid())
        if vela is None:
            vela = _shared[os.getpid()] = Vela()
        return vela.compile(model, folder, accelerator)
