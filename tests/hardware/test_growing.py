"""A table that grows: rows are on the disk at once, at one speed, whoever else writes."""

import multiprocessing
from pathlib import Path

import pytest

from autocomp.errors import UserError
from autocomp.hardware.profiling.chains import REFERENCE
from autocomp.hardware.profiling.growing import GrowingTable, at_one_speed
from autocomp.hardware.table import Latency, LatencyTable
from autocomp.kernel import Kernel

KERNELS = [Kernel("conv", "int8", 8 * i, 8, 8, 8) for i in range(1, 41)]


def test_each_row_is_on_the_disk_as_soon_as_it_is_added(tmp_path: Path) -> None:
    growing = GrowingTable(tmp_path / "new" / "table.csv")
    for count, kernel in enumerate(KERNELS[:5], start=1):
        growing.add(kernel, Latency(float(count), 0.1, 9), 6.0)
        on_disk = LatencyTable.read(growing.path)
        assert on_disk == growing.table
        assert on_disk[kernel] == Latency(float(count), 0.1, 9)
    assert growing.table[REFERENCE] == Latency(6.0)


def test_rows_are_appended_and_the_file_is_not_written_anew_each_time(tmp_path: Path) -> None:
    growing = GrowingTable(tmp_path / "table.csv")
    growing.add(KERNELS[0], Latency(1.0), 6.0)
    before = growing.path.stat().st_ino
    for kernel in KERNELS[1:]:
        growing.add(kernel, Latency(1.0), 6.1)
    assert growing.path.stat().st_ino == before
    assert len(LatencyTable.read(growing.path)) == len(KERNELS) + 1


def test_half_a_line_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    growing = GrowingTable(tmp_path / "table.csv")
    for kernel in KERNELS[:4]:
        growing.add(kernel, Latency(2.5), 6.0)
    content = growing.path.read_bytes()
    growing.path.write_bytes(content[:-9])
    again = GrowingTable(growing.path)
    assert set(again.table) == {*KERNELS[:3], REFERENCE}
    again.add(KERNELS[3], Latency(2.5), 6.0)
    assert LatencyTable.read(growing.path) == growing.table


def test_a_damaged_table_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("op,precision\n")
    with pytest.raises(UserError, match=r"table\.csv"):
        GrowingTable(tmp_path / "table.csv")


def _add(path: Path, kernels: list[Kernel]) -> None:
    growing = GrowingTable(path)
    for kernel in kernels:
        growing.add(kernel, Latency(float(kernel.in_channels)), 6.0)


def test_two_processes_that_measure_the_same_lose_and_repeat_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    parts = (KERNELS[:30], KERNELS[10:][::-1])
    processes = [context.Process(target=_add, args=(tmp_path / "table.csv", part)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    table = LatencyTable.read(tmp_path / "table.csv")  # refuses rows that stand twice
    assert {kernel: row.latency_us for kernel, row in table.items() if kernel != REFERENCE} == {
        kernel: float(kernel.in_channels) for kernel in KERNELS
    }


def test_a_slower_reference_scales_the_row_and_a_faster_one_all_rows_before() -> None:
    table = at_one_speed(LatencyTable({}), KERNELS[0], Latency(10.0, 1.0), 100.0)
    table = at_one_speed(table, KERNELS[1], Latency(30.0, 3.0), 150.0)
    assert table[KERNELS[1]].latency_us == pytest.approx(20.0)
    assert table[KERNELS[1]].spread_us == pytest.approx(2.0)
    table = at_one_speed(table, KERNELS[2], Latency(7.0), 50.0)
    assert [table[k].latency_us for k in (*KERNELS[:3], REFERENCE)] == pytest.approx([5.0, 10.0, 7.0, 50.0])


def test_changes_within_the_noise_of_the_reference_are_left_alone() -> None:
    table = at_one_speed(LatencyTable({}), KERNELS[0], Latency(10.0), 100.0)
    for kernel, reference_us in ((KERNELS[1], 103.0), (KERNELS[2], 97.0)):
        table = at_one_speed(table, kernel, Latency(10.0), reference_us)
    assert {table[k].latency_us for k in KERNELS[:3]} == {10.0}
    assert table[REFERENCE].latency_us == 100.0
