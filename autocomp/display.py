"""What the search tells whoever watches it. The search knows only this protocol; `report.progress` draws it.

It stands below `report/` so that `search` can speak without importing how it is shown.
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from autocomp.journal import Entry


@dataclass(frozen=True, slots=True)
class SearchState:
    """Where a search stands after a trial.

    trials_done counts complete, failed and infeasible ones. trials_total is None where only time bounds the search.
    best_accuracy: on the validation split, in [0, 1]. best_accuracy, smallest_bytes and fastest_ms are over the
    complete trials, None before the first. seconds: since the search began. seconds_left: None while unknown.
    on_front: whether the trial that ended is on the front, for the first time.
    """

    trials_done: int
    trials_total: int | None = None
    infeasible: int = 0
    failed: int = 0
    front_size: int = 0
    best_accuracy: float | None = None
    smallest_bytes: int | None = None
    fastest_ms: float | None = None
    seconds: float = 0.0
    seconds_left: float | None = None
    running: int = 0
    on_front: bool = False


class Display(Protocol):
    """Called from one thread, in this order: enter, then phases with what happens in them, then exit.

    A phase ends when the next one begins or the display exits.
    """

    def phase(self, name: str, total: int | None = None, detail: str = "") -> None:
        """A step begins. name: what is being done ("training the float network"). total: steps of `advance`."""
        ...

    def advance(self, done: int, seconds_left: float | None = None) -> None:
        """`done` of the phase's total steps are behind us (not: that many more).

        seconds_left: until all ends, where it is known better than from the steps so far.
        """
        ...

    def trial(self, entry: Entry, state: SearchState) -> None:
        """A trial ended."""
        ...

    def note(self, text: str) -> None:
        """Something the user should read now; it stays on the screen."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class QuietDisplay:
    """Shows nothing: for tests and for callers that only want the result."""

    def phase(self, name: str, total: int | None = None, detail: str = "") -> None:
        pass

    def advance(self, done: int, seconds_left: float | None = None) -> None:
        pass

    def trial(self, entry: Entry, state: SearchState) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
