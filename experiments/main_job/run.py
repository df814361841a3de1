"""The main job as an experiment: run a search, check the figures that it must show, print one JSON line.

    python experiments/main_job/run.py [--run RUN]

Without --run it runs `autocomp search --hw mobile_arm --budget 4MB` first.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from autocomp.rundir import read_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    if options.run is None:
        subprocess.run(
            [sys.executable, "-m", "autocomp", "search", "--hw", "mobile_arm", "--budget", "4MB"], check=True
        )
    data = read_run(options.run or Path("runs/latest"))
    reference = data.references["float"]
    assert reference.test_accuracy is not None
    sizes = [p.size_bytes for p in data.front]
    times = [p.latency_ms for p in data.front]
    lost = {p.name: 100 * (reference.test_accuracy - (p.test_accuracy or 0.0)) for p in data.front}
    tenth = [lost[p.name] for p in data.front if 10 * p.size_bytes <= reference.size_bytes]
    fast = [lost[p.name] for p in data.front if 2.5 * p.latency_ms <= reference.latency_ms]
    print(json.dumps({
        "points": len(data.front), "float_test_percent": round(100 * reference.test_accuracy, 2),
        "bytes_span": round(max(sizes) / min(sizes), 2), "latency_span": round(max(times) / min(times), 2),
        "points_lost_at_a_tenth_of_the_bytes": round(min(tenth, default=float("nan")), 2),
        "points_lost_at_2_5_times_the_speed": round(min(fast, default=float("nan")), 2),
        "seconds": data.settings.get("seconds"), "search_seconds": data.settings.get("search_seconds"),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
