"""What a search for an Ethos-U gained over plain int8, and in which layers.

    autocomp search --hw npu_ethos_u55 --max-latency 2ms && python experiments/ethos_u/gain/run.py runs/latest

Both files are compiled again by Vela, whose estimate of each operator is compared. The point is the fastest one that
loses at most `--points` percentage points of accuracy against the float network, on the validation split that the
search used; the test split, which it never saw, stands beside it. Prints a line for each of the layers that gained
most, and one JSON line: compiled bytes and cycles of both, their ratios, and the share of the cycles won by each cause.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

from autocomp.hardware.ethos_u.accelerator import Accelerator
from autocomp.hardware.ethos_u.compiler import compile_tflite
from autocomp.hardware.ethos_u.performance import OperatorEstimate
from autocomp.hardware.profile import find_profile
from autocomp.rundir import Measured, read_run


def limit(operators: list[OperatorEstimate]) -> str:
    """What an operator's cycles are spent on: the part that takes the longest."""
    parts = {name: sum(getattr(o, f"{name}_cycles") for o in operators) for name in ("npu", "sram", "dram", "flash")}
    return max(parts, key=lambda name: parts[name])


def by_layer(run: Path, point: Measured, layers: list[str], accelerator: Accelerator) -> dict[str, tuple[int, str]]:
    """Layer → (cycles, what limits it). Operators without weights go under "the rest"."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = compile_tflite(run / point.file, Path(folder), accelerator)
    assert compiled.size_bytes == point.compiled_bytes
    assert compiled.latency_ms == point.latency_ms
    found: dict[str, list[OperatorEstimate]] = defaultdict(list)
    # Longest names first: "stem.1" is not a layer of "stem.10".
    for operator in compiled.operators:
        owner = next((n for n in sorted(layers, key=len, reverse=True) if operator.name.startswith(n)), "the rest")
        found[owner].append(operator)
    return {name: (sum(o.cycles for o in operators), limit(operators)) for name, operators in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--points", type=float, default=0.5)
    parser.add_argument("--layers", type=int, default=12)
    options = parser.parse_args()
    data = read_run(options.run)
    profile = find_profile(str(data.settings["hw"]))
    assert profile.accelerator is not None, "a run for an Ethos-U"
    reference, int8 = data.references["float"], data.references["int8"]
    close = [p for p in data.front if p.accuracy >= reference.accuracy - options.points / 100]
    assert close, f"no point within {options.points} points of the float network's accuracy"
    best = min(close, key=lambda point: point.latency_ms or 0.0)
    layers = [layer.name for layer in data.layers]
    before, after = (by_layer(options.run, point, layers, profile.accelerator) for point in (int8, best))
    gained = {name: cycles - after.get(name, (0, ""))[0] for name, (cycles, _) in before.items()}
    total = sum(gained.values())
    policy = data.policies[best.name]
    causes: dict[str, float] = defaultdict(float)
    for name, cycles in gained.items():
        causes[before[name][1]] += cycles / total
    for name in sorted(gained, key=lambda name: -gained[name])[: options.layers]:
        now, limited = after.get(name, (0, ""))
        decision = policy.layer(name) if name in layers else ""
        print(f"{name:<28} {before[name][0]:>9,} → {now:>9,} cycles  {gained[name] / total:6.1%}  "
              f"{before[name][1]} → {limited:<5}  {decision}")  # fmt: skip
    print(json.dumps({
        "device": profile.name, "point": best.name,
        "float_accuracy": reference.accuracy, "int8_accuracy": int8.accuracy, "accuracy": best.accuracy,
        "float_test": reference.test_accuracy, "int8_test": int8.test_accuracy, "test": best.test_accuracy,
        "int8_compiled_bytes": int8.compiled_bytes, "compiled_bytes": best.compiled_bytes,
        "bytes_ratio": round(best.stored_bytes / int8.stored_bytes, 3),
        "int8_cycles": sum(c for c, _ in before.values()), "cycles": sum(c for c, _ in after.values()),
        "int8_ms": int8.latency_ms, "ms": best.latency_ms,
        "speedup": round((int8.latency_ms or 0.0) / (best.latency_ms or 1.0), 2),
        "won_where_limited_by": {name: round(share, 3) for name, share in causes.items()},
        "cpu_operators": best.cpu_operators,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
