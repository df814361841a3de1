"""The devices of this machine: what a profile that is measured on the spot is measured on."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from autocomp.errors import UserError
from autocomp.hardware.host import host_table_path, measure_batch
from autocomp.hardware.profile import HardwareProfile
from autocomp.hardware.profiling.derived import Machine
from autocomp.hardware.profiling.fill import Measure
from autocomp.hardware.runner import AGREE, BoundModel, cpu_name
from autocomp.kernel import Kernel

#: A whole network is timed as the fastest of so many calls in a row; what it takes right after another one has no
#: place in a latency.
_CALLS = 5

#: Times a model once more: microseconds.
Round = Callable[[], float]


@dataclass(frozen=True)
class LocalDevice:
    """A device that is measured here.

    machine: for a profile's provenance. table: file of its latencies, which may not be there yet. measure: measures
    kernels. bind: loads a model (serialized, or the path of a file) with values for its input, or None for any.
    typical: microseconds that the rounds come to. refusal: why it does not run a kernel, None if it does.
    in_other_precisions: kernels that it also runs, though no file has them.
    """

    machine: Machine
    table: Path
    measure: Measure
    bind: Callable[[bytes | str, Any], Round]
    typical: Callable[[list[float]], float]
    refusal: Callable[[Kernel], str | None]
    in_other_precisions: Callable[[Sequence[Kernel]], list[Kernel]]


def local_device(profile: HardwareProfile, folder: Path | None = None) -> LocalDevice:
    """What `profile` is measured on. folder: of the tables, the user's cache by default.

    UserError in one line where that is not this machine, or not at hand.
    """
    if not profile.on_the_spot:
        raise UserError(f"{profile.name} is not this machine ({profile.device})")
    return _cpu(profile, folder) if profile.cuda_device is None else _gpu(profile, profile.cuda_device, folder)


def _cpu(profile: HardwareProfile, folder: Path | None) -> LocalDevice:
    cpu = cpu_name()
    device = f"{cpu}, {platform.machine()}, {os.cpu_count()} cores"

    def bind(model: bytes | str, values: Any) -> Round:
        bound = BoundModel(model, values)

        def once() -> float:
            bound.fastest_us(1)
            return bound.fastest_us(_CALLS)

        return once

    return LocalDevice(
        Machine(cpu, device, onnxruntime.__version__, profile.threads), host_table_path(folder), measure_batch, bind,
        undisturbed, lambda kernel: None, lambda kernels: [],
    )  # fmt: skip


def undisturbed(rounds: list[float]) -> float:
    """As the kernels of a CPU are timed: see `hardware.runner`."""
    return float(np.sort(rounds)[AGREE - 1])


def _gpu(profile: HardwareProfile, wanted: str, folder: Path | None) -> LocalDevice:
    from autocomp.hardware.cuda.chains import OnnxReplay, make_chains, stopwatch_of
    from autocomp.hardware.cuda.gpu import NoGpu, find_gpu, require
    from autocomp.hardware.cuda.measuring import gpu_table_path, measure_on
    from autocomp.hardware.cuda.precisions import in_other_precisions, refusal
    from autocomp.hardware.cuda.timing import typical

    try:
        gpu = require(profile.name, wanted, find_gpu())
    except NoGpu as reason:
        raise UserError(f"{profile.name} ships without a table, is measured on the GPU at hand, and {reason}") from None
    software = f"{gpu.software} (which runs precisions below TF32), CUDA graphs, weights out of the cache"
    return LocalDevice(
        Machine(gpu.name, f"{gpu.name} of the machine that was measured", gpu.onnxruntime, profile.threads, software),
        gpu_table_path(gpu, folder), measure_on(gpu, lambda kernel: make_chains(kernel, stopwatch_of(gpu))),
        lambda model, values: OnnxReplay(model, stopwatch_of(gpu), values=values).replay_us,
        typical, lambda kernel: refusal(kernel, gpu.capability),
        lambda kernels: in_other_precisions(kernels, gpu.capability),
    )  # fmt: skip
