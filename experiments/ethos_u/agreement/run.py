"""Does one quantized network answer alike in LiteRT, in ONNX Runtime and in the torch simulation?

    python experiments/ethos_u/agreement/run.py [--images FOLDER --calibration FOLDER] [--examples 500]

The embedded task's network on MNIST digits, and with --images EfficientNet-Lite0; both folders then hold one folder of
images per class. Each is calibrated on 128 examples that it is not asked about, under two policies: plain int8, and
weights of 8, 7 and 6 bits in turn; nothing is trained. Both files come from one CompressedNetwork.

Prints one JSON line a network and policy: top-1 of the three, and between each two of them the share of output values
that differ, and by how many steps of the output's int8 grid at most; and the same between LiteRT and itself when one
value of each input image is one step of the input's grid higher.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autocomp.compress.finetune import outputs_of
from autocomp.compress.network import QuantizedNetwork
from autocomp.compress.trace import Traced, trace
from autocomp.display import QuietDisplay
from autocomp.export.score import Scorer, layer_outputs, precision_faults
from autocomp.export.tflite_writer import TfliteWriter
from autocomp.export.writer import OnnxWriter
from autocomp.network import NETWORK_INPUT
from autocomp.policy import INT8, LayerPolicy, Policy
from autocomp.tasks import imagenet, mnist
from autocomp.tasks.spaces import load_space
from autocomp.tasks.task import Data, top1

CALIBRATION, BATCH = 128, 32


def policies(traced: Traced) -> dict[str, Policy]:
    turns = [LayerPolicy(bits, "int8") for bits in (8, 7, 6)]
    names = [layer.name for layer in traced.spec.layers]
    return {
        "int8": Policy(dict.fromkeys(names, INT8)),
        "mixed": Policy({name: turns[i % len(turns)] for i, name in enumerate(names)}),
    }


def compare(name: str, traced: Traced, policy: Policy, calibration: Any, data: Data, folder: Path) -> dict[str, Any]:
    network = QuantizedNetwork(traced, policy, integer_only=True)
    network.quantize(torch.from_numpy(calibration).split(BATCH))
    frozen = network.freeze()
    files = {"litert": folder / f"{name}.tflite", "onnx_runtime": folder / f"{name}.onnx"}
    TfliteWriter(traced).write(frozen, files["litert"])
    OnnxWriter(traced).write(frozen, files["onnx_runtime"])
    inputs = folder / "inputs.npy"
    np.save(inputs, data.inputs)
    outputs = {"torch": outputs_of(network.module, data.inputs)}
    with Scorer() as scorer:
        for runtime, path in files.items():
            scored = scorer.score(path, inputs, layer_outputs(traced), batch=20)
            assert not precision_faults(policy, scored.executed), scored.executed
            outputs[runtime] = scored.outputs
        np.save(inputs, one_step_brighter(data.inputs, frozen.ranges[NETWORK_INPUT].scale))
        disturbed = scorer.score(files["litert"], inputs, batch=20).outputs
    step = frozen.ranges[max(frozen.ranges)].scale
    row: dict[str, Any] = {"network": name, "examples": len(data.inputs)}
    row["top1"] = {runtime: round(top1(values, data.labels), 4) for runtime, values in outputs.items()}
    for a, b in (("litert", "torch"), ("onnx_runtime", "torch"), ("litert", "onnx_runtime")):
        steps = np.abs(np.round((outputs[a] - outputs[b]) / step))
        row[f"{a} - {b}"] = {
            "largest_steps": int(steps.max()), "share_that_differs": round(float((steps > 0).mean()), 5),
            "other_answers": int((outputs[a].argmax(1) != outputs[b].argmax(1)).sum()),
        }  # fmt: skip
    steps = np.abs(np.round((disturbed - outputs["litert"]) / step))
    row["one step in one pixel"] = {
        "largest_steps": int(steps.max()), "share_that_differs": round(float((steps > 0).mean()), 5)
    }  # fmt: skip
    row["bytes"] = {runtime: path.stat().st_size for runtime, path in files.items()}
    return row


def one_step_brighter(inputs: Any, step: float) -> Any:
    """The inputs (n, c, h, w) with one value in the middle of each image one step of the input's grid higher."""
    changed = inputs.copy()
    changed[:, 0, inputs.shape[2] // 2, inputs.shape[3] // 2] += np.float32(step)
    return changed


def some_of(data: Data, count: int) -> Any:
    """Inputs spread over the whole split, (count, …)."""
    return data.inputs[np.linspace(0, len(data) - 1, count).astype(int)]


def cases(arguments: argparse.Namespace) -> Any:
    """(name, network, calibration inputs, data to answer) of each network."""
    spec = load_space(mnist.SPACE).network
    train, validation, _ = mnist.splits(spec.resolution)
    network = mnist.baseline(spec, train, QuietDisplay())
    yield "mnist", network, train.inputs[:CALIBRATION], Data(validation.inputs, validation.labels)
    if arguments.images is not None:
        others, data = (
            imagenet.read_images(folder, 224, QuietDisplay()) for folder in (arguments.calibration, arguments.images)
        )
        yield "efficientnet_lite0", imagenet.load_network("efficientnet_lite0"), some_of(others, CALIBRATION), data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--examples", type=int, default=500)
    arguments = parser.parse_args()
    if (arguments.images is None) != (arguments.calibration is None):
        parser.error("--images and --calibration go together")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name, network, calibration, data in cases(arguments):
            traced = trace(network, torch.from_numpy(calibration[:2]), name)
            some = Data(data.inputs[: arguments.examples], data.labels[: arguments.examples])
            for chosen, policy in policies(traced).items():
                row = compare(name, traced, policy, calibration, some, Path(folder))
                print(json.dumps({"policy": chosen} | row), flush=True)


if __name__ == "__main__":
    main()
