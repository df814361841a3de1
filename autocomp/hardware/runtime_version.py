"""Which version of a runtime is installed here, and whether a table that another one filled still holds.

Versions are compared by major and minor number. ONNX Runtime changes kernels and fusions between minor releases (1.31
to 1.32) and repairs faults in patch releases (1.32.0 to 1.32.1), after which its kernels take the same time.
"""

import re
from importlib.metadata import PackageNotFoundError, version

#: Packages that hold a runtime under another name than its own.
_PACKAGES = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")}


def installed_version(runtime: str) -> str | None:
    """Version of the installed package that holds `runtime`; None where none is installed."""
    for package in _PACKAGES.get(runtime, (runtime,)):
        try:
            return version(package)
        except (PackageNotFoundError, ValueError):  # ValueError: no package can have such a name
            continue
    return None


def release(text: str) -> tuple[int, int] | None:
    """Major and minor number of a version: "1.32.0" → (1, 32). None where it does not begin with both."""
    found = re.match(r"(\d{1,6})\.(\d{1,6})(?!\d)", text)
    return None if found is None else (int(found[1]), int(found[2]))


def same_release(one: str, other: str) -> bool:
    """Whether two versions agree in major and minor number."""
    return release(one) == release(other)
