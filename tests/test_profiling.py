"""Which networks this machine is measured for, in which order and how long; no kernel is timed here."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from autocomp import profiling
from autocomp.display import QuietDisplay
from autocomp.hardware.host import host_table_path
from autocomp.hardware.profile import find_profile
from autocomp.hardware.profiling.chains import rough_us
from autocomp.hardware.profiling.fill import Measured
from autocomp.hardware.table import Latency, LatencyTable
from autocomp.kernel import Kernel
from autocomp.profiling import Measurement, Subject, measure_here
from autocomp.tasks.reach import Reach, reach

TASKS = Path(__file__).parent / "end_to_end" / "toy_tasks.py"
PROFILE = find_profile("host_cpu")


class Phases(QuietDisplay):
    def __init__(self) -> None:
        self.seen: list[str] = []
        self.notes: list[str] = []

    def phase(self, name: str, total: int | None = None, detail: str = "") -> None:
        self.seen.append(name)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def toys() -> dict[str, Reach]:
    return {name: reach(PROFILE, None, None, f"{TASKS}:{name}", QuietDisplay()) for name in ("small", "unforeseen")}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, toys: dict[str, Reach]) -> list[str | None]:
    """Stands in for tracing: one toy for what the user asks for, the other for every built-in network."""
    calls: list[str | None] = []

    def traced(profile: Any, space: Any, network: str | None, task: Any, display: Any) -> Reach:
        calls.append(network)
        return toys["small" if network is None else "unforeseen"]

    monkeypatch.setattr(profiling, "reach", traced)
    return calls


class Machine:
    """Measures at once; Ctrl-C comes after `patience` kernels."""

    def __init__(self, patience: float = float("inf")) -> None:
        self.seen: list[Kernel] = []
        self.patience = patience

    def measure(self, kernels: Sequence[Kernel], deadline: float) -> Iterator[Measured]:
        for kernel in kernels:
            if len(self.seen) >= self.patience:
                raise KeyboardInterrupt
            self.seen.append(kernel)
            yield Measured(kernel, Latency(rough_us(kernel), 0.1, 9), 6.0)


def here(machine: Machine, folder: Path, display: Phases, **options: Any) -> Measurement:
    return measure_here(
        PROFILE, Subject(task="own.py:task"), display, measure=machine.measure, folder=folder, **options
    )  # fmt: skip


def test_the_space_comes_first_then_what_lies_between_then_other_networks(
    asked: list[str | None], toys: dict[str, Reach], tmp_path: Path
) -> None:
    machine, display = Machine(), Phases()
    result = here(machine, tmp_path, display, minutes=2)
    own = [kernel for kernel in dict.fromkeys(machine.seen) if kernel in set(toys["small"].kernels)]
    assert machine.seen[: len(own)] == own
    assert set(own) == set(toys["small"].kernels)
    assert set(toys["unforeseen"].between(16, 1)) <= set(machine.seen)
    assert asked[0] is None
    assert len(set(asked)) == len(asked)  # each is traced once, however many rounds there are
    assert set(asked[1:]) >= {"mobilenet_v1", "mobilenet_v2", "resnet18", "squeezenet"}
    assert result.summary is not None and result.summary.measured == result.summary.reachable == len(own)
    assert display.seen[0] == "measuring what the space reaches"
    assert display.seen[-1] == "fitting the estimator"


def test_no_other_network_is_traced_where_the_time_is_short(
    asked: list[str | None], toys: dict[str, Reach], tmp_path: Path
) -> None:
    machine = Machine()
    here(machine, tmp_path, Phases(), minutes=0.4)
    assert asked == [None]
    assert set(machine.seen) == {*toys["small"].kernels, *toys["small"].between(16)}


@pytest.mark.usefixtures("asked")
def test_ctrl_c_keeps_the_rows_and_the_next_call_goes_on(tmp_path: Path, toys: dict[str, Reach]) -> None:
    machine, display = Machine(patience=30), Phases()
    result = here(machine, tmp_path, display, minutes=0.4)
    assert result.interrupted and result.summary is None
    assert result.filling.added == machine.seen
    assert "30 rows" in display.notes[-1] or "31 rows" in display.notes[-1]  # the reference may be one of them
    again, more = Machine(), Phases()
    assert here(again, tmp_path, more, minutes=0.4, resume=True).known in (30, 31)
    assert not set(again.seen) & set(machine.seen)
    assert "are there already" in more.notes[0]


@pytest.mark.usefixtures("asked")
def test_fresh_begins_from_nothing(tmp_path: Path) -> None:
    first, second = Machine(), Machine()
    here(first, tmp_path, Phases(), minutes=0.4)
    path = host_table_path(tmp_path)
    before = LatencyTable.read(path)
    result = here(second, tmp_path, Phases(), minutes=0.4, fresh=True)
    assert result.known == 0
    assert sorted(second.seen) == sorted(first.seen)
    assert LatencyTable.read(path) == before


@pytest.mark.usefixtures("asked")
def test_what_is_shown_says_where_the_table_is_and_what_it_is_worth(tmp_path: Path) -> None:
    result = here(Machine(), tmp_path, Phases(), minutes=0.4, out=tmp_path / "copy", name="mine")
    text = "\n".join(result.lines())
    assert str(host_table_path(tmp_path)) in text
    assert str(tmp_path / "copy" / "mine.yaml") in text
    assert "(100 %)" in text and "held-out error" in text and "all that it reaches is measured" in text
    assert result.document()["rows"] == len(LatencyTable.read(host_table_path(tmp_path)))
