"""What each device would have chosen from a run, on figures made by hand."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from autocomp.budget import Budget
from autocomp.compare_run import DeviceView, RunComparison, Scored, chosen, rank_correlations
from autocomp.devices import Figures
from autocomp.hardware.profile import find_profile
from autocomp.policy import Policy
from autocomp.report.compare_run import comparison_svg, document, print_run_comparison

FLOAT = 0.95


def candidate(name: int, accuracy: float, size_bytes: int) -> Scored:
    return Scored(name, Policy(), accuracy, {"mobile_arm": Figures(size_bytes, 1.0, 1.0, 1.0, 100.0)})


#: 0 is accurate and large, 1 close to it, 2 far from it; 3 is as fast as 1 somewhere, and larger.
CANDIDATES = [candidate(0, 0.95, 900), candidate(1, 0.947, 500), candidate(2, 0.90, 200), candidate(3, 0.946, 600)]


def taken(*ms: float) -> dict[int, Figures]:
    sizes = [c.size_bytes for c in CANDIDATES]
    return {i: Figures(sizes[i], value, 0.8 * value, 1.2 * value, 100.0) for i, value in enumerate(ms)}


def view(name: str, *ms: float, budget: Budget | None = None, executes=(0, 1, 2, 3)) -> DeviceView:
    bounds = budget or Budget()
    found = {key: value for key, value in taken(*ms).items() if key in executes}
    choice = chosen([c for c in CANDIDATES if c.id in found], found, bounds, FLOAT - 0.005)
    refused = len(CANDIDATES) - len(found)
    front = tuple(sorted(found, key=lambda key: found[key].latency_ms))
    return DeviceView(find_profile(name), bounds, found, refused, "conv1: no kernel" if refused else "", front, choice)


def comparison() -> RunComparison:
    views = (
        view("mobile_arm", 4, 3, 1, 2),
        view("raspberry_pi_4", 9, 5, 2, 6),
        view("cortex_a53", 20, 30, 2, 40, executes=(0, 2, 3)),
    )
    return RunComparison(
        Path("run"), "small <net>", FLOAT, {c.id: c for c in CANDIDATES}, views, rank_correlations(views)
    )


@pytest.mark.parametrize(
    ("budget", "ms", "least", "expected"),
    [
        (Budget(), (4, 3, 1, 2), 0.945, 3),  # the fastest of those that lose at most half a point
        (Budget(), (4, 3, 1, 3), 0.945, 1),  # of equally fast ones the smaller
        (Budget(), (4, 3, 1, 2), 0.90, 2),
        (Budget(500), (4, 3, 1, 2), 0.945, 1),
        (Budget(400), (4, 3, 1, 2), 0.945, 2),  # none is accurate enough: the most accurate that fits
        (Budget(latency_ms=2.5), (4, 3, 1, 2), 0.945, 3),
        (Budget(memory_bytes=99), (4, 3, 1, 2), 0.945, None),
        (Budget(100), (4, 3, 1, 2), 0.945, None),
        (Budget(), (4, 3, 1, 2), 0.96, 0),
    ],
)
def test_what_a_device_chooses(budget, ms, least, expected):
    assert chosen(CANDIDATES, taken(*ms), budget, least) == expected


def test_how_far_the_runs_choice_is_from_a_devices_own():
    found = comparison()
    first, second, third = found.devices
    assert (found.run_choice, second.choice, third.choice) == (3, 1, 0)
    assert found.behind(first) == (0.0, 0.0)
    assert found.behind(second) == (pytest.approx(1.0), pytest.approx(-0.001))
    assert found.behind(third) == (pytest.approx(20.0), pytest.approx(-0.004))
    without = replace(third, taken=taken(20.0))
    assert found.behind(without) is None  # it does not execute the run's choice
    assert found.behind(replace(third, choice=None)) is None


def test_rank_correlations_are_over_what_both_execute():
    views = (view("mobile_arm", 1, 2, 3, 4), view("raspberry_pi_4", 10, 20, 40, 30), view("cortex_a53", 4, 3, 2, 1))
    found = rank_correlations(views)
    assert found["mobile_arm", "raspberry_pi_4"] == pytest.approx(0.8)  # one swap of neighbours among four
    assert found["mobile_arm", "cortex_a53"] == pytest.approx(-1.0)
    assert found["raspberry_pi_4", "cortex_a53"] == pytest.approx(-0.8)
    few = (views[0], view("cortex_a53", 4, 3, 2, 1, executes=(0, 1)))
    assert rank_correlations(few) == {("mobile_arm", "cortex_a53"): None}
    alike = (views[0], view("cortex_a53", 5, 5, 5, 5))
    assert rank_correlations(alike) == {("mobile_arm", "cortex_a53"): None}


def test_the_document_holds_it_all():
    plain = json.loads(json.dumps(document(comparison()), allow_nan=False))
    assert (plain["run_choice"], plain["candidates"]) == (3, 4)
    first, second, third = plain["devices"]
    assert first["run_choice"]["slower_ms"] == 0
    assert (second["choice"]["id"], second["choice"]["latency_ms"], second["choice"]["size_bytes"]) == (1, 5.0, 500)
    assert second["run_choice"]["id"] == 3
    assert second["run_choice"]["slower_ms"] == pytest.approx(1.0)
    assert (third["executes"], third["refused"], third["reason"]) == (3, 1, "conv1: no kernel")
    assert [row["devices"] for row in plain["rank_correlations"]] == [
        ["mobile_arm", "raspberry_pi_4"], ["mobile_arm", "cortex_a53"], ["raspberry_pi_4", "cortex_a53"],
    ]  # fmt: skip
    for device in plain["devices"]:
        assert device["provenance"] == find_profile(device["hw"]).provenance_note


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_says_where_latencies_come_from(width):
    stream = io.StringIO()
    print_run_comparison(comparison(), Console(file=stream, width=width))
    text = stream.getvalue()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text
    second = next(line.split() for line in text.splitlines() if line.startswith("raspberry_pi_4 "))
    assert second == ["raspberry_pi_4", "4", "1", "94.70", "500", "B", "5.00", "+1", "−0.10"]
    assert "cortex_a53 does not execute 1 of them: conv1: no kernel" in " ".join(text.split())
    assert "llvm-mca (cortex-a57)" in " ".join(text.split())


def test_a_choice_is_linked_from_panel_to_panel():
    picture = comparison_svg(comparison())
    assert "small &lt;net&gt;: what each device would have chosen" in picture
    for name in ("mobile_arm", "raspberry_pi_4", "cortex_a53"):
        assert f"latency on {name}" in picture
    # Three choices: 3 and 0 stand in all panels, 1 where it is executed, and each is linked to its next place.
    assert len(re.findall(r'r="6"', picture)) == 3 + 3 + 2
    assert len(re.findall(r'stroke-dasharray="2 3"', picture)) == 2 + 2 + 1
    assert "3: choice of mobile_arm; 1: choice of raspberry_pi_4; 0: choice of cortex_a53" in picture
