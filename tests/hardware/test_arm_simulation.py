"""The Arm simulation: its arithmetic against goldens worked by hand, and one real kernel where the tools exist."""

import ctypes
import gc
import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from needs import needs_tool

from autocomp.errors import RunError, UserError
from autocomp.hardware.arm_simulation import catalogue, cores, count, price, sandbox, simulate, table
from autocomp.hardware.arm_simulation.blocks import Block, difference, hottest, instructions, read_dump
from autocomp.hardware.kernel_models import kernel_model
from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Kernel

A76 = cores.core("cortex-a76")

histograms = st.dictionaries(
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4).map(tuple), st.integers(1, 1000), max_size=12
).map(Counter)


# ---- blocks


def test_a_dump_counts_equal_blocks_at_different_addresses_together(tmp_path: Path) -> None:
    dump = tmp_path / "blocks.0"
    dump.write_text("3 d503201f 0b010000\n1 d65f03c0\n4 d503201f 0b010000\n")
    assert read_dump(dump) == {(0xD503201F, 0x0B010000): 7, (0xD65F03C0,): 1}
    assert instructions(read_dump(dump)) == 7 * 2 + 1


def test_difference_keeps_what_was_executed_less() -> None:
    longer, shorter = Counter({(1,): 10, (2, 3): 4}), Counter({(1,): 10, (2, 3): 1, (9,): 2})
    assert difference(longer, shorter) == {(2, 3): 3, (9,): -2}


@given(histograms, histograms)
def test_difference_is_the_difference_of_instructions(longer: Counter[Block], shorter: Counter[Block]) -> None:
    assert instructions(difference(longer, shorter)) == instructions(longer) - instructions(shorter)


def test_hottest_blocks_are_the_fewest_that_cover_the_share() -> None:
    executions = Counter({(1, 2, 3, 4): 20, (5,): 15, (6, 7): 2, (8,): 1})  # 80, 15, 4 and 1 of 100 instructions
    assert hottest(executions, 0.80) == {(1, 2, 3, 4): 20}
    assert hottest(executions, 0.81) == {(1, 2, 3, 4): 20, (5,): 15}
    assert hottest(executions, 1.0) == executions


# ---- pricing

SUMMARY = """
[0] Code Region - 0

Iterations:        40
Instructions:      80
Total Cycles:      100
Total uOps:        80

[1] Code Region - 2

Iterations:        40
Instructions:      40
Total Cycles:      44
Total uOps:        40
"""


def test_summary_is_read_by_region_and_a_missing_region_costs_a_cycle_per_instruction() -> None:
    assert price.read_summary(SUMMARY, lengths=[2, 7, 1]) == [2.5, 7.0, 1.1]


def test_cycles_of_a_histogram(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 × 2 instructions at 3 cycles a block and 10 × 1 at 5; the cold last one (0.05 %) is priced like the rest."""
    asked: list[list[str]] = []

    def analyze(listings: Sequence[Sequence[str]], mca_cpu: str) -> list[float]:
        assert mca_cpu == "some-core"
        asked.extend(map(list, listings))
        return [3.0 if len(listing) == 2 else 5.0 for listing in listings]

    monkeypatch.setattr(price, "disassemble", lambda words: {word: f"op{word}" for word in words})
    monkeypatch.setattr(price, "analyze", analyze)
    monkeypatch.setattr(price, "COVERED", 0.999)
    pricer = price.Pricer("some-core")
    executions: Counter[Block] = Counter({(1, 2): 1000, (3,): 10, (4,): 1})
    expected = (1000 * 3.0 + 10 * 5.0) * 2011 / 2010
    assert pricer.cycles(executions) == pytest.approx(expected)
    assert asked == [["op1", "op2"], ["op3"]]
    assert pricer.cycles(executions) == pytest.approx(expected)
    assert len(asked) == 2, "a block is priced once"


def test_no_executions_cost_nothing() -> None:
    assert price.Pricer("some-core").cycles(Counter()) == 0.0


# ---- cores


def test_cycles_become_calibrated_microseconds() -> None:
    """2.4 GHz: 2400 cycles are a microsecond, times the scale of the board."""
    assert A76.microseconds(2400) == pytest.approx(1.17)
    assert A76.read_microseconds(1_000_000) == pytest.approx(100.0)  # 10 GB/s


def test_cpuinfo_is_what_linux_prints() -> None:
    lines = dict(line.split(":") for line in A76.cpuinfo().strip().splitlines())
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    assert fields["CPU part"] == "0xd0b"  # Arm Cortex-A76, technical reference manual, MIDR_EL1
    assert fields["CPU implementer"] == "0x41"
    assert "asimddp" in fields["Features"].split(), "int8 dot products are what int8 kernels are chosen by"


@pytest.mark.parametrize(
    ("name", "part", "dot_products", "fp16"),
    [("cortex-a53", 0xD03, False, False), ("cortex-a72", 0xD08, False, False), ("cortex-a76", 0xD0B, True, True)],
)
def test_cores_are_what_their_reference_manuals_say(name: str, part: int, dot_products: bool, fp16: bool) -> None:
    """Arm's technical reference manuals: MIDR_EL1, and ID_AA64ISAR0_EL1.DP, ID_AA64PFR0_EL1.AdvSIMD."""
    core = cores.core(name)
    assert core.part == part
    assert ("asimddp" in core.features.split()) == dot_products
    assert ("asimdhp" in core.features.split()) == fp16
    assert core.qemu_cpu == name


@pytest.mark.parametrize(
    ("name", "cycles", "microseconds"),
    [("cortex-a72", 1800, 1.58), ("cortex-a53", 1400, 1.32)],  # a microsecond of its clock, times its board's scale
)
def test_older_cores_are_calibrated_to_their_own_boards(name: str, cycles: int, microseconds: float) -> None:
    assert cores.core(name).microseconds(cycles) == pytest.approx(microseconds)


@pytest.mark.parametrize("core", cores.CORES.values(), ids=str)
def test_a_core_says_what_cpu_frequency_it_has(core: cores.Core) -> None:
    assert int(core.sysfs()["cpu0/cpufreq/cpuinfo_max_freq"]) == pytest.approx(core.clock_ghz * 1e6)


def test_an_unknown_core_is_a_user_error() -> None:
    with pytest.raises(UserError, match="cortex-a76"):
        cores.core("cortex-a67")


def test_a_missing_program_is_named_with_its_debian_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"qemu-aarch64.*apt-get install qemu-user"):
        sandbox.prepare(A76)
    with pytest.raises(UserError, match="apt-get install llvm-19"):
        sandbox.tool("llvm-mca-19")


@pytest.mark.parametrize("version", ["7.2.22 (Debian 1:7.2+dfsg-7)", "8.2.0"])
def test_qemu_versions_that_speak_the_plugins_interface(version: str) -> None:
    sandbox.check_qemu(f"qemu-aarch64 version {version}\nCopyright")


@pytest.mark.parametrize("text", ["qemu-aarch64 version 10.0.2\nCopyright", "qemu-aarch64 version 6.2.0", ""])
def test_other_qemu_versions_are_a_user_error(text: str) -> None:
    with pytest.raises(UserError, match=r"QEMU 7\.2 to 8\.2"):
        sandbox.check_qemu(text)


# ---- latency


def test_a_linear_layer_cannot_be_faster_than_its_weights_can_be_read() -> None:
    """1024×1000 fp32 weights are 4,096,000 bytes: 409.6 µs at 10 GB/s."""
    linear = Kernel("linear", "fp32", 1024, 1000, 1, 1)
    warm_us = A76.microseconds(240_000)  # 117 µs
    latency, spread = simulate.latency_us(linear, 240_000, A76)
    assert latency == pytest.approx(409.6)
    assert latency - spread == pytest.approx(warm_us), "the band reaches down to weights that stayed in the cache"


def test_a_convolution_that_reuses_its_weights_has_the_calibration_error_as_band() -> None:
    latency, spread = simulate.latency_us(Kernel("conv", "int8", 64, 64, 56, 56, 3, 3), 2_400_000, A76)
    assert latency == pytest.approx(1170)
    assert spread == pytest.approx(0.13 * 1170)


@given(st.sampled_from(catalogue.catalogue()))
def test_two_models_always_differ(kernel: Kernel) -> None:
    few, many = simulate.repeats(kernel)
    assert 1 <= few < many


def test_a_graph_without_the_kernels_operator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel("conv", "int8", 8, 8, 4, 4)
    monkeypatch.setattr(simulate, "executed_operators", lambda path: Counter({"Conv": 1, "QuantizeLinear": 1}))
    assert "expected QLinearConv" in simulate._not_as_asked(kernel, Path("model.onnx"))
    monkeypatch.setattr(simulate, "executed_operators", lambda path: Counter({"QLinearConv": 1}))
    assert simulate._not_as_asked(kernel, Path("model.onnx")) == ""


def test_a_model_that_does_not_run_is_a_failure_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = simulate.Simulator(sandbox.Sandbox(A76, Path("root"), Path("plugin.so")))
    reports = iter([([None, "Fail: no such operator"], "ended"), ([None], "was killed")])
    monkeypatch.setattr(simulator, "_run_guest", lambda paths, out: next(reports))
    with pytest.raises(RunError, match="no such operator"):
        simulator.run_models([b"", b""])
    with pytest.raises(RunError, match="was killed"):
        simulator.run_models([b"", b""])


def test_the_guest_reports_nothing_but_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: str, libc: ctypes.CDLL) -> None:
        print("*** EP Error ***")  # as ONNX Runtime's Python package does
        raise RuntimeError(f"{path}: no such operator")

    monkeypatch.setattr(count, "prepare", fails)
    monkeypatch.setattr(gc, "disable", lambda: None)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back afterwards
    count.main(3, ["a.onnx", "b.onnx"])
    reports = [json.loads(line)["error"] for line in capsys.readouterr().out.splitlines()]
    assert reports == ["RuntimeError: a.onnx: no such operator", "RuntimeError: b.onnx: no such operator"]


class FakeGuest(simulate.Simulator):
    """Dies on kernels of `deadly` channels."""

    def __init__(self, deadly: int) -> None:
        super().__init__(sandbox.Sandbox(A76, Path("root"), Path("plugin.so")))
        self.deadly = deadly
        self.processes = 0

    def _run(self, kernels: Sequence[Kernel], folder: Path) -> tuple[list[tuple[Counter[Block], ...] | str], str]:
        self.processes += 1
        survivors = 0
        while survivors < len(kernels) and kernels[survivors].in_channels != self.deadly:
            survivors += 1
        reports: list[tuple[Counter[Block], ...] | str] = []
        for kernel in kernels[:survivors]:
            reports.append("no such operator" if kernel.in_channels == 7 else (Counter(), Counter()))
        return reports, "died"

    def _price(self, kernel: Kernel, short: Counter[Block], long: Counter[Block]) -> simulate.Simulation | str:
        return simulate.Simulation(kernel, 1.0, 1.0, 1.0, 0.1)


def test_a_kernel_that_kills_the_guest_costs_only_itself() -> None:
    kernels = [Kernel("add", "fp32", channels, channels, 1, 1) for channels in (1, 7, 3, 13, 5)]
    guest = FakeGuest(deadly=13)
    assert [s.kernel.in_channels for s in guest.simulate(kernels)] == [1, 3, 5]
    assert guest.failures == {kernels[1]: "no such operator", kernels[3]: "died"}
    assert guest.processes == 2


def test_copies_that_cost_nothing_are_a_failure_not_a_latency() -> None:
    guest = simulate.Simulator(sandbox.Sandbox(A76, Path("root"), Path("plugin.so")))
    assert guest._price(KERNELS[0], Counter(), Counter()) == "9 copies cost no more cycles than 1"


# ---- table


def _simulated(kernels: Sequence[Kernel]) -> list[simulate.Simulation]:
    return [simulate.Simulation(kernel, 10.0, 20.0, kernel.in_channels / 4, 0.5) for kernel in kernels]


KERNELS = [Kernel("add", "fp32", channels, channels, 2, 2) for channels in range(1, 101)]


def test_a_table_is_filled_and_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    assert table.build_table(path, KERNELS[:3], _simulated) == 3
    assert path.read_text().splitlines()[:2] == [
        "op,precision,in_channels,out_channels,height,width,kernel_h,kernel_w,stride,groups,latency_us,spread_us",
        "add,fp32,1,1,2,2,1,1,1,1,0.250,0.500",
    ]
    assert set(LatencyTable.read(path)) == set(KERNELS[:3])


@pytest.mark.parametrize("kept_bytes", [0, 5, 200, 600, 10**6])
def test_a_table_cut_off_anywhere_is_continued_to_the_same_file(tmp_path: Path, kept_bytes: int) -> None:
    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    table.build_table(whole, KERNELS, _simulated)
    cut.write_bytes(whole.read_bytes()[:kept_bytes])
    present = len(table.kernels_in(cut)) if kept_bytes > 150 else 0
    assert table.build_table(cut, KERNELS, _simulated) == len(KERNELS) - present
    assert cut.read_bytes() == whole.read_bytes()


def test_rows_of_finished_batches_survive_a_failure(tmp_path: Path) -> None:
    calls = 0

    def fails_the_second_time(kernels: Sequence[Kernel]) -> list[simulate.Simulation]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return _simulated(kernels)

    with pytest.raises(KeyboardInterrupt):
        table.build_table(tmp_path / "t.csv", KERNELS, fails_the_second_time)
    assert table.kernels_in(tmp_path / "t.csv") == set(KERNELS[: table.BATCH])


# ---- catalogue


def test_networks_have_their_published_size() -> None:
    """Multiply-accumulates as published: MobileNetV2 300 M on 224×224 (Sandler et al.); Lite0 407 M, 4.7 M weights."""
    lite0 = list(catalogue.network_kernels(catalogue.EFFICIENTNET_LITE0))
    assert sum(kernel.macs for kernel in lite0) == pytest.approx(390e6, rel=0.05)
    assert sum(kernel.weight_count for kernel in lite0) == pytest.approx(4.6e6, rel=0.03)
    v2 = replace(catalogue.MOBILENET_V2_32, inputs=((3, 224),), classes=(1000,))
    assert sum(kernel.macs for kernel in catalogue.network_kernels(v2)) == pytest.approx(300e6, rel=0.01)


def test_the_fine_variant_ends_at_four_by_four() -> None:
    pooled = [k for k in catalogue.network_kernels(catalogue.MOBILENET_V2_32_FINE) if k.op == "global_avg_pool"]
    assert pooled == [Kernel("global_avg_pool", "fp32", 1280, 1280, 4, 4)]


def test_pruned_channels_are_multiples_of_eight_and_images_stay_whole() -> None:
    stem, inner = catalogue.conv(3, 32, 32, 3, 2), catalogue.conv(96, 24, 16)
    assert list(catalogue.pruned(stem, [(0.25, 0.5)])) == [catalogue.conv(3, 16, 32, 3, 2)]
    assert list(catalogue.pruned(inner, [(0.25, 0.5)])) == [catalogue.conv(24, 16, 16)]  # 12 rounds to 16
    assert list(catalogue.pruned(catalogue.depthwise(96, 16, 3), [(0.5, 0.5), (0.25, 1.0)])) == [
        catalogue.depthwise(48, 16, 3)
    ]


def test_catalogue_holds_each_kernel_once_and_in_both_precisions() -> None:
    kernels = catalogue.catalogue()
    assert len(set(kernels)) == len(kernels)
    assert Counter(k.precision for k in kernels)["int8"] == len(kernels) / 2
    small = list(catalogue.network_kernels(catalogue.MOBILENET_V2_32_FINE))
    assert set(small) <= set(kernels[: 2 * len(small)]), "the smallest networks come first"


# ---- the real thing


def test_a_small_convolution_on_a_simulated_a76() -> None:
    """An A76 does at most 8 fp32 multiply-accumulates a cycle (two vector units); a good kernel at least a quarter."""
    for name, package in sandbox.TOOLS.items():
        needs_tool(name, package)
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        pytest.skip("the plugin needs a 64-bit host")
    try:
        prepared = sandbox.prepare(A76)
    except RunError as error:
        pytest.skip(f"the sandbox cannot be downloaded here: {error}")
    kernels = [Kernel("conv", precision, 64, 64, 8, 8) for precision in catalogue.PRECISIONS]
    simulator = simulate.Simulator(prepared)
    as_float, as_int8 = simulator.simulate(kernels)
    assert not simulator.failures
    macs = kernels[0].macs  # 262,144
    assert macs / 8 < as_float.cycles < macs / 2
    assert as_int8.cycles < as_float.cycles
    assert as_float.latency_us == pytest.approx(A76.microseconds(as_float.cycles))
    few, many = simulator.run_models([kernel_model(kernels[0], copies) for copies in (1, 3)])
    assert (few.operators["FusedConv"], many.operators["FusedConv"]) == (1, 3)
    assert (many.cycles - few.cycles) / 2 == pytest.approx(as_float.cycles, rel=0.1)
