"""The stopwatch: which rounds count, what is written when, and that it runs where this package is not."""

import ast
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_bundle

from autocomp.hardware import runner
from autocomp.hardware.kernel_models import kernel_model
from autocomp.hardware.runner import (
    FEWEST_ROUNDS,
    MOST_ROUNDS,
    BoundModel,
    Chains,
    Fault,
    ResultsFile,
    keeps_blocks,
    time_in_rounds,
)
from autocomp.kernel import Kernel


class Stopwatch(BoundModel):
    """A model that takes the given microseconds, round by round, and then the last one for ever; 1.5 times as long
    cold, where it is called once."""

    def __init__(self, *times: float) -> None:
        self._times = itertools.chain(times, itertools.repeat(times[-1]))
        self._cold = 1.5 * min(times)

    def fastest_us(self, calls: int) -> float:
        return self._cold if calls == 1 else next(self._times)


def chains(*long: float, more: int = 4) -> Chains:
    """A chain whose rounds take `long`; the short one always takes 10."""
    return Chains(Stopwatch(10.0), Stopwatch(*long), more)


def test_the_third_fastest_round_counts_and_the_slope_is_per_copy() -> None:
    (result,) = time_in_rounds({"k": chains(90, 50, 50.6, 95, 50.3, 99, 99, 99)}, chains(30.0))
    key, timing, reference = result
    assert key == "k"
    assert timing == pytest.approx(((50.6 - 10) / 4, (50.6 - 50) / 2 / 4, 8, 1.5 * (50 - 10) / 4))
    assert reference.us == (30 - 10) / 4


def test_there_are_more_rounds_until_the_fastest_agree() -> None:
    restless = [100.0 / 1.02**i for i in range(20)]
    (result,) = time_in_rounds({"k": chains(*restless, 60.0)}, chains(30.0))
    assert result[1].rounds == 20 + 3
    assert result[1].us == (60 - 10) / 4


def test_what_never_settles_comes_at_the_end_with_its_spread() -> None:
    never = [1000.0 / 1.03**i for i in range(100)]
    found = list(time_in_rounds({"calm": chains(50.0), "restless": chains(*never)}, chains(30.0)))
    assert [key for key, _, _ in found] == ["calm", "restless"]
    assert [timing.rounds for _, timing, _ in found] == [FEWEST_ROUNDS, MOST_ROUNDS]
    assert found[1][1].spread_us > 0.01 * found[1][1].us


def test_no_result_before_the_reference_has_settled() -> None:
    restless = [100.0 / 1.02**i for i in range(15)]
    ((_, timing, reference),) = time_in_rounds({"k": chains(50.0)}, chains(*restless, 70.0))
    assert timing.rounds == reference.rounds > FEWEST_ROUNDS


def test_past_the_deadline_it_ends_with_what_there_is() -> None:
    never = [1000.0 / 1.03**i for i in range(100)]
    clock = iter(range(1000))
    found = list(time_in_rounds({"k": chains(*never)}, chains(30.0), deadline=3, clock=lambda: next(clock)))
    assert [timing.rounds for _, timing, _ in found] == [FEWEST_ROUNDS + 3]


def test_it_is_python_3_9_and_imports_numpy_and_onnxruntime_only() -> None:
    tree = ast.parse(Path(runner.__file__).read_text(encoding="utf-8"), feature_version=(3, 9))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime"}


def test_integer_images_are_in_no_blocks_and_float_ones_are_where_the_processor_has_such_kernels() -> None:
    assert not keeps_blocks(kernel_model(Kernel("conv", "int8", 32, 32, 16, 16)))
    if platform.machine().lower() in ("x86_64", "amd64"):
        assert keeps_blocks(kernel_model(Kernel("conv", "fp32", 32, 32, 16, 16)))


# --- the results file ---------------------------------------------------------------------------------------------

HEADER = {"bundle": "b", "cpu": "c", "date": "2026-11-25"}


def test_a_line_that_was_cut_off_is_measured_again_and_the_others_are_not(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    file = ResultsFile(path, HEADER)
    for kernel in "ab":
        file.add({"kernel": kernel, "us": 1.0})
    file.close()
    path.write_bytes(path.read_bytes()[:-5])
    again = ResultsFile(path, {**HEADER, "date": "2026-11-26"})
    assert again.done == {"a"}
    again.add({"kernel": "b", "us": 2.0})
    again.close()
    assert [json.loads(line).get("kernel") for line in path.read_text().splitlines()] == [None, "a", "b"]


def test_a_row_is_on_the_disk_at_once(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path / "r", HEADER)
    file.add({"kernel": "a"})
    assert (tmp_path / "r").read_text().splitlines()[1] == '{"kernel": "a"}'
    file.close()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"bundle": "other", "cpu": "c"}\n', "with bundle 'other', here it is 'b'"),
        (b'{"bundle": "b", "cpu": "faster"}\n', "with cpu 'faster'"),
        (b'{"bundle": "b"}\n', "damaged"),
        (b"rubbish\n", "damaged"),
        (b'[1]\n{"kernel": "a"}\n', "damaged"),
        (json.dumps(HEADER).encode() + b"\n7\n", "damaged"),
    ],
)
def test_results_of_something_else_are_refused_unless_fresh(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(content)
    with pytest.raises(Fault, match=expected):
        ResultsFile(path, HEADER)
    assert path.read_bytes() == content
    ResultsFile(path, HEADER, fresh=True).close()
    assert json.loads(path.read_text()) == HEADER


# --- a bundle on a board --------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return small_bundle.make(tmp_path / "bundle")


def test_a_bundle_runs_without_this_package(bundle: Path) -> None:
    assert (bundle / "run.py").read_bytes() == Path(runner.__file__).read_bytes()
    said = small_bundle.run(bundle).stdout
    header, rows = small_bundle.results(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert header["bundle"] == manifest["bundle"]
    assert [row["kernel"] for row in rows if "error" in row] == []
    assert {row["kernel"] for row in rows} == {entry["kernel"] for entry in manifest["kernels"]}
    assert all(row["us"] > 0 and row["reference_us"] > 0 and row["rounds"] >= FEWEST_ROUNDS for row in rows)
    assert f"{len(rows)} of {len(rows)} kernels" in said


def test_killed_it_goes_on_and_measures_nothing_twice(bundle: Path) -> None:
    many = [small_bundle.Kernel("conv", "int8", 8 * i, 8 * o, 12, 12, 3, 3) for i in range(1, 9) for o in range(1, 9)]
    small_bundle.make(bundle, many)
    process = subprocess.Popen([sys.executable, "-I", str(bundle / "run.py")], stdout=subprocess.DEVNULL)
    path = bundle / "results.jsonl"
    deadline = time.monotonic() + 120
    while not path.exists() or len(path.read_bytes().splitlines()) < 10:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    whole = path.read_bytes().rpartition(b"\n")[0].splitlines()
    assert len(whole) < 1 + len(many), "killed too late to prove anything"
    small_bundle.run(bundle, "--resume")
    lines = path.read_bytes().splitlines()
    assert lines[: len(whole)] == whole
    _, rows = small_bundle.results(bundle)
    assert len(rows) == len({row["kernel"] for row in rows}) == len(many)
    assert "64 kernels are measured already" in small_bundle.run(bundle).stdout
    assert path.read_bytes().splitlines() == lines


def test_a_kernel_that_the_runtime_refuses_is_recorded_and_the_others_are_measured(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    for layout in ("plain", "blocked"):
        manifest["kernels"][1][layout] = ["no such model"] * 2
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    small_bundle.run(bundle)
    _, rows = small_bundle.results(bundle)
    assert [row["kernel"] for row in rows if "error" in row] == [manifest["kernels"][1]["kernel"]]
    assert len(rows) == len(manifest["kernels"])


def test_when_the_time_is_up_it_says_so_by_its_exit_code(bundle: Path) -> None:
    many = [small_bundle.Kernel("conv", "fp32", 8 * i, 32, 12, 12, 3, 3) for i in range(1, 60)]
    small_bundle.make(bundle, many)
    small_bundle.run(bundle, "--minutes", "0.00001", code=3)
    _, rows = small_bundle.results(bundle)
    assert 0 < len(rows) < len(many)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("manifest.json", b"{", "manifest.json is missing or damaged"),
        ("manifest.json", b'{"format": 2}', "format 2"),
        ("kernels.zip", b"PK", "kernels.zip is missing or damaged"),
        ("results.jsonl", b"{}\n{}\n", "damaged"),
    ],
)
def test_a_damaged_bundle_is_one_line(bundle: Path, name: str, content: bytes, expected: str) -> None:
    (bundle / name).write_bytes(content)
    said = small_bundle.run(bundle, code=2).stderr
    assert expected in said and said.count("\n") == 1


def test_bad_arguments_are_one_line(bundle: Path) -> None:
    for arguments in (["--minutes", "-1"], ["--resume", "--fresh"], ["--minutes", "nan"]):
        assert "expected --minutes above 0" in small_bundle.run(bundle, *arguments, code=2).stderr
