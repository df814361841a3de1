"""The near end of the scoring processes: hand them a file, get back what its runtime computed."""

import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autocomp.compress.trace import Traced
from autocomp.errors import MissingPackage, RunError, UserError
from autocomp.export.litert_scorer import INTEGER_MARK
from autocomp.export.scorer import INTEGER_OPERATORS
from autocomp.policy import Policy
from autocomp.tflite.schema import EXTRA
from autocomp.worker import Closing, Worker, WorkerDied


@dataclass(frozen=True, slots=True)
class Scored:
    """outputs: (n, …) of the file. executed: layer → operator that computes it. seconds: wall."""

    outputs: NDArray[np.float32]
    executed: dict[str, str]
    seconds: float


@dataclass(frozen=True, slots=True)
class _Runtime:
    """Who runs files of one kind. package: what must be installed for it, and what gets it installed."""

    name: str
    module: str
    package: str
    extra: str


#: Suffix of a file → its runtime.
_RUNTIMES = {
    ".onnx": _Runtime("ONNX Runtime", "autocomp.export.scorer", "onnxruntime", "onnxruntime"),
    ".tflite": _Runtime("LiteRT", "autocomp.export.litert_scorer", "ai_edge_litert", EXTRA),
}


class Scorer(Closing):
    """Scoring processes, one a runtime, that stay alive between files. Use as a context manager.

    A file that crashes its runtime costs that process, and the next file gets a new one.
    """

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="autocomp-score-")
        self._workers = {suffix: Worker(runtime.module) for suffix, runtime in _RUNTIMES.items()}

    def score(
        self, model: Path, inputs: Path, layers: dict[str, str] | None = None, batch: int = 64, *, stock: bool = False
    ) -> Scored:
        """Run a file on the inputs (n, …) in a .npy file, by the runtime that its suffix names.

        Integers are multiplied exactly, as the device does; stock: as a session with default options does here.

        layers: layer → name of its output tensor, to find it in an optimized ONNX graph; a .tflite file calls its
        tensors by the layers themselves. RunError if the file does not load or run, with the runtime's reason.
        """
        runtime = _RUNTIMES.get(model.suffix)
        if runtime is None:
            raise UserError(f"{model.name}: expected a file that ends in {' or '.join(_RUNTIMES)}")
        if importlib.util.find_spec(runtime.package) is None:
            raise MissingPackage(runtime.extra, f"running {model.suffix} files")
        outputs = Path(self._scratch.name, "outputs.npy")
        request = {
            "model": str(model), "inputs": str(inputs), "outputs": str(outputs), "batch": batch, "layers": layers or {},
            "stock": stock,
        }  # fmt: skip
        try:
            reply = self._workers[model.suffix].ask(request)
        except WorkerDied as death:
            raise RunError(f"{runtime.name} crashed on {model.name}: {death.reason}") from None
        if not reply["ok"]:
            raise RunError(f"{model.name} does not run in {runtime.name}: {reply['error']}")
        return Scored(np.load(outputs), reply["executed"], reply["seconds"])

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()
        self._scratch.cleanup()


def layer_outputs(traced: Traced) -> dict[str, str]:
    """Layer → name of the tensor in which its kernel leaves its result; "" of one that is found by its own name."""
    found = dict.fromkeys(traced.spec.layer_by_name, "")
    return found | {k.layer: t for k, t in zip(traced.spec.kernels, traced.tensors, strict=True) if k.layer is not None}


def runs_integers(operator: str) -> bool:
    """Whether an operator that a scoring process reported computes on integers."""
    return operator in INTEGER_OPERATORS or operator.endswith(INTEGER_MARK)


def precision_faults(policy: Policy, executed: dict[str, str]) -> list[str]:
    """Layers whose kernel in the optimized graph is not of the precision that the policy chose, a sentence each."""
    faults = []
    for layer, operator in executed.items():
        wanted = policy.layer(layer).activation == "int8"
        if not operator:
            faults.append(f"layer {layer} is not in the graph that the runtime executes")
        elif wanted != runs_integers(operator):
            faults.append(f"layer {layer} was to run as {'int8' if wanted else 'float'} and runs as {operator}")
    return faults
