"""Tables held against whole networks: the scores by hand, and a check of small networks from end to end."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from roofline import true_us

from autocomp import check
from autocomp.check import check_host, left_out_fit, make_subjects, score
from autocomp.display import QuietDisplay
from autocomp.errors import UserError
from autocomp.export.kernels import file_kernels
from autocomp.hardware.profile import find_profile
from autocomp.hardware.table import Latency, LatencyTable

HOST = find_profile("host_cpu")
SMALL = (("resnet20", 32, 0.5), ("mobilenet_v1", 32, 0.25))


def test_scores_by_hand() -> None:
    found = score(np.array([109.0, 160.0, 330.0]), np.array([100.0, 200.0, 300.0]))
    assert found == {"mape": pytest.approx((9 + 20 + 10) / 3), "within_10pct": 0.333, "spearman": 1.0}
    assert score(np.array([3.0, 2.0, 1.0]), np.array([1.0, 2.0, 3.0]))["spearman"] == -1.0


def test_a_regression_does_not_see_the_network_that_it_is_asked_for() -> None:
    sizes = np.array([1.0, 2.0, 3.0, 4.0])
    assert left_out_fit(sizes, 5 + 2 * sizes) == pytest.approx(5 + 2 * sizes)
    disturbed = 5 + 2 * sizes
    disturbed[1] = 90.0
    assert left_out_fit(sizes, disturbed)[1] == pytest.approx(9.0)


def test_only_this_machine_can_be_checked_and_only_once_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="mobile_arm is not this machine"):
        check_host(find_profile("mobile_arm"), 5, QuietDisplay())
    monkeypatch.setattr(check, "known_latencies", lambda profile: LatencyTable({}))
    with pytest.raises(UserError, match="autocomp profile host_cpu"):
        check_host(HOST, 5, QuietDisplay())


def test_a_check_of_small_networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(check, "BASES", SMALL)
    subjects = list(make_subjects(HOST, 5, 0, tmp_path, QuietDisplay()))
    assert [subject.name.rsplit("_", 1)[0] for subject in subjects] == ["resnet20_32"] * 3 + ["mobilenet_v1_32"] * 2
    for subject in subjects:
        assert sorted(kernel for kernel, _ in file_kernels(subject.path)) == sorted(subject.kernels)
        assert subject.size_bytes == subject.path.stat().st_size
    pruned = [kernel.in_channels for kernel in subjects[2].kernels]
    assert any(channels % 2 for channels in pruned)
    assert {kernel.precision for kernel in subjects[2].kernels if kernel.op == "conv"} == {"fp32", "int8"}

    kernels = {kernel for subject in subjects for kernel in subject.kernels}
    twins = {replace(k, precision="fp32") for k in kernels if k.op not in ("quantize", "dequantize")}
    table = LatencyTable({kernel: Latency(true_us(kernel)) for kernel in kernels | twins})
    monkeypatch.setattr(check, "known_latencies", lambda profile: table)
    found = check_host(HOST, 5, QuietDisplay()).document()
    assert found["networks"] == 5
    for network, subject in zip(found["each"], subjects, strict=True):
        assert network["name"] == subject.name
        assert network["estimate_us"] == pytest.approx(sum(map(true_us, subject.kernels)))
        assert network["low_us"] < network["estimate_us"] < network["high_us"]
        assert network["us"] > 0 and network["extrapolated"] == 0
        single = [replace(k, precision="fp32") for k in subject.kernels if k.op not in ("quantize", "dequantize")]
        assert network["single_operators_us"] == pytest.approx(sum(map(true_us, single)))
    errors = [abs(network["estimate_us"] / network["us"] - 1) for network in found["each"]]
    assert found["mape"] == pytest.approx(100 * np.mean(errors), abs=0.01)
