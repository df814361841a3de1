"""Results of a board become a profile; what is damaged, incomplete or of something else is said in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import small_bundle
from damage import damaged
from small_bundle import row, write_results

from autocomp.errors import UserError
from autocomp.hardware.profile import find_profile
from autocomp.hardware.profiling.bundle import key_of
from autocomp.hardware.profiling.chains import IN_NETWORK_US, REFERENCE
from autocomp.hardware.profiling.results import import_results, read_results

KEY = key_of(small_bundle.KERNELS[0])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return small_bundle.make(tmp_path / "bundle")


def test_a_profile_is_written_that_a_search_can_use(bundle: Path, tmp_path: Path) -> None:
    write_results(bundle)
    imported = import_results(bundle, "my_board", tmp_path / "out")
    profile = find_profile(str(tmp_path / "out" / "my_board.yaml"))
    assert (profile.name, profile.core, profile.runtime.version, profile.threads) == (
        "my_board", "Cortex-A72", "1.30.1", 1
    )  # fmt: skip
    assert str(profile.provenance).startswith("measured: ONNX Runtime 1.30.1 kernels measured on Cortex-A72, 1 thread")
    assert profile.provenance.date is not None and profile.provenance.date.isoformat() == "2026-11-25"
    assert profile.executes == find_profile("mobile_arm").executes
    assert profile.calibration == {"relative_error": find_profile("host_cpu").calibration["relative_error"]}
    assert set(profile.latencies) == {*small_bundle.KERNELS, REFERENCE}
    for index, kernel in enumerate(small_bundle.KERNELS):
        assert profile.latencies[kernel].latency_us == pytest.approx(10.0 + index + IN_NETWORK_US)
    assert imported.results.complete
    assert "complete" not in str(imported)


def test_the_results_file_alone_is_enough(bundle: Path, tmp_path: Path) -> None:
    alone = tmp_path / "from_the_board.jsonl"
    write_results(bundle).rename(alone)
    assert len(import_results(alone, "my_board", tmp_path).results.table) == len(small_bundle.KERNELS) + 1


def test_what_was_measured_at_a_lower_clock_is_scaled(bundle: Path) -> None:
    keys = [key_of(kernel) for kernel in small_bundle.KERNELS[:3]]
    slowed = 2.0 * (20.0 + IN_NETWORK_US) - IN_NETWORK_US
    write_results(bundle, [row(keys[0], 9.0), row(keys[1], 20.0, slowed), row(keys[2], 9.0, 20.2)])
    table = read_results(bundle).table
    latencies = [table[kernel].latency_us for kernel in small_bundle.KERNELS[:3]]
    assert latencies == pytest.approx([9 + IN_NETWORK_US, (20 + IN_NETWORK_US) / 2, 9 + IN_NETWORK_US])
    assert table[REFERENCE].latency_us == pytest.approx(20 + IN_NETWORK_US)


def test_incomplete_results_are_imported_and_called_so(bundle: Path, tmp_path: Path) -> None:
    path = write_results(bundle)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:20])  # cut off in the fourth row
    imported = import_results(bundle, "my_board", tmp_path)
    assert imported.document()["measured"] == 3
    assert not imported.results.complete
    assert "3 of 12 kernels" in str(imported) and "incomplete" in str(imported)
    assert len(find_profile(str(imported.profile)).latencies) == 4


def test_kernels_that_the_board_refuses_are_counted(bundle: Path) -> None:
    rows: list[dict[str, Any]] = [row(key_of(kernel), 5.0) for kernel in small_bundle.KERNELS[1:]]
    results = read_results(write_results(bundle, [{"kernel": KEY, "error": "Not implemented"}, *rows]))
    assert (results.refused, results.measured, results.complete) == (1, len(rows), True)


@pytest.mark.parametrize(
    ("rows", "changes", "expected"),
    [
        (None, {"format": 2}, "line 1: format"),
        (None, {"cpu": ""}, "line 1: cpu"),
        (None, {"cpu": "x" * 5000}, "line 1: cpu"),
        (None, {"cpu": "a\nb"}, "line 1: cpu"),
        (None, {"surprise": 1}, "line 1: surprise"),
        (None, {"kernels": 2}, "12 rows of a bundle with 2 kernels"),
        (None, {"date": "yesterday"}, "line 1: date"),
        (None, {"onnxruntime": "installed"}, "line 1: onnxruntime"),
        (None, {"base": "mobile_leg"}, "did you mean 'mobile_arm'"),
        ([], {}, "no kernel was measured yet"),
        ([row(KEY, float("nan"))], {}, "line 2: us"),
        ([row(KEY, 5.0), row(KEY, 5.0)], {}, "repeats"),
        ([row(KEY, 5.0, spread_us=-1.0)], {}, "line 2: spread_us"),
        ([row(KEY, 5.0, reference_us=0.0)], {}, "line 2: reference_us"),
        ([row(KEY, 5.0, rounds=0)], {}, "line 2: rounds"),
        ([row(KEY, 5.0, rounds="9")], {}, "line 2: rounds"),
        ([row("conv,int8,8", 5.0)], {}, "fields"),
        ([row(KEY.replace("conv", "cone"), 5.0)], {}, "op must be one of"),
        ([row(KEY + ",=1+1", 5.0)], {}, "fields"),
        ([{"kernel": KEY}], {}, "line 2: us"),
        ([{"kernel": KEY, "error": 5}], {}, "line 2: error"),
    ],
)
def test_faults_are_one_line_that_names_the_place(
    rows: list[dict[str, Any]] | None, changes: dict[str, Any], expected: str, bundle: Path, tmp_path: Path
) -> None:
    write_results(bundle, rows, **changes)
    with pytest.raises(UserError, match=expected) as caught:
        import_results(bundle, "my_board", tmp_path / "out")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "nothing was measured yet"),
        (b"{", "nothing was measured yet"),
        (b"rubbish\n", "line 1"),
        (b"\xff\xfe\n", "UTF-8"),
        (b"[" * 100_000 + b"\n", "line 1"),
        (b"null\n", "line 1"),
    ],
)
def test_what_is_no_results_file_is_refused(content: bytes, expected: str, bundle: Path) -> None:
    (bundle / "results.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=expected):
        read_results(bundle)


def test_results_of_another_bundle_are_refused(bundle: Path, tmp_path: Path) -> None:
    other = small_bundle.make(tmp_path / "other", small_bundle.KERNELS[:2])
    (bundle / "results.jsonl").write_bytes(write_results(other).read_bytes())
    with pytest.raises(UserError, match="of another bundle"):
        read_results(bundle)


def test_missing_results_say_what_to_do(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run `python3 run\.py` there"):
        read_results(bundle)
    with pytest.raises(UserError, match="does not exist"):
        read_results(tmp_path / "nowhere.jsonl")


def test_an_import_replaces_an_earlier_one_and_nothing_else(bundle: Path, tmp_path: Path) -> None:
    write_results(bundle)
    import_results(bundle, "my_board", tmp_path)
    write_results(bundle, cpu="Cortex-A76")
    import_results(bundle, "my_board", tmp_path)
    assert find_profile(str(tmp_path / "my_board.yaml")).core == "Cortex-A76"
    (tmp_path / "mine.yaml").write_text("by hand")
    (tmp_path / "mine_too.csv").write_text("by hand")
    for name in ("mine", "mine_too"):
        with pytest.raises(UserError, match="choose another --name"):
            import_results(bundle, name, tmp_path)
    assert (tmp_path / "mine.yaml").read_text() == (tmp_path / "mine_too.csv").read_text() == "by hand"


@pytest.mark.parametrize("name", ["", "My Board", "../up", "a" * 65, "x.yaml"])
def test_names_that_are_none(name: str, bundle: Path, tmp_path: Path) -> None:
    write_results(bundle)
    with pytest.raises(UserError, match="--name: expected lower-case letters"):
        import_results(bundle, name, tmp_path)


def test_what_a_board_really_measured_is_read_back(bundle: Path) -> None:
    small_bundle.run(bundle)
    results = read_results(bundle)
    _, rows = small_bundle.results(bundle)
    assert results.complete and results.measured == len(small_bundle.KERNELS)
    fastest = min(entry["reference_us"] for entry in rows)
    assert results.table[REFERENCE].latency_us == pytest.approx(fastest + IN_NETWORK_US)
    assert json.loads((bundle / "manifest.json").read_text())["bundle"] == results.facts.bundle


def test_damaged_results_are_imported_or_refused_in_one_line(bundle: Path, tmp_path: Path) -> None:
    content = write_results(bundle).read_bytes()
    imported = 0
    for seed in range(1000):
        path = tmp_path / "results.jsonl"
        path.write_bytes(damaged(content, seed))
        try:
            import_results(path, "my_board", tmp_path / "out")
            find_profile(str(tmp_path / "out" / "my_board.yaml")).latencies  # what was written can be read
            imported += 1
        except UserError as error:
            said = str(error).replace(str(tmp_path), "")
            assert len(said) < 700 and all(character.isprintable() for character in said), (seed, said)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    assert 0 < imported < 900
