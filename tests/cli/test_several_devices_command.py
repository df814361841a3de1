"""Several devices on the command line: what reaches the search, and what is refused in one line."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from fabricated import fabricate

from autocomp import cli
from autocomp.budget import Budget
from autocomp.resources import data_folder
from autocomp.settings import SearchSettings


class FakeSearch(ModuleType):
    """Stands in for autocomp.search."""

    def __init__(self, run: Path) -> None:
        super().__init__("autocomp.search")
        self.run, self.asked = run, None

    def run_search(self, settings: Any, display: Any) -> Path:
        self.asked = settings
        return self.run


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Run a command and return the settings that reached the search."""
    fake = FakeSearch(fabricate(tmp_path / "run", trials=12, layers=6))
    monkeypatch.setitem(sys.modules, "autocomp.search", fake)

    def ask(command: str) -> Any:
        assert cli.main(command.split()) == 0
        return fake.asked

    return ask


def refused(command: str, capsys) -> str:
    """The one line on standard error."""
    assert cli.main(command.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("autocomp: ")
    assert len(err.splitlines()) == 1, err
    return err


def test_bounds_of_each_device(asked):
    settings = asked(
        "search --hw mobile_arm,host_cpu --budget mobile_arm=4MB,host_cpu=500kB --max-latency host_cpu=2ms "
        "--max-memory 1MB --max-accuracy-drop 0.5"
    )
    assert settings.profiles == ("mobile_arm", "host_cpu")
    assert settings.budget == settings.budget_of("mobile_arm") == Budget(4_000_000, None, 0.005, 1_000_000)
    assert settings.budget_of("host_cpu") == Budget(500_000, 2.0, 0.005, 1_000_000)


def test_one_bound_holds_for_each(asked):
    settings = asked("search --hw raspberry_pi_4,mobile_arm,cortex_a53 --budget 4MB")
    for name in settings.profiles:
        assert settings.budget_of(name) == Budget(4_000_000)


def test_one_device_is_asked_for_as_ever(asked):
    settings = asked("search --hw mobile_arm --budget 4MB")
    assert (settings.hw, settings.budget, settings.device_budgets) == ("mobile_arm", Budget(4_000_000), {})


def test_a_profile_file_is_called_by_the_name_in_it(asked, tmp_path):
    text = (data_folder("hw_profiles") / "cortex_a53.yaml").read_text()
    path = tmp_path / "board.yaml"
    path.write_text(text.replace("name: cortex_a53", "name: my_board"))
    settings = asked(f"search --hw mobile_arm,{path} --budget my_board=1MB")
    assert settings.budget == Budget()
    assert settings.budget_of("my_board") == Budget(1_000_000)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("search --hw mobile_arm,mobile_arm", "--hw: expected different devices, got mobile_arm twice"),
        ("search --hw mobile_arm,,host_cpu", "--hw: expected names with a comma between them"),
        (
            "search --hw mobile_arm,host_cpu --budget npu_ethos=4MB",
            "--budget: npu_ethos is not searched for; expected one of mobile_arm, host_cpu",
        ),
        (
            "search --hw mobile_arm --max-latency host_cpu=2ms",
            "--max-latency: host_cpu is not searched for; expected one of mobile_arm",
        ),
        ("search --hw mobile_arm,host_cpu --max-memory host_cpu=much", "--max-memory: expected a number with a unit"),
        ("search --hw mobile_arm,hots_cpu", "unknown hardware profile 'hots_cpu'"),
        ("estimate --hw mobile_arm,host_cpu", "--hw: estimate takes one device, got mobile_arm,host_cpu"),
        ("compress --hw mobile_arm,host_cpu --policy p.json", "--hw: compress takes one device"),
        ("hw compare mobile_arm", "expected two devices or more, or a run directory, got mobile_arm"),
        ("hw compare mobile_arm --hw host_cpu", "--hw and --svg are for a run directory, and mobile_arm is none"),
        ("hw compare empty", "empty is not a run directory: it has no run.yaml"),
        ("hw compare empty mobile_arm", "hw compare RUN: a run says itself which network it compressed"),
        ("hw compare empty --task mnist --seed 3", "hw compare RUN: a run says itself which network it compressed"),
        ("hw compare empty --svg picture.png", "--svg: expected the name of an .svg file, got picture.png"),
        ("hw compare empty --hw mobile_arm,mobile_arm", "--hw: expected different devices, got mobile_arm twice"),
    ],
)
def test_what_is_refused(command, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert expected in refused(command, capsys)
    assert not [*Path().glob("runs/*/")]


def test_a_run_of_which_nothing_is_complete(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = fabricate(Path("run"), trials=0, layers=6) / "run.yaml"
    assert "run.yaml does not hold the settings of a run" in refused("hw compare run", capsys)
    recorded = yaml.safe_load(settings.read_text()) | {"settings": SearchSettings("mobile_arm").to_dict()}
    settings.write_text(yaml.safe_dump(recorded))
    assert "run has no complete candidate to compare" in refused("hw compare run", capsys)
