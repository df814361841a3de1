"""Latency measured on each file of a host_cpu front beside what the search predicted for it.

    autocomp search --hw host_cpu --budget 4MB && python experiments/host_front/run.py runs/latest

Files are timed in turn, round after round, on one thread at batch size 1, with input and output bound to memory, as
networks are in `autocomp hw check`. Prints a line a file and one JSON line:
largest and mean error in percent, Spearman's rank correlation, share of files inside their band.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
from scipy.stats import spearmanr

from autocomp.hardware.local import undisturbed
from autocomp.hardware.runner import BoundModel
from autocomp.rundir import read_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=5)
    options = parser.parse_args()
    data = read_run(options.run)
    points = [*data.references.values(), *data.front]
    rng = np.random.default_rng(0)
    value = onnx.load(options.run / points[0].file).graph.input[0]
    shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
    models = [BoundModel(str(options.run / p.file), rng.standard_normal(shape).astype(np.float32)) for p in points]
    times: list[list[float]] = [[] for _ in points]
    for _ in range(options.rounds):
        for model, rounds in zip(models, times, strict=True):
            model.fastest_us(1)
            rounds.append(model.fastest_us(options.calls) / 1000)
    measured = np.array([undisturbed(rounds) for rounds in times])
    predicted = np.array([p.latency_ms for p in points])
    error = 100 * (predicted / measured - 1)
    inside = [p.latency_low_ms <= m <= p.latency_high_ms for p, m in zip(points, measured, strict=True)]
    for point, m, e, within in zip(points, measured, error, inside, strict=True):
        band = f"{point.latency_low_ms:.4f}–{point.latency_high_ms:.4f}"
        print(f"{point.name:>6}  predicted {point.latency_ms:8.4f} ms [{band}]  measured {m:8.4f} ms  {e:+6.1f} %"
              f"{'' if within else '  outside its band'}")  # fmt: skip
    print(json.dumps({
        "files": len(points), "max_error_percent": round(float(np.abs(error).max()), 1),
        "mean_error_percent": round(float(np.abs(error).mean()), 1),
        "spearman": round(float(spearmanr(predicted, measured).statistic), 4),
        "in_band": round(float(np.mean(inside)), 3),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
