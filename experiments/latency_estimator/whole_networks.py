"""Do kernels add up to networks? Times whole ONNX networks and holds the sum of their estimated kernels against them.

    python experiments/latency_estimator/whole_networks.py [--seconds 120] [--share 1.0]

`--share 0.5` measures only the more informative half of the kernels and leaves the rest to the estimator. Networks
and reference are timed in interleaved rounds. The last line of standard output is one JSON document.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from graphs import NetworkBuilder, efficientnet_lite0, mobilenet_v2, resnet

from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.host import ensure_host_table
from autocomp.hardware.kernel_models import input_values, kernel_model
from autocomp.hardware.profile import find_profile
from autocomp.hardware.profiling.chains import REFERENCE
from autocomp.hardware.profiling.planning import informative_order
from autocomp.hardware.runner import BoundModel, cpu_name
from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Precision

FEWEST_ROUNDS, MOST_ROUNDS, CALLS, AGREE, WITHIN = 20, 300, 2, 3, 0.01
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")


def networks() -> dict[str, NetworkBuilder]:
    """Fourteen networks: fp32 and full int8, 32×32 to 224×224, whole and pruned to odd channel counts."""
    built = {}
    for precision in PRECISIONS:
        built[f"MobileNetV2 1.0 @32 {precision}"] = mobilenet_v2(precision, 32, 1.0, 8)
        built[f"MobileNetV2 0.6 odd @32 {precision}"] = mobilenet_v2(precision, 32, 0.6, 1)
        built[f"MobileNetV2 1.0 @96 {precision}"] = mobilenet_v2(precision, 96, 1.0, 8)
        built[f"MobileNetV2 0.7 odd @96 {precision}"] = mobilenet_v2(precision, 96, 0.7, 1)
        built[f"ResNet-20 1.0 @32 {precision}"] = resnet(precision, 32, 1.0, 8)
        built[f"ResNet-20 1.3 odd @32 {precision}"] = resnet(precision, 32, 1.3, 1)
        built[f"EfficientNet-Lite0 @224 {precision}"] = efficientnet_lite0(precision)
    return built


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="time for measuring kernels")
    parser.add_argument("--share", type=float, default=1.0, help="share of the kernels that is measured")
    arguments = parser.parse_args()
    built = networks()
    kernels = sorted({kernel for network in built.values() for kernel in network.kernels})
    asked = informative_order(kernels, LatencyTable({}))[: round(arguments.share * len(kernels))]
    with tempfile.TemporaryDirectory() as folder:
        table = ensure_host_table(
            asked,
            arguments.seconds,
            lambda done, total, left: print(f"{done}/{total} kernels, {left:.0f} s left", file=sys.stderr),
            folder=Path(folder),
        )
    reference = BoundModel(kernel_model(REFERENCE, 2), input_values(REFERENCE))
    rng = np.random.default_rng(0)
    bound = {
        name: BoundModel(network.model(), rng.standard_normal(network.shape).astype(np.float32))
        for name, network in built.items()
    }
    times: dict[str, list[float]] = {name: [] for name in bound}
    yardstick = []
    for _ in range(MOST_ROUNDS):  # until the fastest rounds agree: see autocomp/hardware/host.py
        yardstick.append(reference.fastest_us(CALLS))
        for name, model in bound.items():
            times[name].append(model.fastest_us(CALLS))
        agree = all(np.ptp(np.sort(values)[:AGREE]) <= WITHIN * min(values) for values in times.values())
        if agree and len(yardstick) >= FEWEST_ROUNDS:
            break
    model = LatencyModel.from_table(table, find_profile("host_cpu").calibration)
    errors, inside, rows = [], [], []
    for name, network in built.items():
        whole = float(np.sort(times[name])[AGREE - 1])
        estimate = model.predict(network.kernels)
        total = float(estimate.us.sum())
        errors.append(total / whole - 1)
        inside.append(estimate.low_us.sum() <= whole <= estimate.high_us.sum())
        unmeasured = float(estimate.us[~estimate.measured].sum() / total)
        rows.append({"network": name, "whole_us": round(whole), "sum_us": round(total),
                     "error_percent": round(100 * errors[-1], 1), "share_estimated": round(unmeasured, 2)})  # fmt: skip
        print(f"{name:32} whole {whole:7.0f} µs  sum {total:7.0f} µs  {100 * errors[-1]:+5.1f} %  "
              f"not measured {unmeasured:4.0%}", file=sys.stderr)  # fmt: skip
    print(json.dumps({
        "networks": rows,
        "mape_percent": round(100 * float(np.mean(np.abs(errors))), 1),
        "worst_percent": round(100 * float(np.max(np.abs(errors))), 1),
        "band_coverage": round(float(np.mean(inside)), 2),
        "kernels": len(kernels),
        "kernels_measured": len(table) - 1,
        "cpu": cpu_name(),
        "reference_spread": round(float(np.median(yardstick) / np.min(yardstick) - 1), 3),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
