"""The near end of the scoring process: hand it a file, get back what the runtime computed."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from autocomp.compress.trace import Traced
from autocomp.errors import RunError
from autocomp.export.scorer import INTEGER_OPERATORS
from autocomp.policy import Policy


@dataclass(frozen=True, slots=True)
class Scored:
    """outputs: (n, …) of the file. executed: layer → operator in the optimized graph. seconds: wall."""

    outputs: NDArray[np.float32]
    executed: dict[str, str]
    seconds: float


class Scorer:
    """A scoring process that stays alive between files. Use as a context manager."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="autocomp-score-")
        environment = dict(os.environ, OMP_NUM_THREADS="1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "autocomp.export.scorer"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def score(self, model: Path, inputs: Path, layers: dict[str, str] | None = None, batch: int = 64) -> Scored:
        """Run a file on the inputs (n, …) in a .npy file.

        layers: layer → name of its output tensor, to find it in the optimized graph. RunError if the file does not
        load or run, with the runtime's reason.
        """
        outputs = Path(self._scratch.name, "outputs.npy")
        request = {
            "model": str(model), "inputs": str(inputs), "outputs": str(outputs), "batch": batch, "layers": layers or {},
        }  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise RunError(f"the scoring process died on {model.name} with code {self._process.wait()}")
        reply = json.loads(line)
        if not reply["ok"]:
            raise RunError(f"{model.name} does not run in ONNX Runtime: {reply['error']}")
        return Scored(np.load(outputs), reply["executed"], reply["seconds"])

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def layer_outputs(traced: Traced) -> dict[str, str]:
    """Layer → name of the tensor in which its kernel leaves its result."""
    return {k.layer: t for k, t in zip(traced.spec.kernels, traced.tensors, strict=True) if k.layer is not None}


def precision_faults(policy: Policy, executed: dict[str, str]) -> list[str]:
    """Layers whose kernel in the optimized graph is not of the precision that the policy chose, a sentence each."""
    faults = []
    for layer, operator in executed.items():
        wanted = policy.layer(layer).activation == "int8"
        if not operator:
            faults.append(f"layer {layer} is not in the graph that the runtime executes")
        elif wanted != (operator in INTEGER_OPERATORS):
            faults.append(f"layer {layer} was to run as {'int8' if wanted else 'float'} and runs as {operator}")
    return faults
