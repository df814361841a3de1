"""Errors that a user can mend. They end a command with one line and exit code 2, never a traceback."""

import difflib
import shlex
from collections.abc import Iterable


class UserError(Exception):
    """Bad usage or input. The message says what was expected, what came, and what to do, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class RunError(Exception):
    """A run failed through no fault of the input. Exit code 1; what was computed so far stays saved."""


class MissingPackage(UserError):
    """An optional dependency is needed now and is not installed."""

    def __init__(self, package: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: pip install {shlex.quote(package)}"
        )


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a registry, with the nearest known name suggested."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {kind} {name!r}: {hint}known: {', '.join(names)}")
