"""Which GPU is at hand, what is lacking where none is, and what runs on which; and, on a GPU, the real thing."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
from fake_gpu import H100, gpu_at_hand
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

from autocomp.errors import UserError
from autocomp.hardware.cuda import gpu as gpu_module
from autocomp.hardware.cuda.chains import OnnxReplay, make_call, make_chains, make_input, static_shape, stopwatch_of
from autocomp.hardware.cuda.gpu import PROVIDER, NoGpu, driver_version, find_gpu, require
from autocomp.hardware.cuda.measuring import measure_on
from autocomp.hardware.cuda.precisions import SPARSE_WEIGHTS, in_other_precisions, refusal
from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.kernel_models import kernel_model
from autocomp.hardware.latencies import at_hand
from autocomp.hardware.profile import find_profile
from autocomp.hardware.runner import FEWEST_ROUNDS, input_values
from autocomp.kernel import PRECISIONS, Kernel
from autocomp.network import Channels, LayerSpec
from autocomp.policy import LayerPolicy

CONV, DEPTHWISE = Kernel("conv", "fp32", 64, 64, 14, 14, 3, 3), Kernel("depthwise", "fp32", 64, 64, 14, 14, 3, 3, 1, 64)
LINEAR, TOKENS = Kernel("linear", "fp32", 64, 64, 1, 1), Kernel("linear", "fp32", 64, 64, 1, 32)


def lacking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **patches: object) -> str:
    """Why nothing can be measured here, where a driver is loaded."""
    monkeypatch.setattr(gpu_module, "_DRIVER_FILES", (str(tmp_path),))
    for name, value in patches.items():
        module, attribute = (onnxruntime, name) if name == "get_available_providers" else (torch, name)
        monkeypatch.setattr(module if name != "is_available" else torch.cuda, attribute, value)
    with pytest.raises(NoGpu) as caught:
        find_gpu()
    return str(caught.value)


def test_each_thing_that_may_be_lacking_has_its_own_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(gpu_module, "_DRIVER_FILES", (str(tmp_path / "none"),))
        with pytest.raises(NoGpu, match="no NVIDIA driver is loaded"):
            find_gpu()
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "cuda", None)
        assert "is built without CUDA: install a build of torch with CUDA" in lacking(patch, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "cuda", "13.0")
        assert "finds no CUDA GPU" in lacking(patch, tmp_path, is_available=lambda: False)
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "cuda", "13.0")
        providers = lambda: ["CPUExecutionProvider"]  # noqa: E731
        said = lacking(patch, tmp_path, is_available=lambda: True, get_available_providers=providers)
        assert "has no CUDAExecutionProvider" in said and "pip install onnxruntime-gpu" in said


def test_an_h100_must_be_one_and_any_gpu_will_do_for_the_machine_s_own() -> None:
    other = replace(H100, name="NVIDIA A10")
    assert require("gpu_h100", "H100", H100) is H100
    assert require("host_gpu", "", other) is other
    with pytest.raises(UserError, match=r"gpu_h100 .* 'H100', and this machine's is 'NVIDIA A10': take host_gpu"):
        require("gpu_h100", "H100", other)


def test_the_driver_s_version_is_read_from_either_kernel_module(tmp_path: Path) -> None:
    file = tmp_path / "version"
    assert driver_version(file) == "unknown"
    for line, expected in (
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86  Release Build  (dvs-builder)", "570.86"),
        ("something else", "unknown"),
    ):
        file.write_text(line + "\nGCC version:  gcc version 12.3.0\n")
        assert driver_version(file) == expected


def test_the_provenance_names_the_device_and_its_software() -> None:
    with gpu_at_hand():
        provenance = at_hand(find_profile("gpu_h100")).provenance
    assert provenance.kind == "measured"
    for fact in ("NVIDIA H100 80GB HBM3", "driver 570.86.15", "CUDA 13.0", "torch 2.14.1", "ONNX Runtime 1.31.1"):
        assert fact in provenance.text


@pytest.mark.parametrize(
    ("kernel", "runs_in"),
    [
        (CONV, {"fp32", "tf32", "fp16", "bf16"}),  # neither torch nor the CUDA provider has an integer convolution
        (DEPTHWISE, {"fp32", "fp16", "bf16"}),
        (LINEAR, {"fp32", "tf32", "fp16", "bf16"}),  # one position: too few rows for an integer product
        (TOKENS, {"fp32", "tf32", "fp16", "bf16", "fp16_2of4", "int8"}),
        (replace(TOKENS, out_channels=48), {"fp32", "tf32", "fp16", "bf16", "int8"}),
        (replace(TOKENS, out_channels=60), {"fp32", "tf32", "fp16", "bf16"}),
        (replace(TOKENS, width=17), {"fp32", "tf32", "fp16", "bf16", "int8"}),
        (replace(TOKENS, width=16), {"fp32", "tf32", "fp16", "bf16", "fp16_2of4"}),
        (Kernel("add", "fp32", 64, 64, 14, 14), {"fp32"}),
        (Kernel("quantize", "fp32", 64, 64, 14, 14), set()),
    ],
)
def test_what_an_h100_runs_by_hand(kernel: Kernel, runs_in: set[str]) -> None:
    assert {p for p in PRECISIONS if refusal(replace(kernel, precision=p), H100.capability) is None} == runs_in
    others = in_other_precisions([kernel, kernel], H100.capability)
    assert {other.precision for other in others} == runs_in - {"fp32"}
    assert len(others) == len(set(others))


def test_older_devices_run_less() -> None:
    runs = {
        capability: {p for p in PRECISIONS if refusal(replace(TOKENS, precision=p), capability) is None}
        for capability in ((6, 1), (7, 0), (7, 5), (8, 0))
    }
    assert runs[6, 1] == {"fp32"}
    assert runs[7, 0] == {"fp32", "fp16"}
    assert runs[7, 5] == {"fp32", "fp16", "int8"}
    assert runs[8, 0] == set(PRECISIONS)


def test_the_sides_of_sparse_weights_are_what_torch_asks_for() -> None:
    for backend in (SparseSemiStructuredTensorCUTLASS, SparseSemiStructuredTensorCUSPARSELT):
        shape = backend._DTYPE_SHAPE_CONSTRAINTS[torch.float16]
        assert SPARSE_WEIGHTS[0] % shape.sparse_min_rows == SPARSE_WEIGHTS[1] % shape.sparse_min_cols == 0


@pytest.mark.parametrize(
    "kernel",
    [
        replace(CONV, precision="fp16", stride=2), replace(CONV, precision="bf16", height=7, kernel_h=1),
        replace(DEPTHWISE, precision="fp16"), replace(CONV, precision="fp16", groups=4, out_channels=32),
        replace(LINEAR, precision="bf16"), replace(TOKENS, precision="fp16", out_channels=10),
        replace(TOKENS, precision="int8", out_channels=128),
    ],
    ids=str,
)  # fmt: skip
def test_torch_computes_the_kernel_that_the_table_names(kernel: Kernel) -> None:
    """The calls that are made on a GPU, on a CPU: of the shape and the type that the kernel says."""
    source = make_input(kernel, "cpu")
    first, second = make_call(kernel, source), make_call(kernel, source)
    result = first()
    assert source.numel() == kernel.in_elements and result.numel() == kernel.out_elements
    assert source.element_size() == kernel.value_bytes
    assert result.dtype == (torch.int32 if kernel.precision == "int8" else source.dtype)
    assert not torch.equal(result, second())  # weights of its own


@pytest.mark.parametrize("op", ["conv", "depthwise", "linear", "add", "mul", "concat", "max_pool", "global_avg_pool"])
def test_the_room_for_results_is_known_before_a_graph_is_captured(op: str) -> None:
    kernel = Kernel(op, "fp32", 32, 32, 14, 14, groups=32 if op == "depthwise" else 1)
    session = onnxruntime.InferenceSession(kernel_model(kernel, 3), providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    results = session.run(None, {source.name: input_values(source.type, source.shape)})
    assert [static_shape(o.shape, 1) for o in session.get_outputs()] == [list(result.shape) for result in results]
    assert static_shape(["batch", 10], 3) == [3, 10]


def test_what_the_runtime_warns_of_while_it_loads_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []

    class Session:
        def __init__(self, model: bytes, options: onnxruntime.SessionOptions, providers: object) -> None:
            said.append(options.log_severity_level)
            raise RuntimeError("no device here")

    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", said.append)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    watch = SimpleNamespace(stream=SimpleNamespace(cuda_stream=0))
    with pytest.raises(RuntimeError, match="no device here"):
        OnnxReplay(kernel_model(CONV), watch)
    assert said == [3, 3]  # the process' logger is quiet before the session is made, and the session's is


def test_the_table_of_the_h200_is_the_one_that_was_measured() -> None:
    profile = find_profile("gpu_h200")
    assert len(profile.latencies) == 309
    assert {kernel.precision for kernel in profile.latencies} == {"fp32"}
    assert profile.provenance.kind == "measured" and "H200" in profile.provenance.text
    model = LatencyModel.from_table(profile.latencies, profile.calibration)
    _, low, high = model.predict(list(profile.latencies)).total_us
    # The farthest of the networks that were timed took 1 / (1 - 0.38) of its estimate.
    assert high / low >= (1 / (1 - profile.calibration["resnet_too_fast_most"])) ** 2


@pytest.mark.parametrize("name", ["gpu_h100", "gpu_h200", "host_gpu"])
def test_gpus_store_few_bits_and_compute_in_float(name: str) -> None:
    profile = find_profile(name)
    layer = LayerSpec("a", "conv2d", (8, 8, 3, 3), Channels(((None, 8),)), Channels(((None, 8),)), 64)
    for bits in range(2, 9):
        kernel = profile.capability(layer, LayerPolicy(bits, "float"))
        assert kernel is not None and kernel.bytes_only and kernel.runs_as == "fp32"
        assert profile.capability(layer, LayerPolicy(bits, "int8")) is None


def real_gpu() -> bool:
    try:
        find_gpu()
    except NoGpu:
        return False
    return True


@pytest.mark.gpu
@pytest.mark.skipif(not real_gpu(), reason="no CUDA GPU with onnxruntime-gpu is at hand")
class TestOnAGpu:
    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_a_kernel_is_measured_in_every_precision_that_runs(self, precision: str) -> None:
        gpu = find_gpu()
        kernel = replace(TOKENS, in_channels=1024, out_channels=1024, width=256, precision=precision)
        if refusal(kernel, gpu.capability) is not None:
            pytest.skip(f"{gpu.name} does not run {precision}")
        chains = make_chains(kernel, stopwatch_of(gpu))
        for _ in range(FEWEST_ROUNDS):
            chains.time_once()
        # No device of today multiplies 0.27 G in a tenth of a microsecond, and none takes a millisecond.
        assert 0.1 < chains.timing.us < 1000.0

    def test_twice_the_work_takes_longer(self) -> None:
        gpu = find_gpu()
        small = Kernel("conv", "fp32", 256, 256, 56, 56, 3, 3)
        large = replace(small, out_channels=1024)
        measure = measure_on(gpu, lambda kernel: make_chains(kernel, stopwatch_of(gpu)))
        found = {kernel: latency.latency_us for kernel, latency, _ in measure([small, large], float("inf"))}
        assert found[large] > 2 * found[small]

    def test_a_model_that_the_provider_lacks_a_kernel_for_is_refused(self) -> None:
        # A session that captures graphs refuses before it asks where else the kernel could run.
        with pytest.raises(Exception, match=rf"(?i)cpu|not been partitioned to the {PROVIDER}"):
            OnnxReplay(kernel_model(replace(CONV, precision="int8")), stopwatch_of(find_gpu()))
