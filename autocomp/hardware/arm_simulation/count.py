"""Guest side: run models under ONNX Runtime and mark each inference for the plugin.

A script for the sandbox, where only numpy and ONNX Runtime exist; it imports nothing of autocomp.
Usage: count.py RUNS MODEL... Prints one JSON line for each model: {"error": null or text}.
Model i's inference r is region i * RUNS + r. The optimized graph is written beside the model, with suffix .optimized.
"""

import ctypes
import gc
import json
import sys

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

MARK = 0x5A0000  # as in plugin.c


FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def values(tensor: ort.NodeArg) -> NDArray[np.generic]:
    """Random values for an input: bytes, or floats near 1 that neither vanish nor overflow along a chain."""
    random = np.random.default_rng(0)
    shape = tuple(map(int, tensor.shape))
    if tensor.type in FLOATS:
        return random.uniform(0.9, 1.1, shape).astype(FLOATS[tensor.type])
    return random.integers(0, 256, shape).astype(np.uint8)


def prepare(path: str, libc: ctypes.CDLL) -> tuple[ort.InferenceSession, ort.IOBinding]:
    """A warm session on one thread, bound to fixed input and output buffers so that inferences do not allocate."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = path + ".optimized"
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for tensor in session.get_inputs():
        binding.bind_ortvalue_input(tensor.name, ort.OrtValue.ortvalue_from_numpy(values(tensor)))
    for tensor in session.get_outputs():
        binding.bind_output(tensor.name, "cpu")
    session.run_with_iobinding(binding)
    for tensor, value in zip(session.get_outputs(), binding.get_outputs(), strict=True):
        binding.bind_ortvalue_output(tensor.name, value)
    # What building the session left in the allocator's fast bins is tidied up now, not during a marked inference.
    libc.malloc_trim(0)
    session.run_with_iobinding(binding)
    return session, binding


def main(runs: int, paths: list[str]) -> None:
    libc = ctypes.CDLL(None)
    gc.disable()
    reports, sys.stdout = sys.stdout, sys.stderr  # ONNX Runtime's Python package prints there when a session fails
    for index, path in enumerate(paths):
        try:
            session, binding = prepare(path, libc)
            for run in range(runs):
                region = index * runs + run
                libc.getsid(MARK + 2 * region)
                session.run_with_iobinding(binding)
                libc.getsid(MARK + 2 * region + 1)
            error = None
        except Exception as failure:  # noqa: BLE001  one bad model must not cost the others of the batch
            error = f"{type(failure).__name__}: {failure}"
        print(json.dumps({"error": error}), file=reports, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
