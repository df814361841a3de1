import io
from dataclasses import replace

import pytest
from fabricated import PROVENANCE, fabricate
from rich.console import Console

from autocomp.report.table import as_document, footnotes, front_table, print_front
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


@pytest.mark.parametrize(
    ("factor", "unit", "float_row"),
    [(1, "ms", ("6.20", "5.58–6.82")), (1e-3, "µs", ("6.20", "5.58–6.82")), (1e-2, "µs", ("62.0", "55.8–68.2"))],
)
def test_tiny_latencies_are_not_cut(run, factor, unit, float_row):
    data = read_run(run)
    scaled = [
        replace(m, **{name: getattr(m, name) * factor for name in ("latency_ms", "latency_low_ms", "latency_high_ms")})
        for m in [*data.references.values(), *data.front]
    ]
    count = len(data.references)
    tiny = replace(data, references={m.name: m for m in scaled[:count]}, front=scaled[count:])
    stream = io.StringIO()
    Console(file=stream, width=80).print(front_table(tiny))
    lines = stream.getvalue().splitlines()
    assert "…" not in stream.getvalue()
    assert unit in lines[1].split()
    assert set(float_row) <= set(next(line for line in lines if "float" in line).split())


def test_references_stand_on_top_and_points_are_sorted_by_bytes(run):
    rows = [line.split()[0] for line in printed(run, 80).splitlines()[3:] if line.strip()]
    data = read_run(run)
    assert rows[:2] == ["float", "int8"]
    assert rows[2 : 2 + len(data.front)] == [point.name for point in data.front]
    sizes = [point.size_bytes for point in data.front]
    assert sizes == sorted(sizes)


def test_memory_is_shown_where_it_is_bounded(run):
    data = read_run(run)
    assert "memory" not in printed(run, 80)
    budget = {**data.settings["budget"], "memory_bytes": 2_000_000}
    bounded = replace(
        data,
        settings={**data.settings, "budget": budget},
        front=tuple(replace(point, memory_bytes=1_234_567) for point in data.front),
    )
    stream = io.StringIO()
    Console(file=stream, width=80).print(front_table(bounded))
    lines = stream.getvalue().splitlines()
    assert "memory" in lines[1]
    assert sum("1.23 MB" in line for line in lines) == len(data.front)
    assert "…" not in stream.getvalue()


def test_what_is_extrapolated_is_said(run):
    data = read_run(run)
    assert "Extrapolated" not in printed(run, 80)
    first = replace(data.front[0], extrapolated_share=0.123)
    notes = footnotes(replace(data, front=(first, *data.front[1:])))
    assert "Extrapolated beyond what the table measured: up to 12% of a point's latency." in notes


def test_an_empty_front_says_so(tmp_path):
    run = fabricate(tmp_path / "run", trials=0, status="interrupted")
    assert "No file is on the front" in printed(run, 80)
    assert as_document(read_run(run))["front"] == []
