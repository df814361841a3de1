"""One search for two devices, and what each of them would have chosen from it."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from autocomp import cli
from autocomp.front import non_dominated
from autocomp.journal import Journal
from autocomp.outcome import Status

pytestmark = pytest.mark.end_to_end

TASKS = Path(__file__).with_name("toy_tasks.py")
DEVICES = ("mobile_arm", "raspberry_pi_4")
BOUNDS = {"mobile_arm": 6000, "raspberry_pi_4": 4500}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    budget = ",".join(f"{name}={bound}B" for name, bound in BOUNDS.items())
    result = subprocess.run(
        [sys.executable, "-m", "autocomp", "search", "--task", f"{TASKS}:small", "--hw", ",".join(DEVICES),
         "--budget", budget, "--max-latency", "raspberry_pi_4=60us", "--trials", "3", "--workers", "1",
         "--out", str(folder / "run")],
        cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return folder / "run"


def test_the_front_suits_both(run):
    with (run / "front.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert rows
    assert all(non_dominated([(-float(r["accuracy"]), float(r["size_bytes"]), float(r["latency_ms"])) for r in rows]))
    with Journal(run, read_only=True) as journal:
        entries = {str(entry.id): entry for entry in journal}
    for row in rows:
        assert float(row["size_bytes"]) <= min(BOUNDS.values())
        assert float(row["latency_ms:raspberry_pi_4"]) <= 0.06
        for column in ("latency_ms", "latency_low_ms", "latency_high_ms", "provenance"):
            assert row[column] == row[f"{column}:mobile_arm"]
            assert row[f"{column}:raspberry_pi_4"] != row[column]
        recorded = entries[row["id"]].details["devices"]
        assert [*recorded] == [*DEVICES]
        for name in DEVICES:
            low, middle, high = (float(row[f"latency{end}_ms:{name}"]) for end in ("_low", "", "_high"))
            assert low <= middle <= high
            assert middle == recorded[name]["latency_ms"]
    facts = yaml.safe_load((run / "run.yaml").read_text())
    assert {name: device["budget"]["size_bytes"] for name, device in facts["devices"].items()} == BOUNDS
    references = json.loads((run / "references.json").read_text())
    assert all([*reference["devices"]] == [*DEVICES] for reference in references)
    page = (run / "report.html").read_text()
    assert "latency on raspberry_pi_4" in page


def test_what_each_device_would_have_chosen(run, capsys, tmp_path):
    picture = tmp_path / "choices.svg"
    assert cli.main(["hw", "compare", str(run), "--hw", "cortex_a53,mobile_arm", "--svg", str(picture), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [device["hw"] for device in found["devices"]] == [*DEVICES, "cortex_a53"]
    with Journal(run, read_only=True) as journal:
        complete = {entry.id: entry for entry in journal if entry.outcome.status is Status.COMPLETE}
    assert found["candidates"] == len(complete)
    for device in found["devices"][:2]:  # as the search knew them
        for point in device["front"]:
            recorded = complete[point["id"]].details["devices"][device["hw"]]
            assert (point["latency_ms"], point["size_bytes"]) == (recorded["latency_ms"], recorded["size_bytes"])
    third = found["devices"][2]
    assert third["executes"] == len(complete)
    assert third["front"]
    costs = [(-p["accuracy"], p["size_bytes"], p["latency_ms"]) for p in third["front"]]
    assert all(non_dominated(costs))
    assert all(p["latency_ms"] > complete[p["id"]].outcome.latency_ms for p in third["front"])  # a slower core
    assert all(-1 <= row["spearman"] <= 1 for row in found["rank_correlations"])
    assert all(f">latency on {name}<" in picture.read_text() for name in (*DEVICES, "cortex_a53"))
