"""Latencies of this machine's own CPU: how a kernel is timed, and where its table is kept."""

import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import onnxruntime
import platformdirs

from autocomp.hardware.arithmetic import saturates
from autocomp.hardware.kernel_models import kernel_model
from autocomp.hardware.profiling.chains import REFERENCE, chain_copies, table_latency
from autocomp.hardware.profiling.fill import Measured
from autocomp.hardware.profiling.together import time_together
from autocomp.hardware.runner import BoundModel, Chains, Timing, cpu_name, keeps_blocks
from autocomp.kernel import Kernel

#: Names the way of measuring: rows of different ones must not meet in a table. 2: kernels as inside a network.
_METHOD = 2


def host_table_path(folder: Path | None = None) -> Path:
    """Where this machine's latencies are kept: a file per CPU model, number of cores, runtime and way of measuring."""
    folder = folder or Path(platformdirs.user_cache_dir("autocomp")) / "host_cpu"
    machine = re.sub(r"[^A-Za-z0-9]+", "-", cpu_name()).strip("-").lower()
    # Rows of int8 weights, which such a processor multiplies wrongly and faster, must not be taken for these.
    weights = "-uint8weights" if saturates() else ""
    return folder / f"{machine}-{os.cpu_count()}cores-onnxruntime-{onnxruntime.__version__}-{_METHOD}{weights}.csv"


def measure_batch(kernels: Sequence[Kernel], deadline: float = float("inf")) -> Iterator[Measured]:
    """What a table says of `kernels`, timed on this machine now; see `time_kernels`."""
    for kernel, timing, reference in time_kernels(kernels, deadline):
        yield Measured(kernel, table_latency(kernel, timing), table_latency(REFERENCE, reference).latency_us)


def time_kernels(kernels: Sequence[Kernel], deadline: float = float("inf")) -> Iterator[tuple[Kernel, Timing, Timing]]:
    """Times `kernels` on this machine now, beside each the reference kernel; see `profiling.together.time_together`."""
    return time_together(kernels, _chains, deadline)


def _chains(kernel: Kernel) -> Chains:
    short, long = chain_copies(kernel)
    models = [
        BoundModel(kernel_model(kernel, copies, blocked=_blocked(), unsigned_weights=saturates()))
        for copies in (short, long)
    ]
    return Chains(models[0], models[1], long - short)


@cache
def _blocked() -> bool:
    return keeps_blocks(kernel_model(REFERENCE))
