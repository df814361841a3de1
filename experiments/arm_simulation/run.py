"""Checks the Arm simulation: single kernels against an earlier study, and sums of kernels against whole networks.

Prints one JSON line per result; the last is the summary.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from chain import chain_model

from autocomp.hardware.arm_simulation.catalogue import (
    PRECISIONS,
    MobileNetwork,
    Stage,
    conv,
    depthwise,
    elementwise,
    network_kernels,
)
from autocomp.hardware.arm_simulation.cores import core
from autocomp.hardware.arm_simulation.sandbox import prepare
from autocomp.hardware.arm_simulation.simulate import Simulator
from autocomp.kernel import Kernel, Precision

#: µs on the Cortex-A76 of the feasibility study: the same method with other scripts, and int8 models in NCHW, whose
#: layout conversions (NCHW to NHWC and back) are in its numbers and not in ours.
STUDY_US = {
    conv(3, 32, 224, 3, 2): (1637, 1458),
    conv(32, 64, 112): (2808, 1379),
    conv(512, 512, 14): (3417, 994),
    depthwise(64, 112, 3, 2): (2284, 471),
    depthwise(512, 14, 3): (805, 185),
    conv(64, 64, 56, 3): (8670, 2434),
    conv(256, 256, 14, 3): (8094, 2060),
}

_V2_STAGES = (
    Stage(1, 16, 1, 1), Stage(6, 24, 2, 2), Stage(6, 32, 3, 2), Stage(6, 64, 4, 2), Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2), Stage(6, 320, 1, 1),
)  # fmt: skip


def mobilenet_v1() -> list[Kernel]:
    """MobileNetV1 on 224×224: table 1 of Howard et al. (2017)."""
    kernels, channels, size = [conv(3, 32, 224, 3, 2)], 32, 112
    widths = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for out, stride in widths:
        kernels.append(depthwise(channels, size, 3, stride))
        size //= stride
        kernels.append(conv(channels, out, size))
        channels = out
    return [*kernels, elementwise("global_avg_pool", 1024, 7), Kernel("linear", "fp32", 1024, 1000, 1, 1)]


def mobilenet_v2() -> list[Kernel]:
    """MobileNetV2 on 224×224, without the conversions at entry and exit."""
    network = MobileNetwork(((3, 224),), 32, 2, _V2_STAGES, 1280, (1000,))
    return [kernel for kernel in network_kernels(network) if kernel.op not in ("quantize", "dequantize")]


def against_the_study(simulator: Simulator) -> dict[str, float]:
    """Geometric mean of our latency / the study's, per precision."""
    kernels = [replace(kernel, precision=precision) for kernel in STUDY_US for precision in PRECISIONS]
    times = {result.kernel: result.latency_us for result in simulator.simulate(kernels)}
    ratios: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for kernel, study in STUDY_US.items():
        for precision, study_us in zip(PRECISIONS, study, strict=True):
            key = replace(kernel, precision=precision)
            ratios[precision].append(times[key] / study_us)
            line = {"kernel": str(key), "latency_us": round(times[key], 1), "study_us": study_us}
            print(json.dumps(line | {"ratio": round(times[key] / study_us, 3)}, ensure_ascii=False), flush=True)
    return {f"{name}_over_study": math.exp(sum(map(math.log, of)) / len(of)) for name, of in ratios.items()}


def sum_of_kernels(simulator: Simulator, network: Sequence[Kernel], precision: Precision) -> tuple[float, float]:
    """Milliseconds and cycles: the kernels' latencies, each as often as the network executes it, added up."""
    calls = Counter(replace(kernel, precision=precision) for kernel in network)
    results = simulator.simulate(list(calls))
    milliseconds = sum(result.latency_us * calls[result.kernel] for result in results) / 1e3
    return milliseconds, sum(result.cycles * calls[result.kernel] for result in results)


def main(core_name: str = "cortex-a76") -> None:
    simulator = Simulator(prepare(core(core_name)))
    summary = against_the_study(simulator)
    for precision in PRECISIONS:
        milliseconds, cycles = sum_of_kernels(simulator, mobilenet_v1(), precision)
        summary[f"mobilenet_v1_{precision}_ms"] = milliseconds
        (whole,) = simulator.run_models([chain_model(mobilenet_v1(), precision)])
        summary[f"mobilenet_v1_{precision}_sum_over_whole"] = cycles / whole.cycles
        summary[f"mobilenet_v2_{precision}_ms"], _ = sum_of_kernels(simulator, mobilenet_v2(), precision)
    print(json.dumps({name: round(value, 3) for name, value in summary.items()}))


if __name__ == "__main__":
    main()
