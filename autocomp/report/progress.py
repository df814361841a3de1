"""The progress of a search on standard error: redrawn in place in a terminal, a line now and then elsewhere."""

import os
import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autocomp.display import Display, QuietDisplay, SearchState
from autocomp.journal import Entry
from autocomp.outcome import Status
from autocomp.report.figures import duration, milliseconds, percent, size

__all__ = ["Display", "LiveDisplay", "PlainDisplay", "QuietDisplay", "SearchState", "make_display"]

#: Seconds between two lines of a PlainDisplay: a log of an hour stays readable.
PLAIN_INTERVAL_S = 10.0


def make_display(stream: TextIO | None = None) -> Display:
    """The display that fits where standard error goes (or `stream`)."""
    target = sys.stderr if stream is None else stream
    if target.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", ""):
        return LiveDisplay(Console(file=target))
    return PlainDisplay(target)


def _counts(state: SearchState) -> str:
    total = "" if state.trials_total is None else f"/{state.trials_total}"
    return f"{state.trials_done}{total} trials"


def _found(state: SearchState) -> list[str]:
    """What the search has to show so far; nothing before the first complete trial."""
    if state.best_accuracy is None:
        return ["nothing on the front yet"]
    return [
        f"best {percent(state.best_accuracy)}",
        f"smallest {size(state.smallest_bytes)}",
        f"fastest {milliseconds(state.fastest_ms)}",
        f"front {state.front_size}",
    ]


def _figures(entry: Entry) -> str:
    """What a complete trial found: accuracy, bytes, and latency on each device."""
    outcome, devices = entry.outcome, entry.details.get("devices", {})
    found = [f"{milliseconds(figures['latency_ms'])} on {name}" for name, figures in devices.items()]
    return ", ".join(
        [percent(outcome.accuracy), size(outcome.size_bytes), *(found or [milliseconds(outcome.latency_ms)])]
    )


class _Watch:
    """What both displays remember: the phase, when it began, and the last reason for a trial without a file."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.name = ""
        self.detail = ""
        self.total: int | None = None
        self.done = 0
        self.phase_began = self.began
        self.state: SearchState | None = None
        self.state_at = self.began
        self.ends_at: float | None = None
        self.reason = ""

    def phase(self, name: str, total: int | None, detail: str) -> None:
        self.name, self.total, self.detail = name, total, detail
        self.done, self.state, self.ends_at = 0, None, None
        self.phase_began = time.monotonic()

    def advance(self, done: int, seconds_left: float | None) -> None:
        self.done = done
        self.ends_at = None if seconds_left is None else time.monotonic() + seconds_left

    def trial(self, entry: Entry, state: SearchState) -> None:
        self.state, self.state_at = state, time.monotonic()
        self.done = state.trials_done
        self.total = state.trials_total
        if entry.outcome.status in (Status.FAILED, Status.INFEASIBLE):
            self.reason = f"{entry.outcome.status}: {entry.outcome.reason}"

    @property
    def phase_seconds(self) -> float:
        return time.monotonic() - self.phase_began

    @property
    def seconds_left(self) -> float | None:
        """Left in this phase: what the search or whoever advances says, else what the steps behind us took."""
        if self.state is not None:
            if self.state.seconds_left is None:
                return None
            return max(0.0, self.state.seconds_left - (time.monotonic() - self.state_at))
        if self.ends_at is not None:
            return max(0.0, self.ends_at - time.monotonic())
        if self.total and 0 < self.done < self.total:
            return self.phase_seconds / self.done * (self.total - self.done)
        return None

    @property
    def fraction(self) -> float | None:
        """How much of the phase is behind us, by its steps or, where they are not known, by its time."""
        if self.total:
            return min(1.0, self.done / self.total)
        left = self.seconds_left
        if left is not None and self.phase_seconds + left > 0:
            return self.phase_seconds / (self.phase_seconds + left)
        return None


class LiveDisplay:
    """A few lines at the bottom of the terminal, redrawn in place; ended phases and notes scroll up above them."""

    def __init__(self, console: Console) -> None:
        self._watch = _Watch()
        # Four frames a second: the clock ticks, and a slow connection does not flicker.
        self._live = Live(self, console=console, refresh_per_second=4, transient=True, vertical_overflow="crop")

    def phase(self, name: str, total: int | None = None, detail: str = "") -> None:
        self._close_phase()
        self._watch.phase(name, total, detail)

    def advance(self, done: int, seconds_left: float | None = None) -> None:
        self._watch.advance(done, seconds_left)

    def trial(self, entry: Entry, state: SearchState) -> None:
        self._watch.trial(entry, state)

    def note(self, text: str) -> None:
        self._live.console.print(Text(text))

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._close_phase()
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        watch = self._watch
        if not watch.name:
            return
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(no_wrap=True, overflow="ellipsis")
        head.add_column(ratio=1, min_width=8)
        head.add_column(no_wrap=True, justify="right")
        fraction = watch.fraction
        # Without a known end the clock is the sign of life: a pulsing bar would redraw the line for nothing.
        bar = Text("") if fraction is None else ProgressBar(total=1.0, completed=fraction)
        head.add_row(Text(watch.name, style="bold"), bar, self._clock())
        lines: list[Table | Text] = [head]
        state = watch.state
        if state is not None:
            lines.append(Text("  " + " · ".join(_found(state))))
            tally = f"  infeasible {state.infeasible} · failed {state.failed}"
            if state.running:
                tally += f" · running {state.running}"
            lines.append(Text(tally, style="dim"))
            if watch.reason:
                lines.append(Text(f"  last {watch.reason}", style="dim"))
        elif watch.detail:
            lines.append(Text(f"  {watch.detail}", style="dim"))
        for line in lines[1:]:
            assert isinstance(line, Text)
            line.no_wrap, line.overflow = True, "ellipsis"
        yield Group(*lines)

    def _clock(self) -> str:
        watch = self._watch
        if watch.state is not None:
            steps = f"{_counts(watch.state)} · "
        else:
            steps = f"{watch.done}/{watch.total} · " if watch.total else ""
        left = watch.seconds_left
        return steps + duration(watch.phase_seconds) + ("" if left is None else f" · {duration(left)} left")

    def _close_phase(self) -> None:
        watch = self._watch
        if watch.name:
            took = f"{_counts(watch.state)}, " if watch.state is not None else ""
            self._live.console.print(Text(f"{watch.name}: {took}{duration(watch.phase_seconds)}"))
            watch.name = ""


class PlainDisplay:
    """A line for each phase, note, point of the front and new reason, and one on the search every few seconds."""

    def __init__(self, stream: TextIO, interval_s: float = PLAIN_INTERVAL_S) -> None:
        self._stream = stream
        self._interval_s = interval_s
        self._watch = _Watch()
        self._printed_at = 0.0
        self._unprinted = False
        self._reasons: set[str] = set()

    def phase(self, name: str, total: int | None = None, detail: str = "") -> None:
        self._flush()
        self._watch.phase(name, total, detail)
        self._line(name + (f" ({detail})" if detail else ""))
        self._printed_at = time.monotonic()

    def advance(self, done: int, seconds_left: float | None = None) -> None:
        self._watch.advance(done, seconds_left)
        self._maybe()

    def trial(self, entry: Entry, state: SearchState) -> None:
        self._watch.trial(entry, state)
        reason = self._watch.reason
        # A reason that comes back a hundred times is news once; the counts tell the rest.
        if reason and reason not in self._reasons and len(self._reasons) < 20:
            self._reasons.add(reason)
            self._line(f"trial {entry.id} {reason}")
        if state.on_front:
            seconds = time.monotonic() - self._watch.began
            self._line(f"on the front: {entry.id}: {_figures(entry)}, {seconds:.0f} s after the start")
        self._maybe()

    def note(self, text: str) -> None:
        self._line(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()

    def _maybe(self) -> None:
        self._unprinted = True
        if time.monotonic() - self._printed_at >= self._interval_s:
            self._flush()

    def _flush(self) -> None:
        """The state as it is now, unless the last line already said it."""
        if not self._unprinted:
            return
        self._unprinted = False
        watch = self._watch
        if watch.state is None:
            parts = [f"{watch.name} {watch.done}/{watch.total}" if watch.total else f"{watch.name} {watch.done}"]
        else:
            state = watch.state
            parts = [_counts(state), *_found(state), f"infeasible {state.infeasible}", f"failed {state.failed}"]
        left = watch.seconds_left
        if left is not None and watch.done != watch.total:
            parts.append(f"{duration(left)} left")
        self._line(" · ".join(parts))
        self._printed_at = time.monotonic()

    def _line(self, text: str) -> None:
        clock = duration(time.monotonic() - self._watch.began)
        # flush: a log that lags behind is no sign of life.
        print(f"[{clock:>5}] {' '.join(text.split())}", file=self._stream, flush=True)
