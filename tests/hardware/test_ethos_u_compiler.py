"""Vela in its process: figures and fallbacks of real files, errors in one line, and the same bytes every time."""

import os
import signal
from pathlib import Path

import numpy as np
import pydantic
import pytest
from needs import needs

from autocomp.errors import RunError, UserError
from autocomp.hardware.ethos_u import compiler
from autocomp.hardware.ethos_u.accelerator import Accelerator
from autocomp.hardware.ethos_u.compiler import Vela, vela_version
from autocomp.hardware.ethos_u.performance import parse_fallbacks, parse_operators, parse_summary
from autocomp.tflite.builder import Affine, ModelBuilder

needs("ethosu.vela")

U55 = Accelerator(config="ethos-u55-256", system="Ethos_U55_High_End_Embedded", memory_mode="Shared_Sram")
ANY = Affine(0.02, -128)
#: Two operators as Vela 5.2 writes them: a convolution that waits for its weights, and its fused activation.
PER_LAYER = (
    "Original Operator,NNG Operator,Target,Staging Usage,Peak% (Staging),Op Cycles,Network% (cycles),NPU,SRAM AC,"
    "DRAM AC,OnFlash AC,OffFlash AC,MAC Count,Network% (MAC),Util% (MAC),Name\n"
    "Conv2D,Conv2D,NPU,12288,92.9,18048,28.0,6848,2560,0,0,18048,1179648,30.9,25.5,y3\n"
    "Conv2D,Relu,NPU,0,0.0,0,0.0,0,0,0,0,0,0,0.0,100,y3\n"
    "DepthwiseConv2D,Passthrough,CPU,0,0.0,0,0.0,0,0,0,0,0,0,0.0,100,y4\n"
)
LOG = (
    "\nWarning (supported operators) operator: DEPTHWISE_CONV_2D, ofm: 'y4_act'\n"
    "Reason: Unsupported kernel stride: 5, 5\nKernel stride must be in the range (1,3).\n\nNetwork summary\n"
)


def _model(path: Path, stride: int = 1, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    builder = ModelBuilder()
    x = builder.input("x", (1, 10, 10, 16), ANY)
    scales, bias = np.full(16, 0.004, np.float32), np.zeros(16, np.int32)
    x = builder.conv("a", x, rng.integers(-127, 128, (16, 3, 3, 16), np.int8), scales, bias, ANY)
    weight = rng.integers(-127, 128, (1, 3, 3, 16), np.int8)
    x = builder.depthwise("b", x, weight, scales, bias, ANY, stride=(stride, stride))
    path.write_bytes(builder.finish([x]))
    return path


@pytest.fixture(scope="module")
def vela():
    with Vela() as process:
        yield process


def test_operators_are_read_with_their_parts() -> None:
    conv, fused, left = parse_operators(PER_LAYER)
    assert (conv.name, conv.operator, conv.on_npu, conv.cycles) == ("y3", "Conv2D", True, 18048)
    assert (conv.npu_cycles, conv.sram_cycles, conv.dram_cycles, conv.flash_cycles) == (6848, 2560, 0, 18048)
    assert (conv.macs, conv.staging_bytes) == (1179648, 12288)
    assert fused.cycles == 0 and not left.on_npu


def test_what_falls_back_is_named_with_velas_reason() -> None:
    reason = "Unsupported kernel stride: 5, 5 Kernel stride must be in the range (1,3)."
    assert parse_fallbacks(parse_operators(PER_LAYER), LOG) == (("DepthwiseConv2D y4", reason),)
    assert parse_fallbacks(parse_operators(PER_LAYER), "") == (("DepthwiseConv2D y4", "Vela gives no reason"),)


def test_a_summary_of_another_form_is_refused() -> None:
    with pytest.raises(KeyError):
        parse_summary("cycles\n12\n")


def test_the_whole_is_the_sum_of_its_operators(vela: Vela, tmp_path: Path) -> None:
    compiled = vela.compile(_model(tmp_path / "m.tflite"), tmp_path / "out", U55)
    assert compiled.path == tmp_path / "out" / "m_vela.tflite"
    assert compiled.size_bytes == compiled.path.stat().st_size > compiled.encoded_weight_bytes > 0
    assert compiled.cycles == sum(operator.cycles for operator in compiled.operators)
    assert compiled.latency_ms == pytest.approx(compiled.cycles / 500e6 * 1e3)  # the clock of this system
    assert not compiled.fallbacks and compiled.vela_version == vela_version()


def test_the_same_file_gives_the_same_bytes_and_figures(vela: Vela, tmp_path: Path) -> None:
    model = _model(tmp_path / "m.tflite")
    first = vela.compile(model, tmp_path / "a", U55)
    vela.compile(_model(tmp_path / "other.tflite", seed=1), tmp_path / "b", U55)
    again = vela.compile(model, tmp_path / "b", U55)
    assert again.path.read_bytes() == first.path.read_bytes()
    assert again.operators == first.operators


def test_an_operator_that_the_npu_lacks_is_left_to_the_cpu(vela: Vela, tmp_path: Path) -> None:
    ((operator, reason),) = vela.compile(_model(tmp_path / "m.tflite", stride=5), tmp_path, U55).fallbacks
    assert operator == "DepthwiseConv2D b" and "stride" in reason


@pytest.mark.parametrize("content", [b"", b"hello\n", b"half"], ids=["empty", "text", "cut off"])
def test_a_damaged_file_is_one_line_and_the_next_compiles(vela: Vela, tmp_path: Path, content: bytes) -> None:
    whole = _model(tmp_path / "whole.tflite")
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(whole.read_bytes()[:200] if content == b"half" else content)
    with pytest.raises(RunError, match=r"damaged\.tflite") as fault:
        vela.compile(damaged, tmp_path / "out", U55)
    assert "\n" not in str(fault.value) and "Traceback" not in str(fault.value)
    assert not (tmp_path / "out").exists()
    assert vela.compile(whole, tmp_path / "out", U55).cycles > 0


def test_a_missing_file_is_named(vela: Vela, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no file .*nothing\.tflite"):
        vela.compile(tmp_path / "nothing.tflite", tmp_path, U55)


def test_a_compiler_that_was_killed_is_replaced(vela: Vela, tmp_path: Path) -> None:
    model = _model(tmp_path / "m.tflite")
    vela.compile(model, tmp_path, U55)
    process = vela._worker._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(RunError, match="signal 9"):
        vela.compile(model, tmp_path, U55)
    assert vela.compile(model, tmp_path, U55).cycles > 0


def test_an_unknown_system_is_one_line(vela: Vela, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Nonsense"):
        vela.compile(_model(tmp_path / "m.tflite"), tmp_path, U55.model_copy(update={"system": "Nonsense"}))


def test_without_vela_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "PACKAGE", "no-such-package-as-this")
    with pytest.raises(UserError, match=r"pip install 'autocomp\[npu\]'"):
        Vela()


@pytest.mark.parametrize("mode", ["Dedicated_Sram", "Sram_Only", "nonsense"])
def test_a_memory_mode_in_which_kernels_do_not_add_up_is_refused(mode: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="not the sum of its kernels"):
        Accelerator(config="ethos-u65-256", system="Ethos_U65_Embedded", memory_mode=mode)
