"""A module that works in a process of its own and stays alive between requests, one JSON line each way."""

import contextlib
import json
import os
import select
import subprocess
import sys
from types import TracebackType
from typing import Any, Self


class Closing:
    """Something that is closed at the end of a `with` block."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class WorkerDied(Exception):
    """The process ended, or was ended, before it answered. reason: how, in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WorkerTooSlow(WorkerDied):
    """It had to be ended, because it did not answer in time."""


class Worker:
    """Runs `python -m module`, started by the first request and again by the next one after it died."""

    def __init__(self, module: str) -> None:
        self.module = module
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any], timeout_s: float | None = None) -> dict[str, Any]:
        """The answer to a request. WorkerDied if the process ends or `timeout_s` pass before it comes."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        line = ""
        with contextlib.suppress(OSError):  # a broken pipe: it died, see below
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], timeout_s)[0]:
                self.close(wait_s=0)
                raise WorkerTooSlow(f"no answer within {timeout_s:g} s")
            line = process.stdout.readline()
        if not line:
            code = process.wait()
            self.close(wait_s=0)
            raise WorkerDied(f"signal {-code}" if code < 0 else f"exit code {code}")
        return dict(json.loads(line))

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", self.module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=dict(os.environ, OMP_NUM_THREADS="1"),
        )  # fmt: skip

    def close(self, wait_s: float = 10.0) -> None:
        """End the process; it has `wait_s` to end by itself."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(timeout=wait_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
