"""Do devices want different compressions of one network? Three searches that differ in nothing but the device.

    python experiments/three_devices/run.py [--hw mobile_arm,host_cpu,npu_ethos_u55] [--minutes 8] [--speedup 1.3]

Each search has the same task, seed and minutes, and the same wish: to be `--speedup` times as fast as plain int8 is on
its own device. One that is in --out already is not run again. The best policy of each is the most accurate point of its
front (validation split); of points that are equally accurate, the fastest.
Prints a JSON line for each device, with the decision for every layer, and a last one that says how they differ; draws
the decisions side by side into policies.svg in --out.
"""

import argparse
import json
import subprocess
import sys
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

from autocomp.policy import Policy
from autocomp.report.axes import FAINT, INK
from autocomp.report.explain import LayerDecision, decisions
from autocomp.rundir import Measured, RunData, read_run
from autocomp.settings import split_devices

AUTOCOMP = (sys.executable, "-m", "autocomp")
#: Geometry of the picture, in pixels: a line for each layer, and three bars a device.
_LINE, _NAME, _BAR, _GAP, _HEAD = 16, 190, 70, 14, 58
#: Colours of the three bars: bits of a weight (lighter and with "c32" for a codebook of 32 levels), weights that are
#: not zero, channels kept.
_BARS = {"bits": "#3b528b", "nonzero": "#21918c", "channels": "#7a9a2b"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hw", default="mobile_arm,host_cpu,npu_ethos_u55")
    parser.add_argument("--task", default="mnist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--speedup", type=float, default=1.3)
    parser.add_argument("--out", type=Path, default=Path("runs/three_devices"))
    options = parser.parse_args()
    best: dict[str, tuple[RunData, Measured]] = {}
    for device in split_devices(options.hw):
        data = read_run(search(device, options))
        best[device] = data, best_point(data)
        print(json.dumps(describe(device, *best[device])), flush=True)
    layers = {device: rows(data, point) for device, (data, point) in best.items()}
    (options.out / "policies.svg").write_text(picture(layers), encoding="utf-8")
    print(json.dumps({"devices": list(layers), "layers_decided_otherwise": differences(layers)}))


def search(device: str, options: argparse.Namespace) -> Path:
    """The run directory of a finished search for one device."""
    run: Path = options.out / Path(device).stem
    if not (run / "front.csv").is_file():
        bound = f"{plain_int8_us(device, options) / options.speedup:.0f}us"
        command = [
            *AUTOCOMP, "search", "--hw", device, "--task", options.task, "--seed", str(options.seed), "--minutes",
            str(options.minutes), "--max-latency", bound, "--out", str(run),
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=sys.stderr)
    return run


def plain_int8_us(device: str, options: argparse.Namespace) -> float:
    """Microseconds of the task's network with nothing compressed but everything int8."""
    command = [*AUTOCOMP, "estimate", "--hw", device, "--task", options.task, "--json"]
    networks = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["networks"]
    return 1000 * float(next(network["latency_ms"] for network in networks if network["name"] == "int8"))


def best_point(run: RunData) -> Measured:
    """The most accurate point; the fastest of those that are equally accurate."""
    return min(run.front, key=lambda point: (-point.accuracy, point.latency_ms or 0.0, point.stored_bytes))


def rows(run: RunData, point: Measured) -> list[LayerDecision]:
    policy: Policy = run.policies[point.name]
    return decisions(policy, run.layers)


def describe(device: str, run: RunData, point: Measured) -> dict[str, Any]:
    """A device's best policy with its figures; per layer what it decides."""
    return {
        "device": device, "id": point.name, "accuracy": point.accuracy, "test_accuracy": point.test_accuracy,
        "float_accuracy": run.references["float"].accuracy, "stored_bytes": point.stored_bytes,
        "latency_ms": point.latency_ms, "int8_latency_ms": run.references["int8"].latency_ms,
        "provenance": point.provenance,
        "layers": [
            {"layer": row.name, "decision": str(row.decided), "kept": row.kept, "channels": row.channels}
            for row in rows(run, point)
        ],
    }  # fmt: skip


def differences(layers: dict[str, list[LayerDecision]]) -> dict[str, int]:
    """For each two devices, the number of layers about which they decide differently."""
    return {
        f"{one}, {other}": sum(
            (a.decided, a.kept) != (b.decided, b.kept) for a, b in zip(layers[one], layers[other], strict=True)
        )
        for one, other in combinations(layers, 2)
    }


def picture(layers: dict[str, list[LayerDecision]]) -> str:
    """The decisions side by side: a line for each layer, bars of bits, of weights left and of channels kept."""
    first = next(iter(layers.values()))
    group = len(_BARS) * (_BAR + 6) + _GAP
    width, height = _NAME + len(layers) * group, _HEAD + len(first) * _LINE + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="{INK}" role="img">',
        "<title>What the best policy for each device decides about each layer</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for line, row in enumerate(first):
        parts.append(f'<text x="4" y="{_HEAD + line * _LINE + 11}">{escape(row.name[-28:])}</text>')
    for index, (device, decided) in enumerate(layers.items()):
        left = _NAME + index * group
        parts.append(f'<text x="{left}" y="20" font-size="14" font-weight="600">{escape(device)}</text>')
        for place, name in enumerate(_BARS):
            parts.append(f'<text x="{left + place * (_BAR + 6)}" y="{_HEAD - 10}">{name}</text>')
        for line, row in enumerate(decided):
            parts += [bar for place in range(len(_BARS)) for bar in bars(row, place, left, _HEAD + line * _LINE)]
    return "\n".join([*parts, "</svg>", ""])


def bars(row: LayerDecision, place: int, left: int, top: int) -> list[str]:
    """One bar of a layer, as a share of what the uncompressed layer has, with its value."""
    bits, kept = row.decided.stored_bits, row.kept or 0
    coded = f", c{row.decided.clusters}" if row.decided.clusters else ""
    name, share, text = (
        ("bits", (bits or 32) / 8, "float" if bits is None else f"{bits}{coded}"),
        ("nonzero", 1 - row.decided.sparsity, f"{100 * (1 - row.decided.sparsity):.0f} %"),
        ("channels", kept / row.channels if row.channels else 1.0, f"{kept}" if row.channels else ""),
    )[place]
    x, height = left + place * (_BAR + 6), _LINE - 4
    return [
        f'<rect x="{x}" y="{top}" width="{_BAR}" height="{height}" fill="none" stroke="{FAINT}" stroke-width="0.5"/>',
        f'<rect x="{x}" y="{top}" width="{_BAR * min(1.0, share):.1f}" height="{height}" fill="{_BARS[name]}" '
        f'opacity="{0.3 if coded and name == "bits" else 0.55}"/>',
        f'<text x="{x + 4}" y="{top + 10}" font-size="9">{text}</text>',
    ]


if __name__ == "__main__":
    main()
