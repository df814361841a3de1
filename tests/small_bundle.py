"""A bundle of a few small kernels, for tests of everything that happens to one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from autocomp.hardware.profile import find_profile
from autocomp.hardware.profiling.bundle import write_bundle
from autocomp.kernel import Kernel

KERNELS = [
    *(Kernel("conv", precision, 8 * i, 16, 6, 6, 3, 3) for i in (1, 2, 3) for precision in ("fp32", "int8")),
    Kernel("conv", "int8", 128, 512, 2, 2), Kernel("linear", "fp32", 300, 40, 1, 1),
    Kernel("add", "int8", 16, 16, 4, 4),
    Kernel("depthwise", "fp32", 96, 96, 6, 6, 3, 3, 1, 96), Kernel("quantize", "int8", 8, 8, 6, 6),
    Kernel("max_pool", "int8", 8, 8, 6, 6, 3, 3, 2),
]  # fmt: skip


def make(folder: Path, kernels: list[Kernel] = KERNELS) -> Path:
    write_bundle(folder, find_profile("mobile_arm"), "a few kernels", kernels)
    return folder


def run(folder: Path, *arguments: str, code: int = 0, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Runs the bundle as a board would: in isolated mode, from another folder."""
    result = subprocess.run(
        [python, "-I", str(folder / "run.py"), *arguments],
        cwd=folder.parent, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result


def results(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first line of the results, and the others."""
    header, *rows = (json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines())
    return header, rows


def write_results(folder: Path, rows: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
    """Results as a board would leave them in the bundle, without measuring; `changes` are to the first line."""
    manifest = json.loads((folder / "manifest.json").read_text())
    header = {
        "format": 1, "bundle": manifest["bundle"], "base": manifest["base"], "space": manifest["space"],
        "kernels": len(manifest["kernels"]), "cpu": "Cortex-A72", "machine": "aarch64", "cores": 4, "threads": 1,
        "onnxruntime": "1.30.1", "date": "2026-11-25",
    }  # fmt: skip
    if rows is None:
        rows = [row(entry["kernel"], 10.0 + i) for i, entry in enumerate(manifest["kernels"])]
    path = folder / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in ({**header, **changes}, *rows)))
    return path


def row(kernel: str, us: float, reference_us: float = 20.0, **changes: Any) -> dict[str, Any]:
    measured = {"us": us, "cold_us": us, "spread_us": 0.1, "rounds": 9, "reference_us": reference_us}
    return {"kernel": kernel, **measured, **changes}
