"""Latency measured on each file of a host_cpu front beside what the search predicted for it.

    autocomp search --hw host_cpu --budget 4MB && python experiments/host_front/run.py runs/latest

Files are timed in turn, round after round, on one thread at batch size 1; a file's time is the median over rounds of
the fastest of a few calls, since other processes only ever slow a call down. Prints a line a file and one JSON line:
largest and mean error in percent, Spearman's rank correlation, share of files inside their band.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
from scipy.stats import spearmanr

from autocomp.export.scorer import session_options
from autocomp.rundir import read_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=10)
    options = parser.parse_args()
    data = read_run(options.run)
    points = [*data.references.values(), *data.front]
    sessions = [
        onnxruntime.InferenceSession(str(options.run / p.file), session_options(), providers=["CPUExecutionProvider"])
        for p in points
    ]
    rng = np.random.default_rng(0)
    feeds = []
    for session in sessions:
        value = session.get_inputs()[0]
        shape = [1 if not isinstance(d, int) else d for d in value.shape]
        feeds.append({value.name: rng.standard_normal(shape).astype(np.float32)})
    times: list[list[float]] = [[] for _ in points]
    for round_number in range(options.rounds + 2):
        for index, (session, feed) in enumerate(zip(sessions, feeds, strict=True)):
            best = float("inf")
            for _ in range(options.calls):
                start = time.perf_counter()
                session.run(None, feed)
                best = min(best, time.perf_counter() - start)
            if round_number >= 2:  # the first rounds warm the caches
                times[index].append(best * 1000)
    measured = np.array([np.median(t) for t in times])
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
