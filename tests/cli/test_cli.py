"""The command line: what a user types wrong, what it costs to ask for help, and what reaches the search."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fabricated import fabricate

from autocomp import cli
from autocomp.budget import Budget
from autocomp.errors import RunError, UserError
from autocomp.resources import data_folder
from autocomp.settings import SearchSettings

VERBS = [
    "search",
    "resume",
    "estimate",
    "compress",
    "verify",
    "report",
    "hw list",
    "hw show",
    "hw compare",
    "space list",
    "space show",
]


class FakeSearch(ModuleType):
    """Stands in for autocomp.search: records the settings, and does what `act` does."""

    def __init__(self) -> None:
        super().__init__("autocomp.search")
        self.asked: SearchSettings | None = None
        self.act: Any = None

    def run_search(self, settings: SearchSettings, display: Any) -> Path:
        self.asked = settings
        return self.act()

    def resume_search(self, run: Path, display: Any) -> Path:
        return self.act()


@pytest.fixture
def search(monkeypatch):
    fake = FakeSearch()
    monkeypatch.setitem(sys.modules, "autocomp.search", fake)
    return fake


def complaint(capsys) -> str:
    """The one line on standard error; nothing may be on standard output."""
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("autocomp: ")
    return lines[0]


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom autocomp.cli import main\nmain(['--help'])\nmain(['search', '--help'])\n"
        "heavy = {'torch', 'ray', 'onnx', 'onnxruntime', 'pandas', 'plotly', 'optuna', 'numpy', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_shows_examples(verb, capsys):
    assert cli.main([*verb.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Examples:" in shown
    assert f"$ autocomp {verb}" in shown


def test_module_and_version():
    result = subprocess.run([sys.executable, "-m", "autocomp", "--version"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout.strip()) == (0, cli.__version__)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("search", "--hw is missing"),
        ("search --hw", "--hw needs a value"),
        ("serch --hw host_cpu", "search"),
        ("search --hw host_cpu extra", "'extra'"),
        ("search --hw host_cpu --budgett 4MB", "--budgett"),
        ("search --hw host_cpu --trials many", "--trials"),
        ("search --hw host_cpu --trials 0", "--trials: expected a whole number of at least 1, got 0"),
        ("search --hw host_cpu --trials -3", "got -3"),
        ("search --hw host_cpu --minutes 0", "--minutes"),
        ("search --hw host_cpu --minutes nan", "--minutes"),
        ("search --hw host_cpu --workers 0", "--workers"),
        ("search --hw host_cpu --seed -1", "--seed"),
        ("search --hw host_cpu --epochs -1", "--epochs"),
        ("search --hw host_cpu --budget 4quux", "'4quux'"),
        ("search --hw host_cpu --budget 0", "must be greater than 0"),
        ("search --hw host_cpu --budget -4MB", "must be greater than 0, got '-4MB'"),
        ("search --hw host_cpu --max-latency 2lightyears", "--max-latency"),
        ("search --hw host_cpu --max-memory 2lightyears", "--max-memory: expected a number with a unit"),
        ("search --hw host_cpu --max-memory -2MB", "--max-memory: must be greater than 0"),
        ("search --hw host_cpu --max-accuracy-drop 200", "--max-accuracy-drop"),
        ("search --hw host_cpu --controller tpee", "did you mean 'tpe'?"),
        ("search --hw host_cpu --data no/such/folder", "--data: no/such/folder does not exist"),
        ("search --hw host_cpu --data pyproject.toml", "--data"),
        ("hw show mobil_arm", "did you mean 'mobile_arm'?"),
        ("estimate --hw mobile_arm no.onnx", "there is no file no.onnx"),
        ("estimate --hw mobile_arm no.json", "there is no file no.json"),
        ("estimate --hw mobile_arm pyproject.toml", "expected an .onnx file or the .json file of a policy"),
        ("hw compare mobile_arm", "expected two devices or more, or a run directory, got mobile_arm"),
        ("hw compare mobile_arm no.onnx", "expected two devices or more, or a run directory, got mobile_arm"),
        ("hw compare mobile_arm mobile_arm", "expected different devices"),
        ("hw compare mobile_arm mobil_arm", "did you mean 'mobile_arm'?"),
        ("hw compare", "DEVICES"),
        ("hw show host_cpu --plot picture.png", "--plot: expected the name of an .html file, got picture.png"),
        ("hw show mobile_arm --kernel conv", "--kernel: expected a kernel as it is printed"),
        ("hw", None),
        ("verify no/such/run", "there is no run at no/such/run"),
        ("report .", "is not a run directory"),
        ("resume no/such/run", "there is no run"),
        ("compress --hw host_cpu --policy no/such.json", "--policy: cannot read no/such.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, expected, capsys, search):
    if expected is None:  # a group of verbs without a verb shows its help
        assert cli.main(arguments.split()) == 0
        return
    assert cli.main(arguments.split()) == 2
    assert expected in complaint(capsys)


def test_a_budget_with_a_space_is_one_line(capsys, search):
    assert cli.main(["search", "--hw", "host_cpu", "--budget", "4 quux"]) == 2
    assert "'4 quux'" in complaint(capsys)


def test_options_reach_the_search(search, tmp_path, capsys):
    run = fabricate(tmp_path / "run", trials=20, layers=6)
    search.act = lambda: run
    command = (
        "search --hw host_cpu --budget 4MiB --max-latency 500us --max-memory 2MB --strict "
        "--max-accuracy-drop 0.5 --controller evolution "
        f"--trials 7 --minutes 2.5 --seed 3 --workers 1 --epochs 0 --data {tmp_path} --out {tmp_path / 'new'} --json"
    )
    assert cli.main(command.split()) == 0
    asked = search.asked
    assert asked.budget == Budget(4_194_304, 0.5, 0.005, 2_000_000)
    assert asked.strict
    assert (asked.task, asked.controller, asked.trials, asked.minutes) == ("mnist", "evolution", 7, 2.5)
    assert (asked.seed, asked.workers, asked.epochs, asked.data, asked.out) == (3, 1, 0, tmp_path, tmp_path / "new")
    out, _ = capsys.readouterr()
    document = json.loads(out)  # --json: one document and nothing else
    assert document["run"] == str(run)
    assert {row["name"] for row in document["references"]} == {"float", "int8"}
    assert (run / "report.html").is_file()


def test_what_libraries_print_stays_out_of_the_document(search, tmp_path, capfd):
    def act():
        print("from Python")
        os.write(1, b"from C\n")
        return fabricate(tmp_path / "run", trials=12, layers=6)

    search.act = act
    assert cli.main(["search", "--hw", "host_cpu", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["status"] == "done"
    assert "from Python" in err
    assert "from C" in err


def test_an_interrupted_search_shows_what_it_has_and_exits_130(search, tmp_path, capsys):
    search.act = lambda: fabricate(tmp_path / "run", trials=12, layers=6, status="interrupted")
    assert cli.main(["search", "--hw", "host_cpu"]) == 130
    assert "report.html" in capsys.readouterr().out


class Wrapped(Exception):
    """As Ray hands a worker's error on: the worker's own is in `cause`."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a page of traceback\nfrom the worker")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (UserError("the network returns a tuple"), 2, "the network returns a tuple"),
        (RunError("every trial failed"), 1, "every trial failed"),
        (Wrapped(UserError("photo.jpg is truncated")), 2, "photo.jpg is truncated"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 2, "cannot write runs/x: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 2, "cannot write runs: Permission denied"),
    ],
)
def test_faults_that_a_user_can_read(error, code, expected, search, capsys):
    def act():
        raise error

    search.act = act
    assert cli.main(["search", "--hw", "host_cpu"]) == code
    assert expected in complaint(capsys)


def test_the_unexpected_is_one_line_and_a_log(search, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def act():
        raise ZeroDivisionError("a bug")

    search.act = act
    assert cli.main(["search", "--hw", "host_cpu"]) == 1
    line = complaint(capsys)
    assert "ZeroDivisionError: a bug" in line
    (log,) = tmp_path.glob("autocomp-*.log")
    assert str(log) in line
    assert "Traceback" in log.read_text()


def test_ctrl_c_before_there_is_anything_to_save(search):
    def act():
        raise KeyboardInterrupt

    search.act = act
    assert cli.main(["search", "--hw", "host_cpu"]) == 130


@pytest.mark.parametrize(("problem", "code"), [("", 0), ("size_bytes: 9, on disk 10", 1)])
def test_verify_exits_1_on_a_difference(problem, code, tmp_path, capsys, monkeypatch):
    run = fabricate(tmp_path / "run", trials=12, layers=6)
    fake = ModuleType("autocomp.verify")
    rows = [{"id": "3", "ok": not problem, "problem": problem, "file": "models/3.onnx", "limited": True}]
    fake.verify_run = lambda path, as_shipped: rows
    monkeypatch.setitem(sys.modules, "autocomp.verify", fake)
    assert cli.main(["verify", str(run), "--json"]) == code
    assert json.loads(capsys.readouterr().out)["differ"] == code
    assert cli.main(["verify", str(run)]) == code
    printed = capsys.readouterr().out
    assert (problem or "as recorded") in printed
    assert 'add_session_config_entry("session.x64quantprecision", "1")' in printed


def test_hw_list_as_json(capsys):
    assert cli.main(["hw", "list", "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert {"host_cpu", "mobile_arm"} <= set(names)


def test_hw_show_draws_the_kernel_that_was_asked_for(capsys, tmp_path):
    page = tmp_path / "latency.html"
    arguments = ["hw", "show", "mobile_arm", "--kernel", "conv *→96 @8x8 fp32", "--plot", str(page)]
    assert cli.main(arguments) == 0
    assert "conv *→96 @8x8 fp32: latency over channels" in capsys.readouterr().out
    assert page.stat().st_size > 0
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["curve"]["kernel"] == "conv *→96 @8x8 fp32"


def test_hw_show_of_a_machine_that_was_never_measured(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(["hw", "show", "host_cpu"]) == 0
    assert "autocomp profile host_cpu" in capsys.readouterr().out
    assert cli.main(["hw", "show", "host_cpu", "--plot", str(tmp_path / "latency.html")]) == 2
    assert "measure them first with autocomp profile host_cpu" in complaint(capsys)


ROW = "conv,int8,16,32,8,8,3,3,1,1,12.5,0.25\n"
HEADER = "op,precision,in_channels,out_channels,height,width,kernel_h,kernel_w,stride,groups,latency_us,spread_us\n"


@pytest.mark.parametrize("verb", ["hw show", "hw compare host_cpu", "estimate --hw"])
@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (None, "device.csv does not exist"),
        ("elsewhere", "leads out of its folder through a symbolic link"),
        (HEADER.replace(",groups", "") + ROW, "the header lacks groups"),
        (HEADER + ROW.replace("12.5", "nan"), "row 2: latency_us must be a number above 0, got 'nan'"),
        (HEADER + ROW.replace("12.5", "-12.5"), "row 2: latency_us must be a number above 0, got '-12.5'"),
        (HEADER + ROW + ROW, "row 3 repeats row 2"),
        (HEADER.replace("_us", "_ms") + ROW, "latencies are in ms (column latency_ms), but us is declared"),
        (HEADER + ROW[:-9], "cut off"),
        (HEADER, "has 0 rows where mobile_arm.yaml says 1"),
    ],
)
def test_a_table_with_a_fault_is_one_line(verb, table, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    text = (data_folder("hw_profiles") / "mobile_arm.yaml").read_text(encoding="utf-8")
    text, replaced = re.subn(r"^table: mobile_arm.csv\nrows: \d+$", "table: device.csv\nrows: 1", text, flags=re.M)
    assert replaced == 1
    (folder / "device.yaml").write_text(text)
    if table == "elsewhere":
        (tmp_path / "elsewhere.csv").write_text(HEADER + ROW)
        (folder / "device.csv").symlink_to(tmp_path / "elsewhere.csv")
    elif table is not None:
        (folder / "device.csv").write_text(table)
    assert cli.main([*verb.split(), "mine/device.yaml"]) == 2
    assert expected in complaint(capsys)


def test_output_into_a_closed_pipe_is_no_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        command = [sys.executable, "-m", "autocomp", "hw", "show", "mobile_arm"]
        result = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (141, "")
