"""The table reader: what was written is read back; each fault is one line that names the file and the row."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocomp.errors import UserError
from autocomp.hardware.table import Latency, LatencyTable
from autocomp.kernel import OPS, Kernel

HEADER = "op,precision,in_channels,out_channels,height,width,kernel_h,kernel_w,stride,groups,latency_us,spread_us\n"
ROW = "conv,int8,16,32,8,8,3,3,1,1,12.5,0.25\n"
OTHER = "add,fp32,16,16,8,8,1,1,1,1,1.5,\n"
GOOD = HEADER + ROW + OTHER

sizes = st.integers(1, 4096)
kernels = st.builds(
    Kernel, st.sampled_from(OPS), st.sampled_from(["fp32", "int8"]), sizes, sizes, sizes, sizes,
    st.integers(1, 11), st.integers(1, 11), st.integers(1, 4),
)  # fmt: skip
positive = st.floats(1e-6, 1e9)
latencies = st.builds(Latency, positive, st.none() | st.floats(0, 1e9), st.none() | st.integers(1, 10_000))


def test_a_table_holds_kernels_with_latencies(tmp_path: Path) -> None:
    path = tmp_path / "device.csv"
    path.write_text(GOOD)
    table = LatencyTable.read(path)
    assert dict(table) == {
        Kernel("conv", "int8", 16, 32, 8, 8, 3, 3): Latency(12.5, 0.25),
        Kernel("add", "fp32", 16, 16, 8, 8): Latency(1.5),
    }


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(kernels, latencies, max_size=8))
def test_what_was_written_is_read_back(rows: dict[Kernel, Latency]) -> None:
    table = LatencyTable(rows)
    again = LatencyTable.parse(table.to_csv())
    assert dict(again) == rows
    assert again.digest == table.digest


def test_the_order_of_rows_does_not_change_the_digest() -> None:
    assert LatencyTable.parse(HEADER + ROW + OTHER).digest == LatencyTable.parse(HEADER + OTHER + ROW).digest


def test_milliseconds_are_read_where_they_are_declared() -> None:
    table = LatencyTable.parse(GOOD.replace("_us", "_ms"), unit="ms")
    assert table[Kernel("conv", "int8", 16, 32, 8, 8, 3, 3)] == Latency(12500.0, 250.0)


FAULTS = {
    "empty": ("", "is empty"),
    "missing column": (GOOD.replace(",stride", "").replace(",1,1,12.5", ",1,12.5"), "lacks stride"),
    "unknown column": (GOOD.replace("groups", "group"), "lacks groups"),
    "extra column": (GOOD.replace("spread_us\n", "spread_us,watts\n"), "'watts'"),
    "column twice": (GOOD.replace("spread_us\n", "spread_us,spread_us\n"), "twice"),
    "other unit": (GOOD.replace("_us", "_ms"), "in ms"),
    "NaN": (GOOD.replace("12.5", "nan"), "row 2: latency_us must be a number above 0, got 'nan'"),
    "infinite": (GOOD.replace("12.5", "inf"), "row 2: latency_us"),
    "overflow": (GOOD.replace("12.5", "1e999"), "row 2: latency_us"),
    "negative": (GOOD.replace("12.5", "-12.5"), "row 2: latency_us"),
    "slower than any kernel": (GOOD.replace("12.5", "1e10"), "row 2: latency must be above 0 and at most 1e+09 us"),
    "zero": (GOOD.replace("12.5", "0"), "row 2: latency_us"),
    "no latency": (GOOD.replace("12.5", ""), "row 2: latency_us"),
    "negative spread": (GOOD.replace("0.25", "-0.25"), "row 2: spread_us"),
    "text for a number": (GOOD.replace("16,16", "16,many"), "row 3: out_channels must be a whole number"),
    "fraction of a channel": (GOOD.replace("16,32", "16.5,32"), "row 2: in_channels"),
    "no channels": (GOOD.replace("16,32", "0,32"), "row 2: in_channels"),
    "huge": (GOOD.replace("16,32", "1" * 5000 + ",32"), "row 2: in_channels"),
    "unknown op": (GOOD.replace("add", "subtract"), "row 3: op must be one of"),
    "unknown precision": (GOOD.replace("int8", "int4"), "row 2: precision must be one of fp32, "),
    "groups": (GOOD.replace("3,3,1,1", "3,3,1,5"), "row 2: 5 groups do not divide"),
    "duplicate": (GOOD + ROW, "row 4 repeats row 2"),
    "cut off in a row": (GOOD[:-15], "cut off"),
    "cut off in a number": (GOOD[: GOOD.index("2.5")], "cut off"),
    "missing field": (GOOD.replace(",12.5", ""), "row 2 has 11 fields"),
    "open quote": (GOOD.replace("add", '"add'), "not a CSV file"),
    "zero byte": (GOOD.replace("add", "a\0dd"), "row 3"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line(fault: str, tmp_path: Path) -> None:
    text, said = FAULTS[fault]
    path = tmp_path / "device.csv"
    path.write_bytes(text.encode())
    with pytest.raises(UserError) as caught:
        LatencyTable.read(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        LatencyTable.read(tmp_path / "none.csv")
    with pytest.raises(UserError, match="cannot be read"):
        LatencyTable.read(tmp_path)
    (tmp_path / "large.csv").write_bytes(b" " * 20_000_001)
    with pytest.raises(UserError, match="larger than 20,000,000 bytes"):
        LatencyTable.read(tmp_path / "large.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        LatencyTable.read(tmp_path / "binary.csv")


def test_a_byte_order_mark_and_other_line_ends_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "device.csv").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert LatencyTable.read(tmp_path / "device.csv").digest == LatencyTable.parse(GOOD).digest


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.csv").write_text(GOOD)
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "device.csv").symlink_to(tmp_path / "elsewhere.csv")
    with pytest.raises(UserError, match="symbolic link"):
        LatencyTable.read(folder / "device.csv")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.characters(), st.booleans())
def test_a_mutated_table_is_read_or_refused(place: int, character: str, replace: bool) -> None:
    with contextlib.suppress(UserError):  # anything else is a traceback that a user would see
        LatencyTable.parse(GOOD[:place] + character + GOOD[place + replace :])


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "device.csv"
    LatencyTable.parse(GOOD).write(path)
    LatencyTable.parse(HEADER + ROW).write(path)
    assert len(LatencyTable.read(path)) == 1
    assert list(path.parent.iterdir()) == [path]
