"""What `profiling.fill` asks of a CUDA device: a batch of kernels measured, and where the table is kept."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import platformdirs

from autocomp.hardware.cuda.gpu import Gpu
from autocomp.hardware.cuda.precisions import refusal
from autocomp.hardware.cuda.timing import table_latency
from autocomp.hardware.profiling.fill import Measure, Measured
from autocomp.hardware.profiling.together import time_together
from autocomp.hardware.runner import TimedInRounds
from autocomp.kernel import Kernel

#: Names the way of measuring: rows of different ones must not meet in a table.
_METHOD = 1


def gpu_table_path(gpu: Gpu, folder: Path | None = None) -> Path:
    """Where the latencies of this device are kept: a file per device, versions of its software and way of measuring."""
    folder = folder or Path(platformdirs.user_cache_dir("autocomp")) / "gpu"
    named = f"{gpu.name}-driver-{gpu.driver}-cuda-{gpu.cuda}-torch-{gpu.torch}-onnxruntime-{gpu.onnxruntime}-{_METHOD}"
    return folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', named).lower()}.csv"


def measure_on(gpu: Gpu, make_chains: Callable[[Kernel], TimedInRounds]) -> Measure:
    """What measures kernels on `gpu`. make_chains: of one kernel, on the device.

    Kernels that the device does not run in their precision are left out.
    """

    def measure(kernels: Sequence[Kernel], deadline: float) -> Iterator[Measured]:
        run = [kernel for kernel in kernels if refusal(kernel, gpu.capability) is None]
        for kernel, timing, reference in time_together(run, make_chains, deadline):
            yield Measured(kernel, table_latency(timing), table_latency(reference).latency_us)

    return measure
