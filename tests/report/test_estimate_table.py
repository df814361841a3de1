"""What `estimate` and `hw compare` print: figures that add up, within 80 columns, and the same in the document."""

import io
import json

import pytest
from rich.console import Console
from roofline import Roofline as Model
from roofline import true_us

from autocomp.estimate import DeviceEstimate, NetworkEstimate, as_float
from autocomp.hardware.breakdown import break_down
from autocomp.hardware.profile import find_profile
from autocomp.hardware.roofline import Roofline
from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Kernel
from autocomp.report.estimate import comparison, document, print_comparison, print_estimate

INT8 = [
    (Kernel("quantize", "int8", 3, 3, 32, 32), ""),
    (Kernel("conv", "int8", 3, 32, 32, 32, 3, 3, 2), "features.0.0"),
    (Kernel("depthwise", "int8", 32, 32, 16, 16, 3, 3, 1, 32), "a.very.long.name.of.a.layer.conv.0.0"),
    (Kernel("add", "int8", 32, 32, 16, 16), ""),
    (Kernel("add", "int8", 32, 32, 16, 16), ""),
    (Kernel("linear", "int8", 32, 10, 1, 1), "[red]classifier[/red]"),
]


def on(name: str, versions: dict[str, list[tuple[Kernel, str]]]) -> DeviceEstimate:
    roofline = Roofline(LatencyTable({}))
    networks = (NetworkEstimate(v, break_down(kernels, Model(), roofline), 123_456) for v, kernels in versions.items())
    return DeviceEstimate(find_profile(name), tuple(networks))


def printed(draw, *arguments, width: int) -> str:
    stream = io.StringIO()
    draw(*arguments, Console(file=stream, width=width))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    return text


@pytest.mark.parametrize("width", [80, 120])
def test_each_kernel_of_one_network_is_a_row(width: int) -> None:
    estimate = on("mobile_arm", {"17.onnx": INT8})
    text = printed(print_estimate, estimate, width=width)
    rows = text.splitlines()[2:]
    for (kernel, _), row in zip(INT8, rows, strict=False):
        assert str(kernel) in row
        share = 100 * true_us(kernel) / sum(true_us(k) for k, _ in INT8)
        assert f"{share:.1f} %" in row
    assert "conversion" in rows[0]
    assert ("a.very.long.name.of.a.layer.conv.0.0" in text) == (width == 120)
    assert "17.onnx" in text and "123 kB" in text
    joined = " ".join(text.split())
    assert " ".join(str(find_profile("mobile_arm").provenance).split()) in joined


def test_a_name_is_no_markup() -> None:
    assert "[red]classifier[/red]" in printed(print_estimate, on("mobile_arm", {"x": INT8}), width=120)


def test_two_versions_are_a_line_each() -> None:
    estimate = on("mobile_arm", {"float": as_float(INT8), "int8": INT8})
    text = printed(print_estimate, estimate, width=80)
    assert "features.0.0" not in text
    assert "float" in text and "int8" in text
    expected = sum(true_us(kernel) for kernel, _ in as_float(INT8)) / sum(true_us(kernel) for kernel, _ in INT8)
    assert estimate.gain == pytest.approx(expected)


def test_the_float_twin_has_the_same_kernels_and_no_conversions() -> None:
    twin = as_float(INT8)
    assert [name for _, name in twin] == [name for _, name in INT8[1:]]
    assert {kernel.precision for kernel, _ in twin} == {"fp32"}
    assert [kernel.macs for kernel, _ in twin] == [kernel.macs for kernel, _ in INT8[1:]]


def test_the_document_is_json_and_adds_up() -> None:
    described = json.loads(json.dumps(document(on("mobile_arm", {"17.onnx": INT8}))))
    (network,) = described["networks"]
    assert described["gain"] is None and described["staleness"] is None
    assert network["latency_ms"] == pytest.approx(sum(kernel["latency_ms"] for kernel in network["kernels"]))
    assert network["macs"] == sum(kernel.macs for kernel, _ in INT8)
    assert network["latency_low_ms"] < network["latency_ms"] < network["latency_high_ms"]
    assert sum(network["limit_shares"].values()) == pytest.approx(1)


def test_devices_side_by_side_even_where_they_execute_different_kernels() -> None:
    one = on("mobile_arm", {"float": as_float(INT8), "int8": INT8})
    other = on("host_cpu", {"float": as_float(INT8), "int8": INT8[1:]})  # no conversion here
    layers = {row["layer"]: row["latency_ms"] for row in comparison([one, other])["layers"]}
    assert len(layers) == len(INT8)
    quantize = layers["quantize 3→3 @32x32"]
    assert quantize["host_cpu"] is None and quantize["mobile_arm"] == pytest.approx(true_us(INT8[0][0]) / 1000)
    assert layers["add 32→32 @16x16"] == layers["add 32→32 @16x16 (2)"]
    assert next(iter(layers)) == "quantize 3→3 @32x32"  # all else differs less
    text = printed(print_comparison, [one, other], width=80)
    assert "mobile_arm" in text and "host_cpu" in text and "–" in text
    assert f"×{one.gain:.1f}" in text and f"×{other.gain:.1f}" in text
