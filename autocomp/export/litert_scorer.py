"""Runs int8 .tflite files in LiteRT, in a process of its own, by the protocol of `scorer`.

Inputs and outputs are handed over as torch has them: float, channels first. The file's are int8 and channels last.
"""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocomp.errors import UserError
from autocomp.export.scorer import serve
from autocomp.tflite.reader import Model, read_model

#: Ends the name of an operator all of whose operands and results are integers.
INTEGER_MARK = " (int8)"


class Session:
    """An interpreter on one thread with the delegate that a user gets by default (XNNPACK)."""

    def __init__(self, model: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_content=model, num_threads=1)
        (self._input,) = self._interpreter.get_input_details()
        (self._output,) = self._interpreter.get_output_details()
        self._shape: tuple[int, ...] = ()

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs for all of (n, …) at once."""
        values = quantized(np.moveaxis(inputs, 1, -1), *self._input["quantization"])
        if values.shape != self._shape:
            self._interpreter.resize_tensor_input(self._input["index"], values.shape, strict=False)
            self._interpreter.allocate_tensors()
            self._shape = values.shape
        self._interpreter.set_tensor(self._input["index"], values)
        self._interpreter.invoke()
        result = dequantized(self._interpreter.get_tensor(self._output["index"]), *self._output["quantization"])
        return np.moveaxis(result, -1, 1)


def quantized(values: NDArray[np.float32], scale: float, zero_point: int) -> NDArray[np.int8]:
    """What a device is handed: real values as int8, rounded to the nearest, half to even."""
    return np.clip(np.round(values / np.float32(scale)) + zero_point, -128, 127).astype(np.int8)


def dequantized(integers: NDArray[np.int8], scale: float, zero_point: int) -> NDArray[np.float32]:
    return (integers.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)


def check_interface(model: Model) -> None:
    """UserError unless the model has one int8 input with one scale, and one such output."""
    for what, tensors in (("input", model.inputs), ("output", model.outputs)):
        kinds = [(tensor.type, len(tensor.scales)) for tensor in tensors]
        if kinds != [("INT8", 1)]:
            found = ", ".join(f"{kind} with {scales} scales" for kind, scales in kinds) or "none"
            raise UserError(f"expected one int8 {what} with one scale, got {found}")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    data = Path(request["model"]).read_bytes()
    model = read_model(data, "the file")
    check_interface(model)
    inputs, batch = np.load(request["inputs"], mmap_mode="r"), int(request.get("batch", 64))
    session = Session(data)
    outputs = np.concatenate([session.run(inputs[i : i + batch]) for i in range(0, len(inputs), batch)])
    np.save(request["outputs"], outputs)
    operators = {tensor.name: operator for operator in model.operators for tensor in operator.outputs}
    executed = {}
    for layer in request.get("layers", {}):
        operator = operators.get(layer)
        executed[layer] = "" if operator is None else operator.name + INTEGER_MARK * operator.integer
    return {"ok": True, "executed": executed, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    # LiteRT greets every model on standard error; what fails is told in the answer.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    serve(answer)
