"""The Arm profiles that ship: they say what the simulation assumed, their tables hold its catalogue, and make sense."""

from dataclasses import replace

import numpy as np
import pytest

from autocomp.hardware.arm_simulation.catalogue import EFFICIENTNET_LITE0, catalogue, network_kernels
from autocomp.hardware.arm_simulation.cores import core
from autocomp.hardware.profile import HardwareProfile, find_profile
from autocomp.kernel import Kernel, Precision

CORES = {"mobile_arm": "cortex-a76", "raspberry_pi_4": "cortex-a72", "cortex_a53": "cortex-a53"}


@pytest.fixture(params=CORES, scope="module")
def profile(request: pytest.FixtureRequest) -> HardwareProfile:
    return find_profile(request.param)


def test_the_profile_says_what_its_core_was_taken_to_be(profile: HardwareProfile) -> None:
    simulated = core(CORES[profile.name])
    assert profile.provenance.kind == "simulated"
    assert simulated.board in profile.device
    assert simulated.mca_cpu in profile.provenance.text
    assert profile.core.lower() == simulated.name
    figures = {name: profile.calibration[name] for name in ("scale", "clock_ghz", "read_gb_per_s")}
    assert figures == {name: getattr(simulated, name) for name in figures}


def test_the_band_is_as_wide_as_every_error_that_the_profile_states(profile: HardwareProfile) -> None:
    band = profile.calibration["relative_error"]
    errors = {name: value for name, value in profile.calibration.items() if "error" in name and "ratio" not in name}
    assert len(errors) >= 4
    assert max(errors.values()) == band
    scales = [value for name, value in profile.calibration.items() if name.startswith("scale")]
    assert max(scales) / profile.calibration["scale"] <= 1 + band, "the slowest board lies outside"
    assert band >= core(CORES[profile.name]).scale_error


def test_the_table_holds_the_catalogue(profile: HardwareProfile) -> None:
    kernels = catalogue()
    assert len(profile.latencies) == profile.rows
    assert set(kernels[: profile.rows]) == set(profile.latencies)


def test_rows_are_no_faster_than_their_weights_are_read_and_no_surer_than_the_calibration(
    profile: HardwareProfile,
) -> None:
    simulated = core(CORES[profile.name])
    for kernel, row in profile.latencies.items():
        weight_bytes = kernel.weight_count * (4 if kernel.precision == "fp32" else 1)
        rounding = 0.001  # of the file's three decimals, in µs
        assert row.latency_us >= simulated.read_microseconds(weight_bytes) - rounding, kernel
        assert row.spread_us is not None
        assert row.spread_us >= simulated.scale_error * row.latency_us - rounding, kernel


def test_more_work_takes_longer_in_a_family(profile: HardwareProfile) -> None:
    """Whole layers against the same layers with a quarter of their channels."""
    whole = [k for k in network_kernels(EFFICIENTNET_LITE0) if k.op == "conv" and k.in_channels >= 64]
    for kernel in whole:
        for precision in ("fp32", "int8"):
            full = replace(kernel, precision=precision)
            quarter = replace(
                full, in_channels=_quarter(kernel.in_channels), out_channels=_quarter(kernel.out_channels)
            )
            if quarter in profile.latencies:
                assert profile.latencies[quarter].latency_us < profile.latencies[full].latency_us, kernel


def _quarter(channels: int) -> int:
    return max(8, round(channels / 4 / 8) * 8)


@pytest.mark.parametrize(("faster", "slower"), [("mobile_arm", "raspberry_pi_4"), ("raspberry_pi_4", "cortex_a53")])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_older_core_is_slower_in_the_median(faster: str, slower: str, precision: Precision) -> None:
    fast, slow = find_profile(faster).latencies, find_profile(slower).latencies
    common = [kernel for kernel in fast if kernel in slow and kernel.precision == precision and kernel.weight_count]
    ratios = [slow[kernel].latency_us / fast[kernel].latency_us for kernel in common]
    assert len(common) > 100
    assert 1.1 < np.median(ratios) < 6


def test_dot_products_are_what_int8_gains_by() -> None:
    """The A76 has instructions for int8 dot products, the A72 has none (Arm, Cortex-A72 technical reference manual)."""
    assert _gain("mobile_arm") > 1.3 * _gain("raspberry_pi_4")


def _gain(name: str) -> float:
    """fp32 time / int8 time of EfficientNet-Lite0's convolutions, in the median."""
    latencies = find_profile(name).latencies
    kernels = {kernel for kernel in network_kernels(EFFICIENTNET_LITE0) if kernel.op == "conv"}
    as_int8: dict[Kernel, Kernel] = {kernel: replace(kernel, precision="int8") for kernel in kernels}
    return float(np.median([latencies[k].latency_us / latencies[v].latency_us for k, v in as_int8.items()]))
