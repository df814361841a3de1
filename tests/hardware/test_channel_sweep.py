"""Sweeps over channels: read as they are printed, rows found by brute force, curves that meet what was measured."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roofline import Roofline, true_us

from autocomp.errors import UserError
from autocomp.hardware.channel_sweep import ChannelSweep, curve
from autocomp.hardware.table import Latency, LatencyTable
from autocomp.kernel import OPS, Kernel

sizes = st.integers(1, 4096)


@st.composite
def sweeps(draw: st.DrawFn) -> ChannelSweep:
    op = draw(st.sampled_from(OPS))
    axis = draw(st.sampled_from(["in", "out"])) if op in ("conv", "linear") else "both"
    kernel = Kernel(
        op, draw(st.sampled_from(["fp32", "int8"])), draw(sizes), draw(sizes), draw(sizes), draw(sizes),
        draw(st.integers(1, 11)), draw(st.integers(1, 11)), draw(st.integers(1, 4)),
    )  # fmt: skip
    return ChannelSweep.through(kernel, axis)


@settings(max_examples=200, deadline=None)
@given(sweeps())
def test_a_sweep_is_read_as_it_is_printed(sweep: ChannelSweep) -> None:
    assert ChannelSweep.parse(str(sweep)) == sweep


def test_goldens_by_hand() -> None:
    sweep = ChannelSweep.parse("conv 3x3 96→* s2 @14x7 int8")
    assert (sweep.axis, sweep.kernel(20)) == ("out", Kernel("conv", "int8", 96, 20, 14, 7, 3, 3, 2))
    sweep = ChannelSweep.parse("linear  * -> 10  fp32")
    assert (sweep.axis, sweep.kernel(64)) == ("in", Kernel("linear", "fp32", 64, 10, 1, 1))
    sweep = ChannelSweep.parse("depthwise 3x3 *→* @8x8 fp32")
    assert (sweep.axis, sweep.kernel(32)) == ("both", Kernel("depthwise", "fp32", 32, 32, 8, 8, 3, 3, 1, 32))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a kernel as it is printed"),
        ("conv", "expected a kernel as it is printed"),
        ("convolution 3→* int8", "expected a kernel as it is printed"),
        ("conv 3→* int4", "expected a kernel as it is printed"),
        ("conv 3→* @14 int8", "expected a kernel as it is printed"),
        ("conv 3→16 int8", "write * for the input's or for the output's channels"),
        ("conv *→* int8", "write * for the input's or for the output's channels"),
        ("depthwise 3x3 8→* int8", "depthwise has as many outputs as inputs: write *→*"),
        ("conv 0→* int8", "at least 1"),
        ("conv 3→* @0x4 int8", "at least 1"),
        ("conv " + "9" * 5000 + "→* int8", "expected a kernel as it is printed"),
    ],
)
def test_what_is_no_sweep_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        ChannelSweep.parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def _table(*kernels: Kernel) -> LatencyTable:
    return LatencyTable({kernel: Latency(true_us(kernel), 0.1) for kernel in kernels})


WIDE = [Kernel("conv", "int8", 96, out, 8, 8) for out in (64, 8, 16)]
OTHER = [
    Kernel("conv", "int8", 32, 16, 8, 8),
    Kernel("conv", "fp32", 96, 16, 8, 8),
    Kernel("conv", "int8", 96, 16, 8, 8, stride=2),
    *(Kernel("depthwise", "int8", c, c, 8, 8, 3, 3, 1, c) for c in (8, 16, 24, 32, 40)),
]


def test_the_fullest_sweep_is_over_convolutions_and_its_rows_are_in_order() -> None:
    table = _table(*OTHER, *WIDE)
    sweep = ChannelSweep.fullest(table)
    assert str(sweep) == "conv 96→* @8x8 int8"
    assert list(sweep.rows(table).items()) == [(8, WIDE[1]), (16, WIDE[2]), (64, WIDE[0])]


def test_without_convolutions_any_operator_will_do() -> None:
    sweep = ChannelSweep.fullest(_table(*OTHER[3:]))
    assert str(sweep) == "depthwise 3x3 *→* @8x8 int8"
    assert list(sweep.rows(_table(*OTHER))) == [8, 16, 24, 32, 40]


def test_a_curve_holds_each_measured_row_and_goes_a_fifth_beyond() -> None:
    table = _table(*WIDE)
    shown = curve(ChannelSweep.fullest(table), table, Roofline(), points=10)
    assert shown.channels[0] == 1 and 70 <= shown.channels[-1] <= 76
    assert list(shown.channels) == sorted(set(shown.channels))
    assert shown.measured == {out: table[Kernel("conv", "int8", 96, out, 8, 8)] for out in (8, 16, 64)}
    assert {8, 16, 64} <= set(shown.channels)
    assert len(shown.channels) <= 10 + 3 + 1
    for count, us in zip(shown.channels, shown.estimate.us, strict=True):
        assert us == pytest.approx(true_us(Kernel("conv", "int8", 96, count, 8, 8)))
