"""The calls of a CUDA device: chains of a kernel as CUDA graphs, timed by events.

They have run on an H200; docs/gpu.md says what was seen, and what nobody has looked at yet.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from autocomp.hardware.cuda.gpu import PROVIDER, Gpu
from autocomp.hardware.cuda.precisions import BY_ONNX_RUNTIME
from autocomp.hardware.cuda.timing import Replay, ReplayedChains, chain_copies
from autocomp.hardware.kernel_models import kernel_model
from autocomp.hardware.runner import input_values, single_thread_options
from autocomp.kernel import Kernel

if TYPE_CHECKING:
    import torch

#: Before a graph is captured, the libraries choose their algorithms and take their memory.
_WARM_UP = 3
#: Errors and worse. What the runtime warns of while it looks for providers is said by the logger of the process, not by
#: a session's, once a session and between the lines of progress ("No registered plugin EP device found ...").
_ERRORS = 3


class Stopwatch:
    """Times what is queued on the device, with its second-level cache full of something else before."""

    def __init__(self, gpu: Gpu) -> None:
        import torch

        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._other = torch.empty(2 * max(gpu.l2_bytes, 1), dtype=torch.uint8, device="cuda")
        self._start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def device_us(self, queue: Callable[[], object]) -> float:
        """Microseconds that the device takes for what `queue` puts into `stream`.

        Filling the cache takes the device longer than queueing takes the processor, so none of that is timed.
        """
        import torch

        with torch.cuda.stream(self.stream):
            self._other.zero_()
            self._start.record(self.stream)
            queue()
            self._end.record(self.stream)
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) * 1000.0


#: One for all chains of a device: it holds memory twice the size of the cache.
stopwatch_of = cache(Stopwatch)


class OnnxReplay:
    """An ONNX model as ONNX Runtime's CUDA provider executes it, in a CUDA graph.

    model: serialized, or the path of a file. values: for its input; drawn where there are none. Loading fails if any
    operator would run on the CPU.
    """

    def __init__(self, model: bytes | str, stopwatch: Stopwatch, *, tf32: bool = False, values: Any = None) -> None:
        onnxruntime.set_default_logger_severity(_ERRORS)
        options = single_thread_options()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        provider = {
            "device_id": "0", "enable_cuda_graph": "1", "use_tf32": str(int(tf32)),
            "user_compute_stream": str(stopwatch.stream.cuda_stream),
        }  # fmt: skip
        self._stopwatch = stopwatch
        self._session = onnxruntime.InferenceSession(model, options, [(PROVIDER, provider)])
        if self._session.get_providers()[0] != PROVIDER:
            raise RuntimeError(f"{PROVIDER} does not load: its CUDA or cuDNN libraries are not found")
        source = self._session.get_inputs()[0]
        if values is None:
            values = input_values(source.type, source.shape)
        # A graph reads and writes where it did when it was captured, which is in the first call.
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(source.name, onnxruntime.OrtValue.ortvalue_from_numpy(values, "cuda", 0))
        for result in self._session.get_outputs():
            room = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                static_shape(result.shape, len(values)), np.float32, "cuda", 0
            )
            self._binding.bind_ortvalue_output(result.name, room)
        for _ in range(_WARM_UP):
            self._run()

    def replay_us(self) -> float:
        return self._stopwatch.device_us(self._run)

    def _run(self) -> None:
        self._session.run_with_iobinding(self._binding)


class TorchReplay:
    """Copies of a kernel as torch executes them, in a CUDA graph."""

    def __init__(self, kernel: Kernel, copies: int, stopwatch: Stopwatch) -> None:
        import torch

        self._stopwatch = stopwatch
        source = make_input(kernel, "cuda")
        calls = [make_call(kernel, source) for _ in range(copies)]
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.backends.cudnn.flags(benchmark=True):
            with torch.cuda.stream(stopwatch.stream):
                for _ in range(_WARM_UP):
                    for call in calls:
                        call()
            stopwatch.stream.synchronize()
            with torch.cuda.graph(self._graph, stream=stopwatch.stream):
                for call in calls:
                    call()
        self._kept = (source, calls)  # the graph holds addresses, not tensors

    def replay_us(self) -> float:
        return self._stopwatch.device_us(self._graph.replay)


def static_shape(shape: Sequence[int | str], batch: int) -> list[int]:
    """The shape of a model's output for inputs of a `batch`, which is the one axis that a file may leave open."""
    return [size if isinstance(size, int) else batch for size in shape]


def make_input(kernel: Kernel, device: str) -> "torch.Tensor":
    """(positions, channels) for a linear layer; (1, channels, height, width), channels last in memory, for others."""
    import torch

    dtype = {"bf16": torch.bfloat16, "int8": torch.int8}.get(kernel.precision, torch.float16)
    if kernel.op == "linear":
        return torch.ones((kernel.height * kernel.width, kernel.in_channels), dtype=dtype, device=device)
    image = torch.ones((1, kernel.in_channels, kernel.height, kernel.width), dtype=dtype, device=device)
    return image.to(memory_format=torch.channels_last)


def make_call(kernel: Kernel, source: "torch.Tensor") -> Callable[[], "torch.Tensor"]:
    """One copy of the kernel on `source`, with weights of its own, on the device of `source`."""
    import torch
    from torch.nn import functional

    out, into, device = kernel.out_channels, kernel.in_channels // kernel.groups, source.device
    if kernel.precision == "int8":
        integers = torch.randint(-127, 128, (out, into), dtype=torch.int8, device=device)
        return lambda: torch._int_mm(source, integers.t())
    bias = torch.zeros(out, dtype=source.dtype, device=device)
    if kernel.op == "linear":
        weight = torch.randn((out, into), dtype=source.dtype, device=device)
        if kernel.precision == "fp16_2of4":
            half = torch.tensor([True, True, False, False], device=device).repeat(out, into // 4)
            weight = torch.sparse.to_sparse_semi_structured(weight * half)
        return lambda: functional.linear(source, weight, bias)
    shape = (out, into, kernel.kernel_h, kernel.kernel_w)
    filters = torch.randn(shape, dtype=source.dtype, device=device).to(memory_format=torch.channels_last)
    padding = (kernel.kernel_h // 2, kernel.kernel_w // 2)
    return lambda: functional.relu(
        functional.conv2d(source, filters, bias, kernel.stride, padding, groups=kernel.groups)
    )


def make_chains(kernel: Kernel, stopwatch: Stopwatch) -> ReplayedChains:
    """Both chains of `kernel`, on the device. Raises what the libraries raise where they refuse it."""
    short, long = chain_copies(kernel)

    def replay(copies: int) -> Replay:
        if kernel.precision in BY_ONNX_RUNTIME:
            model = kernel_model(replace(kernel, precision="fp32"), copies)
            return OnnxReplay(model, stopwatch, tf32=kernel.precision == "tf32")
        return TorchReplay(kernel, copies, stopwatch)

    return ReplayedChains(replay(short), replay(long), long - short)
