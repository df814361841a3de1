"""Budgets: what is understood, what is refused, and the arithmetic of excess."""

from contextlib import suppress
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocomp.budget import Budget, parse_accuracy_drop, parse_bytes, parse_milliseconds
from autocomp.errors import UserError

UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("4MB", 4_000_000), ("4MiB", 4_194_304), ("4 mb", 4_000_000), ("500kB", 500_000), ("0.5k", 500), (".5k", 500),
     ("1e6", 1_000_000), ("1.5KiB", 1536), ("2.3GB", 2_300_000_000), ("4.35kB", 4350), ("1.9B", 1)],
)  # fmt: skip
def test_bytes_worked_by_hand(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@given(st.integers(1, 10**9), st.integers(0, 3), st.sampled_from(sorted(UNITS)))
def test_bytes_are_exact(digits: int, places: int, unit: str) -> None:
    number = Decimal(digits).scaleb(-places)
    expected = int(number * UNITS[unit])
    if expected < 1:
        with pytest.raises(UserError):
            parse_bytes(f"{number}{unit}")
    else:
        assert parse_bytes(f"{number}{unit}") == expected


@pytest.mark.parametrize(
    ("text", "latency_ms"), [("2ms", 2.0), ("500us", 0.5), ("500µs", 0.5), ("0.01s", 10.0), ("3", 3.0), ("1e-3 s", 1.0)]
)
def test_milliseconds_worked_by_hand(text: str, latency_ms: float) -> None:
    assert parse_milliseconds(text) == pytest.approx(latency_ms, rel=1e-12)


@pytest.mark.parametrize(("text", "drop"), [("0.5", 0.005), ("0.5%", 0.005), ("0", 0.0), ("100%", 1.0), ("1 %", 0.01)])
def test_accuracy_drop_worked_by_hand(text: str, drop: float) -> None:
    assert parse_accuracy_drop(text) == pytest.approx(drop)


JUNK = ["", " ", "MB", "four", "4 M B", "4MBs", "-4MB", "0MB", "0.4B", "nan", "inf", "infMB", "1e999", "1e-999",
        "4,000", "4MB 2MB", "0x10", "4%", "--4", "1.2.3MB", "4\x00MB"]  # fmt: skip


@pytest.mark.parametrize("text", JUNK)
def test_junk_bytes_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_bytes(text)
    assert "\n" not in str(caught.value)
    assert "--budget" in str(caught.value)


@pytest.mark.parametrize("text", ["", "ms", "2MB", "0", "-1ms", "1e999", "nan", "2 minutes"])
def test_junk_latency_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--max-latency"):
        parse_milliseconds(text)


@pytest.mark.parametrize("text", ["", "%", "-1", "101", "1e999", "nan", "2ms"])
def test_junk_accuracy_drop_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--max-accuracy-drop"):
        parse_accuracy_drop(text)


@given(st.text())
def test_any_text_is_understood_or_refused(text: str) -> None:
    for parse in (parse_bytes, parse_milliseconds, parse_accuracy_drop):
        with suppress(UserError):
            assert parse(text) >= 0


def test_excess_and_binding_worked_by_hand() -> None:
    budget = Budget(size_bytes=1000, latency_ms=2.0, memory_bytes=100)
    assert budget.excess(1000, 2.0, 100) == 0
    assert budget.admits(1000, 2.0, 100)
    assert not budget.admits(1001, 2.0, 100)
    assert not budget.admits(1000, 2.0, 101)
    assert budget.excess(1500, 3.0, 50) == pytest.approx(0.5)
    assert budget.excess(500, 3.0, 50) == pytest.approx(0.5)
    assert budget.excess(500, 3.0, 175) == pytest.approx(0.75)
    assert budget.binding(500, 3.0, 100) == "latency"
    assert budget.binding(1500, 2.5, 120) == "size"
    assert budget.binding(1500, 2.5, 160) == "memory"
    assert budget.binding(1000, 2.0, 100) == ""
    assert Budget().admits(1e30, 1e30, 1e30)
    assert Budget().binding(1e30, 1e30, 1e30) == ""


BOUNDS = st.tuples(st.integers(1, 10**9), st.floats(0.001, 1e4), st.integers(1, 10**9))
COSTS = st.tuples(st.integers(0, 10**10), st.floats(0, 1e5), st.integers(0, 10**10))


@given(BOUNDS, COSTS)
def test_admits_is_every_bound(bounds: tuple[int, float, int], costs: tuple[int, float, int]) -> None:
    budget = Budget(bounds[0], bounds[1], memory_bytes=bounds[2])
    fits = all(cost <= bound for cost, bound in zip(costs, bounds, strict=True))
    assert budget.admits(*costs) == fits
    assert (budget.binding(*costs) == "") == fits


def test_budget_reads_as_text() -> None:
    assert str(Budget(4_000_000, 2.5, 0.01)) == "4,000,000 bytes and 2.5 ms and 1 points of accuracy lost"
    assert str(Budget(memory_bytes=2_000_000)) == "2,000,000 bytes of memory"
    assert str(Budget()) == "no bound"
