"""What `hw list` and `hw show` print: every fact is there, within 80 columns, and the chart stands where it should."""

import io
import json

import pytest
from rich.console import Console
from roofline import Roofline, true_us

from autocomp.hardware.channel_sweep import ChannelSweep, Curve, curve
from autocomp.hardware.constraints import CONSTRAINTS, reason
from autocomp.hardware.profile import HardwareProfile, find_profile, profile_names
from autocomp.hardware.table import Latency, LatencyTable
from autocomp.kernel import Kernel
from autocomp.report.device import document, print_curve, print_device, print_list, summary
from autocomp.report.latency_plot import plot, write_plot
from autocomp.resources import data_folder

TABLE = LatencyTable(
    {
        kernel: Latency(true_us(kernel), 0.5)
        for kernel in [
            *(Kernel("conv", "int8", 96, out, 14, 14) for out in (8, 16, 32, 64, 128)),
            Kernel("linear", "fp32", 1280, 10, 1, 1),
        ]
    }
)


@pytest.fixture
def shown() -> Curve:
    return curve(ChannelSweep.fullest(TABLE), TABLE, Roofline())


def printed(draw, *arguments, width: int = 80) -> list[str]:
    """The lines, each at most `width` columns."""
    stream = io.StringIO()
    draw(*arguments, Console(file=stream, width=width))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", profile_names())
def test_a_device_is_shown_with_all_that_it_says(name: str, width: int) -> None:
    profile = find_profile(name)
    text = " ".join(" ".join(printed(print_device, profile, TABLE, width=width)).split())
    for fact in (profile.title, profile.device, profile.core, profile.provenance.text, profile.runtime.name):
        assert " ".join(fact.split()) in text
    for constraint in profile.constraints:
        assert reason(CONSTRAINTS[constraint]) in text
    if all(capability.activation == "float" for capability in profile.executes):
        executes = "conv, depthwise, linear float float fp32 nothing [1]"
    elif profile.integer_only:
        executes = "int8 int8 bytes and time"  # the note is on the next line where the table is narrow
    else:
        executes = "conv, depthwise, linear 2–7 int8 int8 bytes and time [1]"
    assert executes in text
    assert "6 kernels in the table" in text
    assert "conv int8 5 96 8–128 14 1" in text
    assert f"relative error {profile.calibration['relative_error']:g}" in text


def test_codebooks_and_patterns_stand_beside_the_bits_where_a_device_gains_by_them() -> None:
    listed = "activation: int8\n    clusters: [8, 16]\n    patterns: [block, '2:4']"
    text = (data_folder("hw_profiles") / "host_cpu.yaml").read_text().replace("activation: int8", listed, 1)
    lines = "\n".join(printed(print_device, HardwareProfile.parse(text), TABLE, width=120))
    assert "coded" in lines and "8, 16 clusters; block, 2:4 zeros" in lines
    assert "coded" not in "\n".join(printed(print_device, find_profile("host_cpu"), TABLE))


def test_a_machine_that_was_not_measured_says_how_to(shown: Curve) -> None:
    lines = printed(print_device, find_profile("host_cpu"), LatencyTable({}))
    assert "No kernel was measured yet" in lines
    assert "Measure this machine: autocomp profile host_cpu --minutes 10" in lines


@pytest.mark.parametrize(("name", "gpu"), [("gpu_h100", "an H100"), ("host_gpu", "a CUDA GPU")])
def test_a_gpu_that_was_not_measured_ships_without_a_table_and_says_so(name: str, gpu: str) -> None:
    profile = find_profile(name)
    said = f"{name} ships without a table: autocomp profile {name} fills one on a machine with {gpu}."
    for lines in (printed(print_device, profile, LatencyTable({})), printed(print_list, [(profile, LatencyTable({}))])):
        assert said in " ".join(lines)
    assert "ships without" not in " ".join(printed(print_list, [(profile, TABLE)]))


def test_a_stale_table_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocomp.hardware.profile.installed_version", lambda name: "99.1.0")
    profile = find_profile("mobile_arm")
    lines = printed(print_list, [(profile, TABLE)])
    assert "simulated, stale" in lines[2]
    assert "Stale: the latencies of mobile_arm are stale" in " ".join(lines)
    assert "99.1.0 is installed" in " ".join(printed(print_device, profile, TABLE))
    assert summary(profile, TABLE)["stale"] and document(profile, TABLE, None)["staleness"] == profile.staleness


def test_the_chart_puts_each_latency_inside_its_band(shown: Curve) -> None:
    lines = printed(print_curve, shown)
    rows = [line for line in lines if "●" in line or "○" in line][:-1]
    assert [int(row.split()[0]) for row in rows] == sorted({int(row.split()[0]) for row in rows})
    assert {8, 16, 32, 64, 128} <= {int(row.split()[0]) for row in rows if "●" in row}
    for row in rows:
        channels = int(row.split()[0])
        assert ("●" in row) == (channels in shown.measured)
    # Latency grows with the channels, so the marks move right; the slowest band ends the chart.
    marks = [max(row.find("●"), row.find("○")) for row in rows]
    assert marks == sorted(marks)
    assert len(rows[-1]) == max(map(len, rows))


def test_the_document_is_json_and_holds_the_curve(shown: Curve) -> None:
    described = json.loads(json.dumps(document(find_profile("mobile_arm"), TABLE, shown)))
    assert described["name"] == "mobile_arm" and described["rows"] == 6 and described["stale"] is False
    assert described["coverage"][0]["op"] == "conv" and described["coverage"][0]["rows"] == 5
    assert described["curve"]["kernel"] == "conv 96→* @14x14 int8"
    assert [point["channels"] for point in described["curve"]["measured"]] == [8, 16, 32, 64, 128]
    assert all(p["low_us"] <= p["latency_us"] <= p["high_us"] for p in described["curve"]["model"])


def test_the_plot_shows_rows_model_and_band_and_names_their_source(shown: Curve, tmp_path) -> None:
    profile = find_profile("mobile_arm")
    figure = plot(profile, shown)
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces["rows of the table"].x) == [8, 16, 32, 64, 128]
    assert list(traces["model"].x) == list(shown.channels)
    assert list(traces["90 % band"].y) == [*shown.estimate.high_us, *shown.estimate.low_us[::-1]]
    assert "conv 96→* @14x14 int8" in figure.layout.title.text
    assert "simulated" in figure.layout.annotations[0].text
    write_plot(profile, shown, tmp_path / "plot.html")
    page = (tmp_path / "plot.html").read_text(encoding="utf-8")
    assert "<script src=" not in page  # opens offline
