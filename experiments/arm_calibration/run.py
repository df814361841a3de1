"""Fits the scale of each simulated core to published times of ncnn's networks, and says how far off it is.

ncnn's own aarch64 build runs under the same emulator and is priced by the same model as ONNX Runtime's kernels are.
Prints one JSON line per network and per board; the last is the summary.
"""

import itertools
import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ncnn_networks import NETWORKS

from autocomp.errors import RunError
from autocomp.hardware.arm_simulation.blocks import read_dump
from autocomp.hardware.arm_simulation.cores import core
from autocomp.hardware.arm_simulation.price import Pricer
from autocomp.hardware.arm_simulation.sandbox import GUEST_PYTHON, WHEEL_PLATFORMS, Sandbox, prepare

NCNN = "ncnn==1.0.20261020"


@dataclass(frozen=True)
class Board:
    """A board, and its shortest time of each network on one thread, in ms."""

    name: str
    core: str
    clock_ghz: float
    milliseconds: Mapping[str, float]


def _times(*milliseconds: float) -> Mapping[str, float]:
    """Times of the networks in their order; VGG16 does not fit the memory of the smallest boards."""
    return dict(zip(NETWORKS, milliseconds, strict=False))


# ncnn's benchmark/README.md, versions of 2021 to 2024, the column "min" of the runs with num_threads = 1.
BOARDS = (
    Board("Raspberry Pi 4", "cortex-a72", 1.8, _times(73.35, 123.76, 92.98, 83.60, 190.80, 533.15, 1066.58)),
    Board("RK3399, big core", "cortex-a72", 1.8, _times(71.35, 111.12, 78.18, 72.34, 175.71, 503.25, 1044.34)),
    Board("Raspberry Pi 3 B+", "cortex-a53", 1.4, _times(125.34, 204.62, 158.69, 148.12, 379.21, 977.51)),
    Board("RK3399, little core", "cortex-a53", 1.5, _times(129.63, 207.92, 143.02, 139.86, 351.64, 975.40, 2170.12)),
    Board("Raspberry Pi Zero 2 W", "cortex-a53", 1.0, _times(240.53, 393.79, 273.97, 265.70, 653.62, 1800.97)),
    Board("RK3588, big core", "cortex-a76", 2.4, _times(25.04, 41.17, 27.27, 26.45, 60.97, 186.95, 333.81)),
)


def unpacked_ncnn(folder: Path) -> Path:
    """ncnn's aarch64 wheel, downloaded and unpacked in the folder."""
    platforms = [word for platform in WHEEL_PLATFORMS for word in ("--platform", platform)]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
    ]
    subprocess.run([*pip, "--python-version", GUEST_PYTHON, "--implementation", "cp", *platforms, NCNN], check=True)
    (wheel,) = folder.glob("ncnn-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "ncnn")
    return folder / "ncnn"


def cycles(sandbox: Sandbox, ncnn: Path, folder: Path) -> dict[str, float]:
    """Cycles of one inference of each network on the simulated core."""
    pricer = Pricer(sandbox.core.mca_cpu)
    result = {}
    for name, build in NETWORKS.items():
        param, out = folder / f"{name}.param", folder / f"{name}.blocks"
        param.write_text(build().text())
        command = sandbox.command(Path(__file__).with_name("guest.py"), [str(ncnn), "1", str(param)], out)
        done = subprocess.run(command, env=sandbox.environment, capture_output=True, text=True, check=False)
        if done.returncode or json.loads(done.stdout)["error"] is not None:
            raise RunError(f"{name} did not run on the simulated core: {(done.stdout + done.stderr)[-300:]}")
        result[name] = pricer.cycles(read_dump(out.with_name(f"{out.name}.0")))
        print(json.dumps({"core": sandbox.core.name, "network": name, "cycles": round(result[name])}), flush=True)
    return result


def ratios(board: Board, cycles: Mapping[str, float]) -> dict[str, float]:
    """Published time / simulated time of each network."""
    return {name: ms / (cycles[name] / (board.clock_ghz * 1e6)) for name, ms in board.milliseconds.items()}


def geometric_mean(values: list[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def errors(scale: float, ratios: Mapping[str, float]) -> list[float]:
    """|estimate / published - 1| of each network under the scale."""
    return [abs(scale / ratio - 1) for ratio in ratios.values()]


def main() -> None:
    summary: dict[str, dict[str, float]] = {}
    with TemporaryDirectory(prefix="arm_calibration-") as name:
        ncnn = unpacked_ncnn(Path(name))
        for core_name, group in itertools.groupby(BOARDS, key=lambda board: board.core):
            counted = cycles(prepare(core(core_name)), ncnn, Path(name))
            found = {board.name: ratios(board, counted) for board in group}
            left_out = []
            for board, own in found.items():
                scale = geometric_mean(list(own.values()))
                line = {"board": board, "scale": round(scale, 3), **{n: round(r, 2) for n, r in own.items()}}
                on_it = errors(scale, own)
                line |= {"error_mean": round(sum(on_it) / len(on_it), 3), "error_max": round(max(on_it), 3)}
                others = [ratio for other, of in found.items() if other != board for ratio in of.values()]
                if others:
                    off_it = errors(geometric_mean(others), own)
                    left_out += off_it
                    line |= {
                        "left_out_mean": round(sum(off_it) / len(off_it), 3),
                        "left_out_max": round(max(off_it), 3),
                    }
                print(json.dumps(line), flush=True)
                summary[board] = {key: line[key] for key in ("scale", "error_mean", "error_max")}
            if left_out:
                mean = round(sum(left_out) / len(left_out), 3)
                summary[core_name] = {"left_out_mean": mean, "left_out_max": round(max(left_out), 3)}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
