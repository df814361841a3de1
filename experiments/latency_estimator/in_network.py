"""What does a kernel take inside a network? Sums of warm, of cold and of blended kernels against networks timed whole.

    PYTHONPATH=. python experiments/latency_estimator/in_network.py [--networks 50] [--seed 0] [--scan]

Every kernel of the networks that `hw check` takes is timed itself, so that nothing is interpolated. `--scan` also tries
other constants than those of `autocomp/hardware/profiling/chains.py`. The last line of standard output is one JSON
document.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np

from autocomp.check import make_subjects, score, time_subjects
from autocomp.display import QuietDisplay
from autocomp.hardware.host import time_kernels
from autocomp.hardware.local import local_device
from autocomp.hardware.profile import find_profile
from autocomp.hardware.profiling.chains import IN_NETWORK_US, coldness
from autocomp.hardware.runner import BATCH, Timing, cpu_name
from autocomp.kernel import Kernel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scan", action="store_true", help="try other constants")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        host = find_profile("host_cpu")
        device = local_device(host)
        subjects = list(make_subjects(host, arguments.networks, arguments.seed, Path(folder), QuietDisplay()))
        rounds, _ = time_subjects(subjects, device, QuietDisplay())
    whole = np.array([device.typical(times) for times in rounds])
    kernels = sorted({kernel for subject in subjects for kernel in subject.kernels})
    order = [kernels[i] for i in np.random.default_rng(0).permutation(len(kernels))]
    timings: dict[Kernel, Timing] = {}
    for start in range(0, len(order), BATCH):
        timings |= {kernel: timing for kernel, timing, _ in time_kernels(order[start : start + BATCH])}
        print(f"{len(timings)}/{len(order)} kernels", file=sys.stderr)

    def sums(share: Callable[[Kernel], float], call_us: float) -> np.ndarray:
        us = {}
        for kernel, timing in timings.items():
            warm = max(timing.us, 0.0)
            us[kernel] = call_us + warm + share(kernel) * max(0.0, timing.cold_us - warm)
        return np.array([sum(us[kernel] for kernel in subject.kernels) for subject in subjects])

    if arguments.scan:
        trials = product((0.3e6, 0.5e6, 1e6, 2e6), (0.0, 0.1, 0.2), (0.0, 0.1, 0.2), (0.0, 0.2, 0.45))
        for cache, still_warm, weights, call_us in trials:
            found = score(sums(lambda k: coldness(k, cache, still_warm, weights), call_us), whole)  # noqa: B023
            print(cache, still_warm, weights, call_us, found, file=sys.stderr)
    print(json.dumps({
        "networks": len(subjects), "kernels": len(kernels),
        "warm": score(sums(lambda kernel: 0.0, IN_NETWORK_US), whole),
        "cold": score(sums(lambda kernel: 1.0, IN_NETWORK_US), whole),
        "blended": score(sums(coldness, IN_NETWORK_US), whole),
        "cpu": cpu_name(), "seed": arguments.seed,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
