"""Runs ONNX files in a process of its own: a file is scored by the runtime that loads it, never by what wrote it.

This module is that process: it imports neither torch nor the rest of the package's machinery. It reads one JSON
request a line on standard input and answers one JSON line each on its standard output.

    {"model": path, "inputs": path of a .npy, "outputs": path to write, "batch": 64, "layers": {name: output or ""},
     "stock": false}
    {"ok": true, "executed": {layer: operator}, "seconds": 0.8}

Integers are multiplied exactly, as the device of the file does, whatever the processor at hand; with "stock" the
session has the runtime's default options, and may saturate (see `hardware.arithmetic`).
"""

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autocomp.errors import UserError
from autocomp.hardware.arithmetic import EXACT_OPTION

INTEGER_OPERATORS = frozenset({
    "QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
})  # fmt: skip


def session_options(*, stock: bool = False) -> Any:
    """Default optimizations on one thread. stock: what a user's own session does, even where that is not exact."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not stock:
        options.add_session_config_entry(*EXACT_OPTION)
    return options


def open_session(model: str, *, stock: bool = False) -> tuple[Any, dict[str, str]]:
    """A session, and node or output name → operator of the graph that it executes after its own optimization."""
    import onnx
    import onnxruntime

    options = session_options(stock=stock)
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder, "optimized.onnx")
        options.optimized_model_filepath = str(optimized)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(optimized).graph
    found: dict[str, str] = {}
    # A layer may be called as a tensor of another operator: nodes come first.
    names = [(node.name, node) for node in graph.node] + [
        (name, node) for node in graph.node for name in node.output if name
    ]
    for name, node in names:
        found.setdefault(re.sub(r"(_token_\d+|_nchwc)$", "", name), node.op_type)
    return session, found


#: What the runtime may fuse into the layer before it, or drop because quantization clamps anyway.
_ACTIVATIONS = frozenset({
    "Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "HardSwish", "Elu",
})  # fmt: skip


def spellings(model: str, layers: list[str]) -> dict[str, list[str]]:
    """Layer → names under which the optimized graph may hold it: its own, and those of what it hands on."""
    import onnx

    graph = onnx.load(model).graph
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for node in graph.node:
        if node.name in layers and len(node.output) == 1:
            names, tensor = [node.name], node.output[0]
            while True:
                names.append(tensor)
                following = readers.get(tensor, [])
                if len(following) != 1 or following[0].op_type not in _ACTIVATIONS:
                    break
                tensor = following[0].output[0]
            found[node.name] = names
    return found


def run(session: Any, inputs: Any, batch: int) -> Any:
    """Outputs for all inputs, (n, …); `inputs` may be a memory map."""
    import numpy as np

    name = session.get_inputs()[0].name
    pieces = [
        session.run(None, {name: np.ascontiguousarray(inputs[i : i + batch])})[0] for i in range(0, len(inputs), batch)
    ]
    return np.concatenate(pieces)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    started = time.perf_counter()
    session, operators = open_session(request["model"], stock=bool(request.get("stock", False)))
    outputs = run(session, np.load(request["inputs"], mmap_mode="r"), int(request.get("batch", 64)))
    if not np.isfinite(outputs).all():
        return {"ok": False, "error": "the file's output is not finite"}
    np.save(request["outputs"], outputs)
    layers = request.get("layers", {})
    names = spellings(request["model"], list(layers)) if layers else {}
    executed = {
        layer: next((operators[name] for name in [*names.get(layer, [layer]), output] if name in operators), "")
        for layer, output in layers.items()
    }
    return {"ok": True, "executed": executed, "seconds": time.perf_counter() - started}


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer one JSON line on standard output for each on standard input, until there are no more."""
    # Whatever a library prints must not end up between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except UserError as error:
            reply = {"ok": False, "error": str(error)}
        except Exception as error:  # noqa: BLE001  (the caller decides what a failure means)
            reply = {
                "ok": False,
                "error": f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:300]}",
            }
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    serve(answer)
