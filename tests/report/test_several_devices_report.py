"""What is shown of a run for several devices, on made-up figures."""

import csv
import io
import json
import re
from dataclasses import replace

import pytest
import yaml
from fabricated import HOSTILE, fabricate
from rich.console import Console

from autocomp.report.figures import compared_with
from autocomp.report.html import render
from autocomp.report.svg import front_svg
from autocomp.report.table import as_document, front_table, print_front
from autocomp.rundir import device_columns, read_run

DEVICES = {"fantasy_a1": 1.0, "raspberry_pi_9": 3.0, "npu_imaginary": 0.002}


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A made-up run, whose devices take a multiple of the primary one's time each."""
    run = fabricate(tmp_path_factory.mktemp("several") / "run", trials=60, layers=6)
    with (run / "front.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    with (run / "front.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, [*rows[0], *device_columns([*DEVICES])])
        writer.writeheader()
        writer.writerows(
            row | {f"{key}:{name}": v for name, k in DEVICES.items() for key, v in on(row, name, k).items()}
            for row in rows
        )
    references = json.loads((run / "references.json").read_text())
    for reference in references:
        reference["devices"] = {name: on(reference | {"file": ""}, name, k) for name, k in DEVICES.items()}
    (run / "references.json").write_text(json.dumps(references))
    settings = yaml.safe_load((run / "run.yaml").read_text())
    bounds = {"size_bytes": None, "latency_ms": None, "accuracy_drop": None, "memory_bytes": None}
    settings["hw"] = ",".join(DEVICES)
    settings["devices"] = {name: {"title": HOSTILE, "budget": bounds | {"size_bytes": 4_000_000}} for name in DEVICES}
    settings["devices"]["raspberry_pi_9"]["budget"] = bounds | {"size_bytes": 3_000_000, "latency_ms": 7.5}
    (run / "run.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return run


def on(row, name, factor):
    """What the row's candidate takes on a device that is so many times as slow."""
    latencies = {key: float(row[key]) * factor for key in ("latency_ms", "latency_low_ms", "latency_high_ms")}
    return latencies | {
        "provenance": f"made up for {name}", "accuracy": float(row["accuracy"]), "size_bytes": int(row["size_bytes"]),
        "file": row["file"],
    }  # fmt: skip


def test_every_device_is_read_back(several):
    data = read_run(several)
    assert data.devices == tuple(DEVICES)
    for point in [*data.front, *data.references.values()]:
        for name, factor in DEVICES.items():
            assert point.devices[name].latency_ms == pytest.approx(point.latency_ms * factor)
    document = as_document(data)
    json.dumps(document)
    first = document["front"][0]["devices"]["raspberry_pi_9"]
    assert first["latency_ms"] == pytest.approx(3 * document["front"][0]["latency_ms"])


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_has_a_column_for_each_device(several, width):
    stream = io.StringIO()
    data = read_run(several)
    Console(file=stream, width=width).print(front_table(data))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    float_row = next(line for line in text.splitlines() if line.strip().startswith("float")).split()
    assert float_row[-3:] == ["6.20", "18.6", "12.4"]  # 6.2 ms, three times that, and in microseconds
    point = data.front[0]
    gain = data.references["float"].devices["raspberry_pi_9"].latency_ms / point.devices["raspberry_pi_9"].latency_ms
    row = next(line for line in text.splitlines() if line.split()[:1] == [point.name])
    assert f"×{gain:.1f}" in row


def test_each_provenance_stands_under_the_table(several):
    stream = io.StringIO()
    print_front(read_run(several), Console(file=stream, width=200))
    for name in DEVICES:
        assert stream.getvalue().count(f"{name}: made up for {name}") == 1


def test_the_page_has_a_chart_and_columns_for_each_device(several):
    page = render(read_run(several))
    assert len(re.findall(r'id="chart-\d"', page)) == 1 + len(DEVICES)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert len(data["figures"]) == 1 + len(DEVICES)
    titles = [figure["layout"]["xaxis"]["title"]["text"] for figure in data["figures"]]
    assert titles[1:] == [f"latency on {name}" for name in DEVICES]
    bounds = [figure["layout"].get("shapes") for figure in data["figures"]]
    assert bounds[0][0]["x0"] == 3_000_000  # the tightest of all devices
    assert bounds[2][0]["x0"] == 7.5
    assert bounds[1] is None and bounds[3] is None
    point = data["points"][data["first"]]
    assert [label for label, _ in point["figures"]].count("latency band") == len(DEVICES)
    assert "budget on raspberry_pi_9" in page
    assert HOSTILE not in page


def test_the_picture_has_a_panel_for_each_device(several):
    picture = front_svg(read_run(several))
    for name in DEVICES:
        assert picture.count(f"latency on {name} (darker: less bytes)") == 1
    assert picture.count('stroke-dasharray="4 3"') == 2  # a bound of bytes, a bound of time


def test_a_reference_that_failed_stands_among_the_rows(several):
    data = read_run(several)
    left = {"float": data.references["float"]}
    data = replace(data, references=left, failed={"int8": f"the file does not load: {HOSTILE}"})
    console = Console(file=io.StringIO(), width=160)
    print_front(data, console)
    lines = console.file.getvalue().splitlines()
    assert any(re.match(r"\s*int8\s+failed\s*$", line) for line in lines)
    assert f"int8: failed: the file does not load: {HOSTILE}" in console.file.getvalue()
    page = render(data)
    assert 'colspan="14">failed: the file does not load: &lt;script&gt;' in page  # all columns but the name's
    assert HOSTILE not in page


def test_ratios_are_left_out_where_there_is_nothing_to_divide_by(several):
    """Float does not run on the device, and plain int8 failed."""
    data = read_run(several)
    float_only = replace(
        data.references["float"], latency_ms=None, latency_low_ms=None, latency_high_ms=None, devices={}
    )
    data = replace(data, references={"float": float_only}, failed={"int8": "it does not compile"})
    assert data.baseline is None
    assert [data.smaller(point) for point in data.front] == [None] * len(data.front)
    assert [data.faster(point, "raspberry_pi_9") for point in data.front] == [None] * len(data.front)
    assert "no ratios" in compared_with(data)
    assert compared_with(data) in render(data)
    console = Console(file=io.StringIO(), width=160)
    print_front(data, console)
    assert "No ratios: no float runs here, and int8 failed." in console.file.getvalue()
