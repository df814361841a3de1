"""Holds a network's forms together: torch, the traced graph, the float file, quantized files and their simulation."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from autocomp.compress.finetune import outputs_of
from autocomp.compress.network import QuantizedNetwork
from autocomp.compress.trace import Traced, trace
from autocomp.export.scorer import open_session
from autocomp.export.writer import OnnxWriter
from autocomp.network import WEIGHT_ONLY, NetworkSpec, pattern_fault
from autocomp.policy import FLOAT, INT8, LayerPolicy, Policy, Sparsity, clustered

#: Of the largest output: what float32 arithmetic in another order explains.
FLOAT_TOLERANCE = 1e-4


def random_policy(spec: NetworkSpec, rng: np.random.Generator) -> Policy:
    """Bits, codebooks, zeros and channels drawn for each layer and group."""
    style = rng.random()

    def decision() -> LayerPolicy:
        if style < 0.3 or rng.random() < 0.4:
            return INT8
        choices = [LayerPolicy(int(rng.integers(2, 9)), "int8"), LayerPolicy(4, "float"), clustered(16), FLOAT]
        return choices[int(rng.integers(len(choices)))]

    layers = {}
    for layer in spec.layers:
        chosen = decision() if layer.op not in WEIGHT_ONLY else LayerPolicy(int(rng.integers(2, 9)), "float")
        if style > 0.8 and rng.random() < 0.3:
            chosen = chosen.with_zeros(Sparsity(0.5, "unstructured"))
            assert pattern_fault(layer, "unstructured") is None
        layers[layer.name] = chosen
    kept = {}
    if rng.random() < 0.5:
        kept = {g.name: int(rng.integers(1, g.channels + 1)) for g in spec.groups if g.prunable}
    return Policy(layers, kept)


def run_file(path: Path, inputs: np.ndarray, batch: int) -> np.ndarray:
    """Outputs of a file for (n, …), by the exact arithmetic of the scorer's session, some examples at a time."""
    session, _ = open_session(str(path))
    name = session.get_inputs()[0].name
    pieces = [session.run(None, {name: inputs[i : i + batch]})[0] for i in range(0, len(inputs), batch)]
    return np.concatenate(pieces)


def _scored(result: object) -> Tensor:
    """Of several outputs, the one that counts."""
    if isinstance(result, Tensor):
        return result
    counts = result["logits"] if isinstance(result, dict) else result[0]  # type: ignore[index]
    assert isinstance(counts, Tensor)
    return counts


def differences(network: nn.Module, inputs: Tensor, rng: np.random.Generator, folder: Path) -> list[str]:
    """Where two forms of `network` differ beyond rounding, a line each. inputs: (n, …), n ≥ 4."""
    kind = next((p.dtype for p in network.parameters()), torch.float32)
    given = inputs.to(kind) if inputs.is_floating_point() else inputs
    with torch.no_grad():
        expected = _scored(network(given)).float().numpy()
        alone = torch.cat([_scored(network(x[None])) for x in given[:3]]).float().numpy()
    found = []
    largest = float(np.abs(expected).max()) or 1.0

    def hold(what: str, outputs: np.ndarray, against: np.ndarray) -> None:
        off = float(np.abs(outputs - against).max()) / largest if outputs.shape == against.shape else np.inf
        if not off <= FLOAT_TOLERANCE:
            found.append(f"{what}: off by {off:.2g} of the largest output")

    traced = trace(network, inputs[:2], "drawn")
    hold("traced graph", outputs_of(traced.graph, inputs.numpy()), expected)
    hold("traced graph, one example", outputs_of(traced.graph, inputs[:1].numpy()), alone[:1])
    path = folder / "float.onnx"
    OnnxWriter(traced).write(QuantizedNetwork(traced, Policy()).freeze(), path)
    hold("float file", run_file(path, inputs.numpy(), len(inputs)), expected)
    hold("float file, one example a time", run_file(path, inputs[:3].numpy(), 1), alone)
    if traced.spec.layers:
        eight = {
            layer.name: LayerPolicy(8, "float") if layer.op in WEIGHT_ONLY else INT8 for layer in traced.spec.layers
        }
        found += _quantized_differences(traced, Policy(eight), inputs, folder)
        found += _quantized_differences(traced, random_policy(traced.spec, rng), inputs, folder)
    return found


def _quantized_differences(traced: Traced, policy: Policy, inputs: Tensor, folder: Path) -> list[str]:
    network = QuantizedNetwork(traced, policy)
    network.quantize([inputs])
    frozen = network.freeze()
    path = folder / "quantized.onnx"
    OnnxWriter(traced).write(frozen, path)
    simulated = outputs_of(network.module, inputs.numpy())
    outputs = run_file(path, inputs.numpy(), 5)
    reach = float(simulated.max() - simulated.min()) or 1.0
    off = np.abs(outputs - simulated) / reach
    # A value between two codes may round either way where a float operator stands before it, and everything behind it
    # then moves by a step or two; what is computed wrongly is off everywhere, by more.
    if off.mean() <= 0.004 and np.quantile(off, 0.9) <= 0.015:
        return []
    return [f"quantized by {policy}: off by {off.mean():.2g} of the range on average, {off.max():.2g} at most"]
