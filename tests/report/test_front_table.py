import io

import pytest
from fabricated import PROVENANCE, fabricate
from rich.console import Console

from autocomp.report.table import as_document, print_front
from autocomp.rundir import read_run


def printed(run, width):
    stream = io.StringIO()
    print_front(read_run(run), Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_table_fits_and_cuts_nothing(run, width):
    text = printed(run, width)
    table = text.split("Latency:")[0]
    assert max(map(len, table.splitlines())) <= width
    assert "…" not in text
    assert " ".join(text.split()).count(PROVENANCE) == 1


def test_references_stand_on_top_and_points_are_sorted_by_bytes(run):
    rows = [line.split()[0] for line in printed(run, 80).splitlines()[3:] if line.strip()]
    data = read_run(run)
    assert rows[:2] == ["float", "int8"]
    assert rows[2 : 2 + len(data.front)] == [point.name for point in data.front]
    sizes = [point.size_bytes for point in data.front]
    assert sizes == sorted(sizes)


def test_an_empty_front_says_so(tmp_path):
    run = fabricate(tmp_path / "run", trials=0, status="interrupted")
    assert "No file is on the front" in printed(run, 80)
    assert as_document(read_run(run))["front"] == []
