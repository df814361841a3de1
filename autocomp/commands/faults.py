"""How a command ends that failed: one line on standard error and an exit code, never a traceback."""

import errno
import sqlite3
import sys
import tempfile
import traceback

from autocomp import __version__
from autocomp.commands.exit_codes import BAD_INPUT, FAILED
from autocomp.errors import RunError, UserError

#: What the operating system says when the place to write to is at fault, and what to do about it.
_PLACE_FAULTS = {
    errno.ENOSPC: "free some space or choose another folder with --out",
    errno.EDQUOT: "free some space or choose another folder with --out",
    errno.EROFS: "choose another folder with --out",
    errno.EACCES: "choose another folder, or change its permissions",
    errno.EPERM: "choose another folder, or change its permissions",
}


def complain(text: str, code: int) -> int:
    """Print `text` as one line on standard error; returns `code`."""
    print(f"autocomp: {' '.join(text.split())}", file=sys.stderr, flush=True)
    return code


def fail(error: Exception) -> int:
    """Say what went wrong, and return the exit code. The unforeseen leaves its traceback in a file."""
    known = _known_fault(error)
    if known is not None:
        return complain(str(known), BAD_INPUT if isinstance(known, UserError) else FAILED)
    return complain(f"unexpected {_first_line(error)}; the traceback is in {_write_traceback(error)}", FAILED)


def _known_fault(error: BaseException | None) -> UserError | RunError | None:
    """The fault that is meant for the user, also where a worker process or a library wrapped it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        cause = getattr(error, "cause", None)  # Ray's errors hold the worker's own there
        if isinstance(cause, BaseException):
            error = cause
            continue
        if isinstance(error, UserError | RunError):
            return error
        if isinstance(error, OSError) and error.errno in _PLACE_FAULTS:
            where = f"{error.filename}: " if error.filename else ""
            return UserError(f"cannot write {where}{error.strerror}; {_PLACE_FAULTS[error.errno]}")
        if isinstance(error, sqlite3.OperationalError) and ("full" in str(error) or "readonly" in str(error)):
            return UserError(f"cannot write the journal: {error}; {_PLACE_FAULTS[errno.ENOSPC]}")
        error = error.__cause__
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _write_traceback(error: Exception) -> str:
    """The path of a file with the traceback, or a word of excuse where none can be written."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="autocomp-", suffix=".log", delete=False, encoding="utf-8") as log:
            log.write(f"autocomp {__version__}, {' '.join(sys.argv)}\n\n")
            log.writelines(traceback.format_exception(error))
        return log.name
    except OSError as fault:
        return f"no file ({fault.strerror})"
