"""Arm's Vela compiler, in a process of its own: which file the NPU stores, and how long it will take.

The compiler's process stays alive between files: Vela's imports take 0.2 s, a small network 15 ms. A damaged file
can crash Vela's C++ core, which ends that process and not this one.
"""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Self

from autocomp.errors import MissingPackage, RunError
from autocomp.hardware.ethos_u.accelerator import Accelerator
from autocomp.hardware.ethos_u.performance import (
    OperatorEstimate,
    parse_fallbacks,
    parse_operators,
    parse_summary,
)
from autocomp.reading import shortened

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


class Vela:
    """A compiler process that stays alive between files. Use as a context manager. UserError if Vela is missing."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self.version = vela_version()
        self._timeout_s = timeout_s
        self._scratch = tempfile.TemporaryDirectory(prefix="autocomp-vela-")
        self._process: subprocess.Popen[str] | None = None

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
            reason = shortened("; ".join(filter(None, (str(answer["error"]), last[0]))), 300)
            raise RunError(f"{PACKAGE} {self.version} does not compile {name} for {accelerator}: {reason}")
        return printed

    def _ask(self, request: dict[str, object], name: str) -> dict[str, object]:
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        line = ""
        with contextlib.suppress(OSError):  # a broken pipe: it died, see below
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], self._timeout_s)[0]:
                self._stop()
                raise RunError(f"{PACKAGE} {self.version} did not compile {name} within {self._timeout_s:g} s")
            line = process.stdout.readline()
        if not line:
            code = process.wait()
            self._stop()
            ended = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise RunError(f"{PACKAGE} {self.version} crashed on {name} ({ended}): is it a complete .tflite file?")
        return dict(json.loads(line))

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "autocomp.hardware.ethos_u.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"),
        )  # fmt: skip

    def _stop(self) -> None:
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self._stop()
        self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
