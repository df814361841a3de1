"""What the stock arm64 wheel of ONNX Runtime executes in float16, and what an addition after a convolution costs.

Simulated on a Cortex-A76, calibrated to a Raspberry Pi 5. Prints one JSON line per result; the last is the summary.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial

from graphs import FloatType, Operator, copies_of, inverted_residual, residuals

from autocomp.hardware.arm_simulation.cores import core
from autocomp.hardware.arm_simulation.sandbox import prepare
from autocomp.hardware.arm_simulation.simulate import Simulator

CORE = core("cortex-a76")
FLOAT_TYPES: tuple[FloatType, FloatType] = ("fp32", "fp16")

OPERATORS = (
    Operator("Conv", 3, 32, 224, 3, 2),
    Operator("Conv", 32, 64, 112),
    Operator("Conv", 512, 512, 14),
    Operator("Conv", 64, 64, 56, 3),
    Operator("Conv", 256, 256, 14, 3),
    Operator("Conv", 64, 64, 112, 3, 2, groups=64),
    Operator("Conv", 512, 512, 14, 3, groups=512),
    Operator("Conv", 576, 576, 14, 5, groups=576),
    Operator("Gemm", 1280, 1000, 1),
    Operator("Add", 24, 24, 56),
    Operator("AveragePool", 192, 192, 28, 3),
    Operator("GlobalAveragePool", 1280, 1280, 7),
    Operator("Sigmoid", 64, 64, 56),
)
#: Channels, expansion, size and window of inverted residual blocks of MobileNetV2 and EfficientNet-Lite0.
BLOCKS = ((24, 6, 56, 3), (96, 6, 14, 3), (112, 6, 14, 5))
#: Convolutions before a residual addition: MobileNetV2 and ResNet.
PROJECTIONS = (
    Operator("Conv", 144, 24, 56),
    Operator("Conv", 192, 32, 28),
    Operator("Conv", 384, 64, 14),
    Operator("Conv", 64, 64, 56, 3),
)


def per_copy(simulator: Simulator, models: Sequence[Callable[[int], bytes]]) -> list[tuple[float, dict[str, int]]]:
    """For each of what `model(copies)` repeats: calibrated µs of one copy, and the operators of a graph of three."""
    runs = simulator.run_models([model(copies) for model in models for copies in (1, 3)])
    return [
        (CORE.microseconds(many.cycles - few.cycles) / 2, dict(many.operators))
        for few, many in zip(runs[::2], runs[1::2], strict=True)
    ]


def compare_float_types(simulator: Simulator) -> dict[str, float]:
    """fp32 time / fp16 time by operator and block."""
    gains: dict[str, float] = {}
    for operator in OPERATORS:
        models = [partial(copies_of, operator, float_type) for float_type in FLOAT_TYPES]
        (as_float32, _), (as_float16, executed) = per_copy(simulator, models)
        gains[str(operator)] = as_float32 / as_float16
        line = {"operator": str(operator), "fp32_us": as_float32, "fp16_us": as_float16, "executed": executed}
        show(line | {"gain": gains[str(operator)]})
    for block in BLOCKS:
        runs = simulator.run_models([inverted_residual(*block, float_type) for float_type in FLOAT_TYPES])
        as_float32, as_float16 = (CORE.microseconds(run.cycles) for run in runs)
        channels, expansion, size, window = block
        name = f"inverted residual {channels}x{expansion} {window}x{window} @{size}"
        gains[name] = as_float32 / as_float16
        line = {"block": name, "fp32_us": as_float32, "fp16_us": as_float16, "executed": dict(runs[1].operators)}
        show(line | {"gain": gains[name]})
    return gains


def compare_residuals(simulator: Simulator) -> float:
    """Largest difference between an addition fused into its convolution and one on its own, / the convolution."""
    largest = 0.0
    for operator in PROJECTIONS:
        addition = Operator("Add", operator.out, operator.out, operator.size)
        models = [
            partial(residuals, operator, residual=False),
            partial(residuals, operator, residual=True),
            partial(copies_of, addition, "fp32"),
        ]
        (alone, _), (fused, executed), (separate, _) = per_copy(simulator, models)
        difference = (fused - alone - separate) / alone
        largest = max(largest, abs(difference))
        times = {"conv_us": alone, "fused_us": fused, "separate_add_us": separate}
        show({"residual": str(operator), **times, "executed": executed, "difference": difference})
    return largest


def show(line: dict[str, object]) -> None:
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in line.items()}
    print(json.dumps(rounded, ensure_ascii=False), flush=True)


def main() -> None:
    simulator = Simulator(prepare(CORE))
    gains = compare_float_types(simulator)
    fused = compare_residuals(simulator)
    show({f"gain of {name}": gain for name, gain in gains.items()} | {"residual_fused_minus_separate": fused})


if __name__ == "__main__":
    main()
