"""What is wrong with a user's input is one line and exit code 2, said by the real search before time is spent."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from needs import needs
from PIL import Image

from autocomp import cli
from autocomp.errors import UserError
from autocomp.resources import data_folder

TASK = """
import torch
from torch import nn
from autocomp import Task

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, 1, 1)
        self.head = nn.Linear(16 * 36, 4)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten(1))

class Pair(Net):
    def forward(self, x):
        return super().forward(x), x

def data(n=40):
    torch.manual_seed(0)
    return torch.randn(n, 1, 6, 6), torch.arange(n) % 4

def task():
    return Task(Net(), train=data(), name="tiny")

def pair():
    return Task(Pair(), train=data(), output=2)

def wrong_example():
    return Task(Net(), train=torch.randn(40, 1, 5, 5))

def bad_metric():
    return Task(Net(), train=data(), metric=lambda outputs, labels: 7.0)

def bad_loss():
    return Task(Net(), train=data(), loss=nn.BCEWithLogitsLoss())

def bad_rate():
    return Task(Net(), train=data(), learning_rate=0.0)

def raises():
    raise RuntimeError("the data base\\nis down")
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder of the user's own, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("mine.py").write_text(TASK)
    return tmp_path


def refuse(arguments: str, capsys) -> str:
    """Run the command line; returns the one line that it ends with. Before it there may be progress."""
    assert cli.main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    complaints = [line for line in lines if not re.match(r"\[ *\d+:\d+\] ", line)]
    assert len(complaints) == 1, err
    assert lines[-1] == complaints[0]
    assert complaints[0].startswith("autocomp: ")
    return complaints[0]


def search(more: str) -> str:
    return f"search --hw mobile_arm --trials 1 --workers 1 {more}"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("search --hw mobil_arm", "unknown hardware profile 'mobil_arm': did you mean 'mobile_arm'?"),
        ("search --hw no/such.yaml", "no/such.yaml"),
        (search("--task mnits"), "unknown task 'mnits': did you mean 'mnist'?"),
        (search("--controller evolutoin"), "unknown controller 'evolutoin': did you mean 'evolution'?"),
        (search("--space mobilenet_v3"), "unknown search space 'mobilenet_v3': did you mean 'mobilenet_v2'?"),
        (search("--budget 4quux"), "--budget: expected a number with a unit such as 4MB, 500kB or 4MiB, got '4quux'"),
        (search("--budget 0"), "--budget: must be greater than 0"),
        (search("--budget -4MB"), "--budget: must be greater than 0, got '-4MB'"),
        (search("--task imagenet --data nowhere"), "--data: nowhere does not exist"),
        (search("--task imagenet"), "needs images: --data DIR"),
        (search("--task nowhere.py:task"), "there is no file nowhere.py"),
        (search("--task mine.py:tusk"), "has no function 'tusk'"),
        (search("--task mine.py:raises"), "raised RuntimeError at mine.py:42: the data base is down"),
        (search("--task mine.py:pair"), "Task.output is 2, but the network returns 2 tensors"),
        (search("--task mine.py:wrong_example"), "fails on its example input of shape (2, 1, 5, 5)"),
        (search("--task mine.py:bad_metric"), "metric must lie in [0, 1], higher is better; it gave 7"),
        (search("--task mine.py:bad_loss"), "the task's loss fails on outputs (28, 4) float32 and labels (28,) int64"),
        (search("--task mine.py:bad_rate"), "Task.learning_rate: expected a number greater than 0, got 0.0"),
        ("estimate --hw mobile_arm --task mine.py:raises", "raised RuntimeError"),
    ],
)
def test_one_line_and_exit_code_2(arguments, expected, capsys):
    assert expected in refuse(arguments, capsys)
    # A search that was refused leaves nothing behind.
    assert not list(Path().glob("runs/*/"))
    assert not Path("runs/latest").is_symlink()


def test_a_budget_of_bytes_that_nothing_can_meet(capsys, monkeypatch):
    line = refuse(search("--task mine.py:task --budget 1kB"), capsys)
    found = re.search(r"nearest candidate takes ([\d,]+) bytes and ([\d.]+) ms, and size binds", line)
    assert found, line
    smallest = re.search(r"smallest reachable are ([\d,]+) bytes", line)
    assert smallest, line
    assert int(smallest[1].replace(",", "")) <= int(found[1].replace(",", ""))
    # The budget that it names can be met: the search gets past the check, as far as a trial.
    enough = int(smallest[1].replace(",", ""))

    def passed(*arguments, **keywords):
        raise UserError("the check was passed")

    monkeypatch.setattr("autocomp.search.measure_references", passed)
    assert "the check was passed" in refuse(search(f"--task mine.py:task --budget {enough}B"), capsys)


def test_a_budget_of_time_that_nothing_can_meet(capsys):
    line = refuse(search("--task mine.py:task --max-latency 1us"), capsys)
    assert "0.001 ms" in line
    assert "latency binds" in line
    assert "smallest reachable" in line


def test_a_budget_of_memory_that_nothing_can_meet(capsys):
    line = refuse(search("--task mine.py:task --max-memory 200B"), capsys)
    assert "the budget of 200 bytes of memory" in line
    assert "memory binds" in line
    assert re.search(r"the smallest reachable are .* and [\d,]+ bytes of memory: raise the budget", line)


def test_strict_refuses_a_layer_that_no_choice_of_is_measured(capsys):
    line = refuse(search("--task mine.py:task --strict"), capsys)
    assert "--strict: layer head: linear 576→4" in line
    assert "lies outside what was measured (out_channels " in line
    assert "leave out --strict" in line


def test_a_stale_table_is_a_warning(capsys):
    folder = data_folder("hw_profiles")
    text = (folder / "mobile_arm.yaml").read_text(encoding="utf-8")
    Path("mobile_arm.csv").write_bytes((folder / "mobile_arm.csv").read_bytes())
    Path("old.yaml").write_text(re.sub(r'version: "[\d.]+"', 'version: "1.2.0"', text))
    # The search goes on, as far as a budget that nothing meets.
    command = "search --hw old.yaml --task mine.py:task --max-latency 1us --trials 1 --workers 1"
    assert cli.main(command.split()) == 2
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning: the lat" in line]
    assert len(warnings) == 1
    assert "the latencies of mobile_arm are stale: filled with onnxruntime 1.2.0, and" in warnings[0]


def test_a_truncated_image(capsys):
    folder = Path("photos/tench")
    folder.mkdir(parents=True)
    Image.effect_noise((300, 300), 90).save(folder / "cut.jpg")
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    needs("efficientnet_lite_pytorch")
    line = refuse(search("--task imagenet --data photos"), capsys)
    assert "photos/tench/cut.jpg cannot be read" in line
    assert "replace or remove it" in line


def test_an_output_folder_that_is_no_folder(capsys):
    Path("taken").write_text("a file")
    assert "taken already holds something" in refuse(search("--task mine.py:task --out taken"), capsys)
    line = refuse(search("--task mine.py:task --out taken/below"), capsys)
    assert "cannot write to taken/below: Not a directory" in line
    assert Path("taken").read_text() == "a file"


def test_an_output_folder_where_nobody_may_write(capsys):
    line = refuse(search("--task mine.py:task --out /proc/autocomp"), capsys)
    assert "cannot write to /proc/autocomp" in line
    assert "choose another folder" in line


def test_an_output_folder_that_holds_another_run(capsys):
    run = Path("mine")
    run.mkdir()
    (run / "run.yaml").write_text(yaml.safe_dump({"status": "interrupted"}))
    line = refuse(search("--task mine.py:task --out mine"), capsys)
    assert "already holds something" in line
    assert "autocomp resume mine" in line
    assert [path.name for path in run.iterdir()] == ["run.yaml"]


def test_a_full_disk(capsys, monkeypatch):
    import autocomp.run_folder

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(autocomp.run_folder, "write_whole", full)
    line = refuse(search("--task mine.py:task --out mine"), capsys)
    assert "No space left on device" in line
    assert "free some space or choose another folder with --out" in line


def test_a_disk_that_is_really_full(place):
    folder = place / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        result = subprocess.run(
            [sys.executable, "-m", "autocomp", *search(f"--task mine.py:task --out {folder}/run").split()],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert result.returncode == 2, result.stderr
    line = result.stderr.splitlines()[-1]
    assert "No space left on device" in line or "disk is full" in line  # whichever file met the end first
    assert "free some space or choose another folder with --out" in line
    assert "Traceback" not in result.stderr
