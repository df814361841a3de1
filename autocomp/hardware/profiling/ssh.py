"""Measuring on a board that is reached by SSH: the bundle goes there, its results come back, whatever interrupts.

The system's own `ssh` is used, so keys, agents, jump hosts and ~/.ssh/config work as they do in a terminal. The board
needs a shell, tar, and Python with numpy and onnxruntime. The bundle stays there, in ~/.cache/autocomp/bundle-ID: a
second call with the same kernels goes on with what the first one measured.
"""

import io
import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autocomp.errors import RunError, UserError
from autocomp.hardware import runner
from autocomp.hardware.profiling.fill import Watch

#: Exit codes of `run.py`: all measured, what can be mended, and the time was up before all was measured.
_DONE, _BAD_INPUT, _TIME_UP = 0, 2, 3
#: Exit code of ssh itself when there is no connection.
_NO_CONNECTION = 255
_PROGRESS = re.compile(r"(\d+)/(\d+) kernels, (\d+) s left")


@dataclass(frozen=True)
class Board:
    """Where to measure. python: how Python is called there. config: a file for ssh's -F, None for the user's own."""

    address: str
    port: int | None = None
    python: str = "python3"
    config: Path | None = None

    @classmethod
    def of(cls, text: str, python: str = "python3", config: Path | None = None) -> "Board":
        """The board at user@host[:port]. UserError for anything else."""
        found = re.fullmatch(
            r"((?:[A-Za-z0-9_.-]+@)?(?:[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\]))(?::(\d+))?", text
        )
        if found is None or (found[2] and not 0 < int(found[2]) < 65536) or text.startswith("-"):
            raise UserError(f"--ssh: expected user@host or user@host:port, got {text!r}")
        if config is not None and not config.is_file():
            raise UserError(f"--ssh-config: there is no file {config}")
        return cls(found[1].replace("[", "").replace("]", ""), int(found[2]) if found[2] else None, python, config)

    def command(self, remote: str) -> list[str]:
        """The local command that runs `remote` in the board's shell."""
        if shutil.which("ssh") is None:
            raise UserError("--ssh needs the program ssh, which is not installed: install an OpenSSH client")
        options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15"]
        options += [] if self.config is None else ["-F", str(self.config)]
        options += [] if self.port is None else ["-p", str(self.port)]
        return ["ssh", *options, "--", self.address, remote]

    def call(self, remote: str, content: bytes = b"") -> bytes:
        """Standard output of a command that is to succeed. UserError with what the board says where it does not."""
        done = subprocess.run(self.command(remote), input=content, capture_output=True, check=False)
        if done.returncode:
            raise UserError(self.fault(done.returncode, done.stderr))
        return done.stdout

    def fault(self, code: int, stderr: bytes) -> str:
        """One line on a command that failed: by ssh itself, or on the board."""
        said = stderr.decode(errors="replace").strip().splitlines()
        last = said[-1] if said else f"exit code {code}"
        if code == _NO_CONNECTION:
            return f"--ssh: no connection to {self.address}: {last}; `ssh {self.address}` must work without a password"
        return f"--ssh: {self.address} says: {last}"


def check_board(board: Board) -> None:
    """UserError where the board cannot be reached, or lacks what the runner needs."""
    asks = "import numpy, onnxruntime"
    remote = f"{shlex.quote(board.python)} -c {shlex.quote(asks)}"
    done = subprocess.run(board.command(remote), stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode == _NO_CONNECTION:
        raise UserError(board.fault(done.returncode, done.stderr))
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(
            f"--ssh: {board.python} on {board.address} cannot import numpy and onnxruntime"
            f" ({said[-1] if said else done.returncode}): install them there, or name a Python by --remote-python"
        )


def measure_on(board: Board, bundle: Path, minutes: float | None, fresh: bool, watch: Watch) -> bool:
    """Runs the bundle on the board and fetches its results into the bundle's folder. Whether all was measured.

    Results are fetched, too, when it is interrupted (Ctrl-C here, a connection that breaks, a fault there); what
    ended it is raised after that: KeyboardInterrupt, or RunError with what the board said last.
    """
    manifest = runner.read_manifest(bundle)
    folder = f".cache/autocomp/bundle-{manifest['bundle']}"
    watch.phase("copying the bundle", detail=board.address)
    board.call(f"mkdir -p {folder} && tar -xzf - -C {folder}", _packed(bundle))
    watch.phase("measuring on the board", total=len(manifest["kernels"]), detail=board.address)
    arguments = [board.python, "-u", "run.py", *(["--fresh"] if fresh else [])]
    arguments += [] if minutes is None else ["--minutes", str(minutes)]
    remote = f"cd {folder} && exec {' '.join(map(shlex.quote, arguments))}"
    try:
        code, last = _follow(board.command(remote), watch)
    finally:
        results = board.call(f"cat {folder}/{runner.RESULTS} 2>/dev/null || true")
        if results:
            (bundle / runner.RESULTS).write_bytes(results)
    if code == _BAD_INPUT:
        raise UserError(f"--ssh: {board.address} says: {last}")
    if code not in (_DONE, _TIME_UP):
        raise RunError(f"measuring on {board.address} ended early: {last or f'exit code {code}'}")
    return code == _DONE


def _packed(bundle: Path) -> bytes:
    """The files of the bundle, without any results that lie beside them."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path in sorted(bundle.iterdir()):
            if path.is_file() and path.name != runner.RESULTS:
                archive.add(path, path.name)
    return packed.getvalue()


def _follow(command: Sequence[str], watch: Watch) -> tuple[int, str]:
    """Runs the command, telling `watch` of its progress; its exit code and the last line that was none."""
    last = ""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                progress = _PROGRESS.match(line)
                if progress:
                    watch.advance(int(progress[1]), float(progress[3]))
                else:
                    last = line.strip() or last
        except BaseException:
            process.terminate()  # the runner over there ends when nobody reads what it says
            raise
    return process.returncode, last
