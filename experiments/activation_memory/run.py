"""Is the predicted peak of activations what ONNX Runtime holds? Counts the bytes that are allocated during a run.

    gcc -O2 -shared -fPIC -o live.so experiments/activation_memory/live.c -ldl
    LD_PRELOAD=./live.so python experiments/activation_memory/run.py ./live.so

Each network is written as float, as int8, with every other layer int8, and with random channels and precisions, and
run once without the arena, so that each tensor is an allocation of its own. The input belongs to the caller and is
added to what is counted. The last line of standard output is one JSON document.
"""

import argparse
import ctypes
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from autocomp.compress.network import QuantizedNetwork
from autocomp.compress.trace import Traced, trace
from autocomp.export.writer import OnnxWriter
from autocomp.hardware.memory import peak_memory
from autocomp.policy import FLOAT, INT8, Policy
from autocomp.space import SearchSpace, SpaceOptions
from autocomp.tasks.architectures import Network, build

FAMILIES = ("mobilenet_v1", "mobilenet_v2", "resnet18", "squeezenet", "efficientnet_lite0")
OPTIONS = SpaceOptions(weight_bits=(8, None), sparsities=(0.0,))


class Dense(nn.Module):
    """Concatenations, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.stages = nn.ModuleList(nn.Conv2d(32 + 16 * i, 16, 3, 1, 1) for i in range(6))
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        for stage in self.stages:
            x = torch.cat([x, stage(x).relu()], 1)
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("library", help="what live.c was compiled to, also preloaded")
    arguments = parser.parse_args()
    counter = ctypes.CDLL(arguments.library)
    counter.live_end.restype = ctypes.c_long
    torch.manual_seed(0)
    rows = []
    for network in networks():
        x, name = network.example, f"{network.name} @{network.input_shape[-1]}"
        traced = trace(network.module, x, network.name)
        for kind, policy in policies(traced).items():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "model.onnx")
                quantized = QuantizedNetwork(traced, policy)
                quantized.quantize([x])
                OnnxWriter(traced).write(quantized.freeze(), path)
                held, planned = (counted(path, x[:1].numpy(), counter, reuse=reuse) for reuse in (False, True))
            predicted = peak_memory(traced.spec, policy)
            rows.append(
                {"network": name, "kind": kind, "predicted": predicted, "counted": held, "counted_with_reuse": planned}
            )
            print(
                f"{name} {kind}: {predicted:,} predicted, {held:,} counted, {planned:,} with reuse of buffers",
                file=sys.stderr,
            )
    ratios = np.array([row["predicted"] / row["counted"] for row in rows])
    print(json.dumps({
        "files": len(rows), "mean_absolute_error_pct": round(100 * float(np.mean(np.abs(ratios - 1))), 1),
        "lowest_ratio": round(float(ratios.min()), 3), "highest_ratio": round(float(ratios.max()), 3), "rows": rows,
    }))  # fmt: skip


def networks() -> list[Network]:
    """Of each family one, at two resolutions, and one of concatenations."""
    known = [build(name, side=side) for name in FAMILIES for side in (64, 160)]
    return [*known, Network("dense", Dense().eval(), (3, 96, 96))]


def policies(traced: Traced) -> dict[str, Policy]:
    names = [layer.name for layer in traced.spec.layers]
    space = SearchSpace.build(traced.spec, OPTIONS)
    rng = np.random.default_rng(0)
    found = {
        "float": Policy(),
        "int8": Policy(dict.fromkeys(names, INT8)),
        "every other int8": Policy({name: (INT8, FLOAT)[i % 2] for i, name in enumerate(names)}),
    }
    for number in range(3):
        found[f"random {number}"] = space.decode(rng.integers(0, space.cardinalities))
    return found


def counted(path: Path, x: np.ndarray, counter: ctypes.CDLL, *, reuse: bool) -> int:
    """Bytes held at the worst moment of the second run, the input included."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.enable_mem_reuse = reuse
    session = onnxruntime.InferenceSession(path, options)
    output = session.get_outputs()[0].name
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, onnxruntime.OrtValue.ortvalue_from_numpy(x))
    for _ in range(2):
        binding.clear_binding_outputs()
        binding.bind_output(output, "cpu")
        counter.live_begin()
        session.run_with_iobinding(binding)
        held = int(counter.live_end())
    return held + x.nbytes


if __name__ == "__main__":
    main()
