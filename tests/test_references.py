"""A search whose float or int8 reference fails goes on, and whoever reads the run is told which and why."""

import csv
import io
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from autocomp.commands.run import report, verify
from autocomp.display import QuietDisplay, SearchState
from autocomp.errors import RunError, UserError
from autocomp.export.score import Scorer
from autocomp.journal import Entry
from autocomp.outcome import Candidate
from autocomp.report.figures import compared_with
from autocomp.report.html import render
from autocomp.report.svg import front_svg
from autocomp.report.table import as_document, print_front
from autocomp.rundir import read_run
from autocomp.schedule import Report
from autocomp.search import run_search
from autocomp.settings import SearchSettings
from autocomp.trial import TrialRunner
from autocomp.verify import verify_run

TASK = """
import numpy as np, torch
from torch import nn
from autocomp import Task

def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)
    ).eval()

def splits(labels):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 64, 1, 8, 8)).astype(np.float32)
    return [(each, rng.integers(0, 4, 64)) if labels else each for each in images]

def task():
    train, validation, test = splits(True)
    return Task(network(), train=train, validation=validation, test=test, name="task")

def unlabelled():
    train, validation, test = splits(False)
    return Task(network(), train=train, validation=validation, test=test, name="unlabelled")
"""


class Notes(QuietDisplay):
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.on_front: list[str] = []

    def trial(self, entry: Entry, state: SearchState) -> None:
        self.on_front += [str(entry.id)] * state.on_front

    def note(self, text: str) -> None:
        self.texts.append(text)


def in_this_process(schedule, bench, on_result, *, targets, seed, workers, address, epochs):
    """Trials one after the other, without Ray."""
    with TrialRunner(bench, targets) as runner, TemporaryDirectory() as folder:
        while isinstance(candidate := schedule.next(), Candidate):
            result = runner.run(candidate.policy, seed, Path(folder, str(candidate.id)), epochs=0)
            files = {suffix: path.read_bytes() for suffix, path in result.files.items()}
            on_result(candidate.id, Report(result.artifacts, 0.1, details=result.details), files)


def refusing(failing: frozenset[str]):
    """`Scorer.score` that does not run the files of these names."""
    score = Scorer.score

    def refuse(self, model, *arguments, **keywords):
        if model.stem in failing:
            raise RunError(f"{model.name} crashed the runtime: <signal 4>")
        return score(self, model, *arguments, **keywords)

    return refuse


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    """(references that fail, function of the task) → run directory, notes. Searched once for the same arguments."""

    @cache
    def run(failing: frozenset[str], function: str = "task") -> tuple[Path, list[str]]:
        folder, display = tmp_path_factory.mktemp("references"), Notes()
        (folder / "mine.py").write_text(TASK)
        settings = SearchSettings(
            hw="mobile_arm", task=f"{folder}/mine.py:{function}", trials=4, workers=1, out=folder / "run",
            controller="random",
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(Scorer, "score", refusing(failing))
            patch.setattr("autocomp.ray_tune.run_trials", in_this_process)
            found = run_search(settings, display)
        # Whoever watches was told of each point of the front when it was found.
        assert {point.name for point in read_run(found).front} <= set(display.on_front)
        return found, display.texts

    return lambda failing, function="task": run(frozenset(failing), function)


def text_of(run: Path) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_front(read_run(run), console)
    return console.file.getvalue()


@pytest.mark.parametrize("failing", [{"int8"}, {"float"}, {"float", "int8"}], ids=lambda names: "+".join(sorted(names)))
def test_a_failing_reference_is_a_row_with_its_reason(search, failing):
    run, notes = search(failing)
    data = read_run(run)
    assert len(data.front) >= 1
    assert set(data.references) == {"float", "int8"} - failing
    assert set(data.failed) == failing
    rows = {row["name"]: row for row in json.loads((run / "references.json").read_text())}
    assert set(rows) == {"float", "int8"}
    for name in failing:
        reason = f"{name}.onnx crashed the runtime: <signal 4>"
        assert rows[name] == {"name": name, "reason": reason}
        assert f"{name}: failed: {reason}" in notes
        assert f"{name}: failed: {reason}" in text_of(run)
        page = render(data)
        assert f"failed: {name}.onnx crashed the runtime: &lt;signal 4&gt;" in page
        assert "<signal 4>" not in page
        assert {"name": name, "reason": reason} in as_document(data)["failed_references"]
        assert not list((run / "models").glob(f"{name}.*"))
    assert front_svg(data).startswith("<svg")
    # What is left over is compared with.
    ratio = data.smaller(data.front[0])
    assert (ratio is None) == (failing == {"float", "int8"})
    if failing != {"float", "int8"}:
        (left,) = data.references.values()
        assert ratio == pytest.approx(left.size_bytes / data.front[0].size_bytes)


def test_without_a_float_file_torch_says_how_accurate_the_network_is(search):
    run, notes = search({"float"})
    module: dict[str, Any] = {}
    exec(TASK, module)
    _, (inputs, labels), _ = module["splits"](True)
    with torch.no_grad():
        expected = float((module["network"]()(torch.from_numpy(inputs)).argmax(1).numpy() == labels).mean())
    assert yaml.safe_load((run / "run.yaml").read_text())["float_accuracy"] == pytest.approx(expected)
    with (run / "front.csv").open(newline="") as handle:
        assert {float(row["float_accuracy"]) for row in csv.DictReader(handle)} == {expected}
    assert any("torch's" in note for note in notes)
    assert compared_with(read_run(run)) == "Ratios are against plain int8: the float file failed."


@pytest.mark.parametrize(("failing", "function"), [({"int8"}, "task"), ({"float"}, "task"), ({"float"}, "unlabelled")])
def test_verify_goes_on_without_it(search, capsys, failing, function):
    """Where labels are the float network's answers, torch gives them for want of a float file."""
    run, _ = search(failing, function)
    rows = verify_run(run)
    (name,) = failing
    (row,) = (row for row in rows if row["id"] == name)
    assert row["ok"]
    assert "crashed the runtime" in row["note"]
    assert {row["id"] for row in rows} > {"float", "int8"}
    assert all(row["ok"] for row in rows), rows
    assert verify(run) == 0
    printed = capsys.readouterr().out
    assert f"{name}: failed: {name}.onnx crashed the runtime" in printed
    assert f"{len(rows) - 1} files, 0 differ" in printed
    assert report(run) == 0
    assert f"{name}: failed: {name}.onnx" in " ".join(capsys.readouterr().out.split())


def test_what_the_user_can_mend_still_ends_the_run(monkeypatch, tmp_path):
    def refuse(self, *arguments, **keywords):
        raise UserError("the device's files cannot express this network")

    monkeypatch.setattr("autocomp.results.TrialRunner", refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(TASK)
    with pytest.raises(UserError, match="cannot express"):
        run_search(SearchSettings(hw="mobile_arm", task="mine.py:task", out=tmp_path / "run"), Notes())
    assert not (tmp_path / "run").exists()
