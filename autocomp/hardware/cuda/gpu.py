"""Which CUDA device this machine has, and what is lacking where it cannot be measured."""

import re
from dataclasses import dataclass
from pathlib import Path

from autocomp.errors import UserError

#: The provider of ONNX Runtime that executes files on the device.
PROVIDER = "CUDAExecutionProvider"
#: One of these exists where a driver is loaded: on Linux, on Windows' Linux, on boards with a GPU inside. Without any,
#: torch need not be asked, which takes seconds to import.
_DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvmap")
_DRIVER_VERSION = Path("/proc/driver/nvidia/version")

#: Compute capability, major and minor: 8.0 is Ampere, 9.0 Hopper.
Capability = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first CUDA device, and the software that measures it. driver, cuda, torch, onnxruntime: versions."""

    name: str
    capability: Capability
    l2_bytes: int
    memory_bytes: int
    driver: str
    cuda: str
    torch: str
    onnxruntime: str

    @property
    def software(self) -> str:
        """For the provenance of what is measured on it."""
        return f"driver {self.driver}, CUDA {self.cuda}, torch {self.torch}"


class NoGpu(Exception):
    """There is no CUDA device that can be measured. The message is a clause that says why and what to do."""


_ELSEWHERE = "run this where there is one, or choose another device (autocomp hw list)"


def find_gpu() -> Gpu:
    """The first CUDA device of this machine. NoGpu where there is none, or the software for it is missing."""
    if not any(Path(file).exists() for file in _DRIVER_FILES):
        raise NoGpu(f"this machine has no CUDA GPU (no NVIDIA driver is loaded): {_ELSEWHERE}")
    import onnxruntime
    import torch

    if torch.version.cuda is None:
        raise NoGpu(f"torch {torch.__version__} is built without CUDA: install a build of torch with CUDA")
    if not torch.cuda.is_available():
        raise NoGpu(f"torch {torch.__version__} finds no CUDA GPU on this machine: {_ELSEWHERE}")
    if PROVIDER not in onnxruntime.get_available_providers():
        raise NoGpu(
            f"the onnxruntime {onnxruntime.__version__} that is installed has no {PROVIDER}, which executes the files: "
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
        )
    properties = torch.cuda.get_device_properties(0)
    return Gpu(
        properties.name, (properties.major, properties.minor), properties.L2_cache_size, properties.total_memory,
        driver_version(_DRIVER_VERSION), torch.version.cuda, torch.__version__, onnxruntime.__version__,
    )  # fmt: skip


def require(profile: str, wanted: str, gpu: Gpu) -> Gpu:
    """`gpu`, if its name holds `wanted`, which `profile` asks for. UserError where it does not."""
    if wanted.lower() not in gpu.name.lower():
        raise UserError(
            f"{profile} is measured on a CUDA GPU whose name holds {wanted!r}, and this machine's is {gpu.name!r}: "
            "take host_gpu, or run this where there is one"
        )
    return gpu


def driver_version(file: Path) -> str:
    """Version of the NVIDIA driver from the `file` in which Linux' kernel module states it; "unknown" without it."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    found = re.search(r"NVRM version:.*?\s(\d{3,}\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else "unknown"
