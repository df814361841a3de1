import io

import pytest
from rich.console import Console

from autocomp.display import SearchState
from autocomp.journal import Entry
from autocomp.outcome import Outcome, Status
from autocomp.policy import Policy
from autocomp.report.progress import LiveDisplay, PlainDisplay, make_display

COMPLETE = Outcome(Status.COMPLETE, 0.98, 214_000, 0.41)
REASON = "calibration saw a value that is not finite in features.3.conv.1, which cannot be quantized at all"


def trial(index, outcome=COMPLETE):
    return Entry(index, (0,), Policy(), outcome)


def state(done, **more):
    return SearchState(done, 40, 0, 1, 7, 0.9853, 214_000, 0.41, 10.0, 95.0, **more)


def feed(display):
    with display:
        display.phase("training the float network", 20, "once: it is cached")
        display.advance(20)
        display.note("classifier stays float")
        display.phase("searching", 40)
        for index in range(40):
            failed = Outcome(Status.FAILED, reason=REASON)
            display.trial(trial(index, failed if index % 10 == 5 else COMPLETE), state(index + 1))


def test_plain_lines_come_at_a_sensible_rate():
    stream = io.StringIO()
    feed(PlainDisplay(stream, interval_s=3600))
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 7
    assert "\x1b" not in stream.getvalue()
    assert sum(REASON in line for line in lines) == 1  # the same reason is news once
    assert "40/40 trials · best 98.53 % · smallest 214 kB · fastest 0.410 ms · front 7" in lines[-1]


def test_plain_says_where_it_stood_when_interrupted():
    stream = io.StringIO()

    def interrupted():
        with PlainDisplay(stream, interval_s=3600) as display:
            display.phase("searching", 40)
            display.trial(trial(0), state(1))
            display.trial(trial(1), state(2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "2/40 trials" in stream.getvalue().splitlines()[-1]


def test_plain_has_a_line_for_each_new_point_of_the_front():
    stream = io.StringIO()
    with PlainDisplay(stream, interval_s=3600) as display:
        display.phase("searching", 40)
        display.trial(trial(0), state(1, on_front=True))
        display.trial(trial(1), state(2))
        several = {"mobile_arm": {"latency_ms": 0.41}, "my_npu": {"latency_ms": 1.5}}
        display.trial(Entry(2, (0,), Policy(), COMPLETE, details={"devices": several}), state(3, on_front=True))
        lines = [line for line in stream.getvalue().splitlines() if "on the front" in line]
    assert len(lines) == 2
    assert "on the front: 0: 98.00 %, 214 kB, 0.410 ms, 0 s after the start" in lines[0]
    assert "on the front: 2: 98.00 %, 214 kB, 0.410 ms on mobile_arm, 1.50 ms on my_npu, 0 s after" in lines[1]


def test_the_time_left_is_as_told_where_somebody_knows_it():
    stream = io.StringIO()
    with PlainDisplay(stream, interval_s=0) as display:
        display.phase("measuring", 100)
        display.advance(50, 3 * 60.0)
        display.phase("fitting", 100)
        display.advance(0)
    lines = stream.getvalue().splitlines()
    assert "measuring 50/100 · 3:00 left" in lines[1]
    assert "left" not in lines[-1]


@pytest.mark.parametrize("width", [40, 80, 140])
def test_live_fits_the_terminal(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, legacy_windows=False)
    display = LiveDisplay(console)
    display.phase("searching", 40)
    display.trial(trial(5, Outcome(Status.FAILED, reason=REASON)), state(21, running=2))
    with console.capture() as capture:
        console.print(display)
    plain = [line for line in _plain(capture.get()).splitlines() if line.strip()]
    assert len(plain) == 4
    assert max(map(len, plain)) <= width
    if width >= 80:
        text = "\n".join(plain)
        assert "21/40 trials" in text
        assert "1:35 left" in text
        assert "infeasible 0 · failed 1 · running 2" in text


def _plain(text):
    from rich.text import Text

    return Text.from_ansi(text).plain


def test_live_leaves_ended_phases_on_the_screen():
    stream = io.StringIO()
    feed(LiveDisplay(Console(file=stream, width=80, force_terminal=True)))
    text = _plain(stream.getvalue())
    assert "training the float network: 0:0" in text
    assert "searching: 40/40 trials" in text
    assert "classifier stays float" in text


@pytest.mark.parametrize(
    ("terminal", "term", "kind"),
    [(False, "xterm", PlainDisplay), (True, "dumb", PlainDisplay), (True, "xterm-256color", LiveDisplay)],
)
def test_the_display_fits_the_stream(terminal, term, kind, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("TERM", term)
    assert isinstance(make_display(stream), kind)
