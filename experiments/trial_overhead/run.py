"""How much time Ray Tune and the schedule take beside the trials themselves: trials that do nothing.

    python experiments/trial_overhead/run.py [--trials 200] [--workers 2]

Prints one JSON line: milliseconds a trial once warm (median of the gaps between completed trials, times nothing: two
workers share the overhead), and the seconds until the first trial came back.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np

from autocomp.artifact import Artifact
from autocomp.bench import Bench
from autocomp.budget import Budget
from autocomp.controllers import create
from autocomp.devices import Device, Devices
from autocomp.hardware.cost import Cost
from autocomp.hardware.profile import find_profile
from autocomp.journal import Journal
from autocomp.network import Channels, KernelNode, LayerSpec, NetworkSpec
from autocomp.policy import Policy
from autocomp.ray_tune import Files, run_trials
from autocomp.schedule import Report, Schedule
from autocomp.space import SearchSpace, SpaceOptions

LAYERS = 52


class NoWork:
    """A trial that takes no time."""

    def __init__(self, context: object) -> None:
        pass

    def run(self, candidate: int, policy: Policy) -> tuple[Report, Files]:
        return Report({"mobile_arm": Artifact(0.5, 1000)}), {}


class NoCost:
    """Costs of nothing, for any population."""

    def __call__(self, genes: np.ndarray) -> Cost:
        one = np.ones(len(np.atleast_2d(genes)))
        return Cost(one * 1000, one, one, one)

    def of_policy(self, policy: Policy) -> Cost:
        return self(np.zeros((1, 1)))


def network() -> NetworkSpec:
    """A chain of 52 convolutions of 64 channels, as many layers as MobileNetV2 has."""
    channels = Channels(((None, 64),))
    layers = [LayerSpec(f"layer{i}", "conv2d", (64, 64, 3, 3), channels, channels, 196) for i in range(LAYERS)]
    kernels = [
        KernelNode(f"layer{i}", "conv", (i - 1,), channels, channels, 14, 14, 3, 3, layer=f"layer{i}", int8=True)
        for i in range(LAYERS)
    ]
    return NetworkSpec("chain", (64, 14, 14), tuple(layers), (), tuple(kernels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    space = SearchSpace.build(network(), SpaceOptions())
    cost = NoCost()
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder)) as journal:
        controller = create("random", space, cost, Budget(), 0)
        devices = Devices([Device(find_profile("mobile_arm"), cost, Budget())], space.largest)
        schedule = Schedule(controller, devices, journal, lag=2 * options.workers, trials=options.trials)

        def on_result(candidate: int, report: Report, files: Files) -> None:
            schedule.finished(candidate, report)
            ends.append(time.perf_counter())

        started = time.perf_counter()
        run_trials(schedule, Bench(Path(folder)), on_result, targets=(), seed=0, workers=options.workers, work=NoWork)
    warm = np.diff(ends[len(ends) // 10 :]) * 1000
    figures = {
        "trials": len(ends), "workers": options.workers, "first_trial_s": round(ends[0] - started, 2),
        "median_ms": round(float(np.median(warm)), 1), "mean_ms": round(float(warm.mean()), 1),
        "p95_ms": round(float(np.percentile(warm, 95)), 1), "machine": platform.processor() or platform.machine(),
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
