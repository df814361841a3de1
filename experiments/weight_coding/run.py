"""What each way of coding the weights of an NPU's network costs in accuracy and buys in bytes and time.

    python experiments/weight_coding/run.py [--codings "w4a8,w8a8 c16"]

Every layer of the embedded task's network is coded alike, trained as a trial of the search trains it, written as a
.tflite, scored by LiteRT and compiled by Vela for an Ethos-U55 and an Ethos-U85. Prints a JSON line a coding.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from autocomp.artifact import Target
from autocomp.bench import Bench
from autocomp.errors import RunError
from autocomp.hardware.ethos_u.accelerator import Accelerator
from autocomp.network import pattern_fault
from autocomp.policy import INT8, LayerPolicy, Policy, Sparsity, clustered
from autocomp.tasks import TaskRequest, load_task
from autocomp.trial import TrialRunner

TARGETS = (
    Target("u55", "tflite", Accelerator(
        config="ethos-u55-256", system="Ethos_U55_High_End_Embedded", memory_mode="Shared_Sram")),
    Target("u85", "tflite", Accelerator(
        config="ethos-u85-256", system="Ethos_U85_SYS_Flash_High", memory_mode="Shared_Sram")),
)  # fmt: skip

TWO_OF_FOUR = Sparsity(0.5, "2:4")
CODINGS: tuple[LayerPolicy, ...] = (
    INT8,
    *(LayerPolicy(bits, "int8") for bits in (6, 5, 4, 3, 2)),
    *map(clustered, (32, 16, 8, 4)),
    *(INT8.with_zeros(zeros) for zeros in (0.5, TWO_OF_FOUR, Sparsity(0.5, "block"), 0.75, Sparsity(0.75, "block"))),
    *(LayerPolicy(4, "int8").with_zeros(zeros) for zeros in (0.5, TWO_OF_FOUR, 0.75, Sparsity(0.75, "block"))),
    clustered(16).with_zeros(0.5),
)


class Quiet:
    def phase(self, name: str, total: int | None = None, detail: str = "") -> None: ...

    def advance(self, done: int) -> None: ...


def everywhere(bench: Bench, coding: LayerPolicy) -> Policy:
    """The coding in every layer; where its zeros do not fit the shape, as many without a pattern."""
    layers = bench.traced.spec.layers
    plain = coding.with_zeros(coding.sparsity)
    return Policy({layer.name: coding if pattern_fault(layer, coding.pattern) is None else plain for layer in layers})


def measured(runner: TrialRunner, coding: LayerPolicy, folder: Path) -> dict[str, Any]:
    try:
        result = runner.run(everywhere(runner.bench, coding), seed=0, stem=folder / "model")
    except RunError as error:
        return {"coding": str(coding), "failed": str(error)}
    weights = runner.traced.spec.weights()
    row: dict[str, Any] = {"coding": str(coding), "accuracy": result.primary.accuracy}
    for device, artifact in result.artifacts.items():
        assert artifact.compiled_bytes is not None
        row[device] = {
            "compiled_bytes": artifact.compiled_bytes,
            "bits_a_weight": round(8 * artifact.compiled_bytes / weights, 2),  # all that is compiled counts
            "latency_ms": artifact.latency_ms,
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codings", help="only these, as they are printed, separated by commas")
    wanted = parser.parse_args().codings
    codings = [coding for coding in CODINGS if wanted is None or str(coding) in wanted.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        (bench_folder := Path(folder) / "bench").mkdir()
        bench = Bench.make(load_task(TaskRequest(), Quiet()), bench_folder)
        with TrialRunner(bench, TARGETS) as runner:
            for coding in codings:
                print(json.dumps(measured(runner, coding, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
