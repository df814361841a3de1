"""Kernels whose operator a table has no rows of: the nearest stands in for it, with a wide band, never for nothing."""

from dataclasses import replace

import numpy as np
import pytest

from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.profile import find_profile
from autocomp.hardware.table import Latency, LatencyTable
from autocomp.hardware.unlisted import stand_ins
from autocomp.kernel import GATES, OPS, PRECISIONS, Kernel

#: One of each operator that no table has, with the multiply-accumulates that it has by hand.
UNLISTED = {
    Kernel("lstm", "fp32", 256, 512, 1, 128): 128 * 4 * 512 * (256 + 512),
    Kernel("lstm", "fp32", 32, 128, 1, 20, groups=2): 20 * 2 * 4 * 64 * (32 + 64),
    Kernel("gru", "fp32", 32, 64, 1, 20): 20 * 3 * 64 * (32 + 64),
    Kernel("rnn", "fp32", 32, 64, 1, 20): 20 * 64 * (32 + 64),
    Kernel("matmul", "fp32", 64, 128, 12, 128): 12 * 128 * 64 * 128,
    Kernel("conv_transpose", "fp32", 64, 32, 28, 28, 2, 2, 2): 28 * 28 * 64 * 32 * 4,
    Kernel("conv3d", "fp32", 8, 16, 64, 32, 9, 3): 64 * 32 * 8 * 16 * 27,
    Kernel("norm", "fp32", 384, 384, 1, 128): 0,
    Kernel("softmax", "fp32", 12, 12, 128, 128): 0,
    Kernel("other", "fp32", 16, 16, 32, 32): 0,
}


@pytest.fixture(scope="module", params=["raspberry_pi_4", "gpu_h200"])
def model(request: pytest.FixtureRequest) -> LatencyModel:
    profile = find_profile(request.param)
    return LatencyModel.from_table(profile.latencies, profile.calibration)


def best_rate(table: LatencyTable) -> float:
    """Multiply-accumulates a microsecond of the fastest linear layer in float."""
    return max(k.macs / row.latency_us for k, row in table.items() if (k.op, k.precision) == ("linear", "fp32"))


def test_work_by_hand() -> None:
    assert {kernel: kernel.macs for kernel in UNLISTED} == UNLISTED
    wider = Kernel("conv_transpose", "fp32", 64, 32, 28, 28, 2, 2, 2)
    assert (wider.out_height, wider.out_elements) == (56, 32 * 56 * 56)
    product = Kernel("matmul", "fp32", 64, 128, 12, 100)
    assert (product.in_elements, product.out_elements) == (12 * 64 * (100 + 128), 12 * 100 * 128)


@pytest.mark.parametrize("steps", [1, 7, 128])
@pytest.mark.parametrize("op", GATES)
def test_a_recurrent_layer_is_never_cheaper_than_the_fastest_linear_layer(op: str, steps: int) -> None:
    table = find_profile("raspberry_pi_4").latencies
    model, fastest = LatencyModel.from_table(table), best_rate(table)
    for hidden in (8, 64, 512, 1024):
        kernel = Kernel(op, "fp32", 256, hidden, 1, steps)
        linear = Kernel("linear", "fp32", 256, GATES[op] * hidden, 1, steps)
        us, of_its_inputs = model.predict([kernel, linear]).us
        assert us >= kernel.macs / fastest
        assert us > of_its_inputs  # which is a part of it


def test_twice_the_steps_take_twice_as_long(model: LatencyModel) -> None:
    us = model.predict([Kernel("lstm", "fp32", 64, 64, 1, steps) for steps in (64, 128)]).us
    assert us[1] == pytest.approx(2 * us[0], rel=0.2)


def test_they_are_marked_and_their_band_is_wide(model: LatencyModel) -> None:
    kernels = list(UNLISTED)
    found = model.predict(kernels)
    assert found.extrapolated.all() and not found.measured.any()
    assert found.unlisted.all()
    assert (found.high_us >= 2.99 * found.us).all() and (found.low_us <= found.us / 2.99).all()


@pytest.mark.parametrize("rows", [0, 1, 3], ids=lambda rows: f"{rows} rows a family")
def test_nothing_is_free_whatever_the_table_holds(rows: int) -> None:
    """An empty table and one of a single operator included: what multiplies costs at least as much as what does not."""
    table = LatencyTable({
        Kernel("conv", "fp32", 8 * n, 8, 16, 16, 3, 3): Latency(10.0 * n) for n in range(1, rows + 1)
    })  # fmt: skip
    model = LatencyModel.from_table(table)
    for op in OPS:
        for precision in PRECISIONS:
            kernel = Kernel(op, precision, 16, 16, 4, 4, groups=16 if op == "depthwise" else 1)
            (us,) = model.predict([kernel]).us
            assert np.isfinite(us) and us > 0
            if kernel.macs:
                (larger,) = model.predict([replace(kernel, height=400, width=400)]).us
                assert larger > 10 * us


def test_stand_ins_multiply_as_often_as_what_they_stand_for() -> None:
    families = {("linear", "fp32"), ("conv", "fp32"), ("mul", "fp32")}
    for kernel, macs in UNLISTED.items():
        for some in (families, {("conv", "fp32"), ("mul", "fp32")}):
            parts = stand_ins(kernel, some)
            assert parts is not None and all((part.op, part.precision) in some for part, _ in parts)
            if macs:
                assert sum(part.macs * times for part, times in parts) == macs
    assert stand_ins(Kernel("lstm", "fp32", 8, 8, 1, 4), {("mul", "fp32")}) is None
    assert stand_ins(Kernel("linear", "int8", 8, 8, 1, 4), families) == [(Kernel("linear", "fp32", 8, 8, 1, 4), 1)]
