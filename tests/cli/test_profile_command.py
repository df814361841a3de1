"""`autocomp profile` through the command line: a real machine is measured, killed, resumed; bundles; bad input."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import small_bundle

from autocomp import cli
from autocomp.hardware.profile import find_profile
from autocomp.hardware.table import LatencyTable

TASKS = Path(__file__).parents[1] / "end_to_end" / "toy_tasks.py"
SMALL = ["--task", f"{TASKS}:small"]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "autocomp", "profile", *words]


def document(folder: Path, *words: str) -> Any:
    """Runs `autocomp profile WORDS --json` in `folder`."""
    result = subprocess.run(
        command(*words, "--json"), cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Traceback" not in result.stderr
    return json.loads(result.stdout)


def rows(path: Path) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Kernel → latency, spread and repeats, as they stand in the file; a line that is being written is left out."""
    with path.open(newline="") as file:
        whole = file.read().rpartition("\n")[0].splitlines()
    return {tuple(row[:10]): tuple(row[10:]) for row in csv.reader(whole[1:])}


def test_killed_and_resumed_nothing_is_measured_twice_or_lost(tmp_path: Path) -> None:
    words = ["host_cpu", *SMALL, "--minutes", "0.4"]
    process = subprocess.Popen(
        command(*words), cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while True:
        found = list(tmp_path.glob("cache/autocomp/host_cpu/*.csv"))
        if found and len(rows(found[0])) >= 15:
            break
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (path,) = found
    before = rows(path)

    after = document(tmp_path, *words, "--resume")
    assert after["known"] == len(LatencyTable.read(path)) - after["added"] >= len(before)
    assert (after["measured"], after["table"]) == (after["reachable"], str(path))
    now = rows(path)
    # The reference may have run faster since, which scales every row alike; what was measured again would differ.
    ratios = {round(float(now[kernel][0]) / float(before[kernel][0]), 6) for kernel in before}
    changed = sum(now[kernel][2] != before[kernel][2] for kernel in before)
    assert set(before) <= set(now)
    assert len(ratios) == 1 and changed == 0


def test_a_copy_of_the_table_is_a_profile_that_estimates_can_use(tmp_path: Path) -> None:
    result = document(tmp_path, "host_cpu", *SMALL, "--minutes", "0.3", "--out", "here", "--name", "my_laptop")
    profile = find_profile(str(tmp_path / "here" / "my_laptop.yaml"))
    assert result["profile"] == "here/my_laptop.yaml"
    assert len(profile.latencies) == result["rows"] > 20
    assert f"{result['measured']} of the {result['reachable']} of" in profile.provenance.text
    assert result["held_out_median"] is not None and 0 < result["band"] < 2
    again = document(tmp_path, "host_cpu", *SMALL, "--minutes", "0.1", "--fresh")
    assert again["known"] == 0


def test_a_bundle_is_made_run_and_imported(tmp_path: Path) -> None:
    made = document(tmp_path, "bundle", "mobile_arm", *SMALL, "--out", "bundle")
    assert made["bytes"] < 200_000
    small_bundle.run(tmp_path / "bundle")
    imported = document(tmp_path, "import", "bundle", "--name", "my_board")
    assert imported["complete"] and imported["kernels"] == made["kernels"] == imported["measured"] + imported["refused"]
    assert find_profile(str(tmp_path / "my_board.yaml")).provenance.kind == "measured"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("profile", "DEVICE is missing"),
        ("profile host_cpuu --space mobilenet_v2", "did you mean 'host_cpu'"),
        ("profile host_cpu", "say what is to be measured: --space NAME"),
        ("profile host_cpu --space mobilenet_v3", "did you mean 'mobilenet_v2'"),
        ("profile host_cpu --space mobilenet_v2 --minutes 0", "--minutes: expected a number greater than 0, got 0"),
        ("profile host_cpu --space mobilenet_v2 --minutes -1", "got -1"),
        ("profile host_cpu --space mobilenet_v2 --minutes nan", "got nan"),
        ("profile host_cpu --space mobilenet_v2 --resume --fresh", "give one of them"),
        ("profile host_cpu --space mobilenet_v2 --resume", "nothing was measured on this machine yet"),
        ("profile host_cpu --space mobilenet_v2 --out pyproject.toml", "is not a folder"),
        ("profile host_cpu --space mobilenet_v2 --out . --name My", "--name: expected lower-case letters"),
        ("profile mobile_arm --space mobilenet_v2", "autocomp profile bundle mobile_arm"),
        ("profile mobile_arm --space mobilenet_v2 --ssh pi@board", "such as --name my_board"),
        ("profile mobile_arm --space mobilenet_v2 --ssh -oProxyCommand=id --name b", "--ssh: expected user@host"),
        ("profile mobile_arm --space mobilenet_v2 --ssh pi@b --name b --ssh-config no", "there is no file no"),
        ("profile bundle mobile_arm --space mobilenet_v2", "--out is missing"),
        ("profile bundle mobile_leg --space mobilenet_v2 --out b", "did you mean 'mobile_arm'"),
        ("profile import no/such/file --name b", "no/such/file does not exist"),
        ("profile import .", "--name is missing"),
        ("profile import . --name b", "there is no results.jsonl in ."),
    ],
)
def test_bad_input_is_one_line(
    arguments: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(arguments.split()) == 2
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if line.startswith("autocomp: ")]
    assert out == "" and len(said) == 1
    assert expected in said[0]


def test_help_shows_examples_of_every_way(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["profile"], ["profile", "bundle"], ["profile", "import"]):
        assert cli.main([*words, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "$ autocomp profile host_cpu --space efficientnet_lite0 --minutes 10" in shown
        assert "$ autocomp profile import bundle --name my_pi" in shown
