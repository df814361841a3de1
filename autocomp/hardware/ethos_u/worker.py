"""The far end of a compiler process: runs Vela on one file after another.

Reads requests from standard input, one JSON document a line: {"arguments": […]} as on Vela's command line, "log": a
file. Answers each with {"ok": true} or {"ok": false, "error": "…"} on the pipe that was its standard output. What
Vela prints, its C++ core included, goes to the log, which begins anew with each request.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any


def _answer(main: Callable[[Sequence[str]], Any], arguments: Sequence[str]) -> dict[str, Any]:
    try:
        main(arguments)
    except SystemExit as stop:
        if stop.code:
            return {"ok": False, "error": f"exit code {stop.code}"}
    except Exception as error:  # noqa: BLE001 - Vela raises whatever it meets; the file brought it about
        return {"ok": False, "error": " ".join(str(error).strip("'\"").split()) or type(error).__name__}
    return {"ok": True}


def _print_to(log: str) -> None:
    """Standard output and error go to the file `log` from here on, also what C++ writes."""
    sys.stdout.flush()
    sys.stderr.flush()
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


def serve() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    from ethosu.vela.vela import main  # type: ignore[import-untyped]

    for line in sys.stdin:
        request = json.loads(line)
        _print_to(request["log"])
        answer = _answer(main, request["arguments"])
        sys.stdout.flush()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
