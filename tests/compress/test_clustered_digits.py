"""Codebooks on a trained network: digits keep being told apart, in torch and in the file."""

import numpy as np
import pytest
import torch
from torch import nn

from autocomp.compress.finetune import batches, finetune, outputs_of
from autocomp.compress.network import QuantizedNetwork
from autocomp.compress.trace import Traced, trace
from autocomp.export.score import Scorer, layer_outputs, precision_faults
from autocomp.export.writer import OnnxWriter
from autocomp.network import pattern_fault
from autocomp.policy import LayerPolicy, Policy, Sparsity, clustered
from autocomp.tasks.mnist import splits
from autocomp.tasks.task import Data, top1


@pytest.fixture(scope="module")
def digits() -> tuple[Data, Data]:
    train, validation, _ = splits(16)
    return Data(train.inputs[::3], train.labels[::3]), validation  # they lie in the order of the digits


@pytest.fixture(scope="module")
def source(digits) -> Traced:
    """A small network, trained for a few seconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(32, 32, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for index in batches(len(digits[0]), 50, seed=0, epochs=6):
            loss = nn.functional.cross_entropy(
                network(torch.from_numpy(digits[0].inputs[index])), torch.from_numpy(digits[0].labels[index])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return trace(network.eval(), torch.from_numpy(digits[0].inputs[:1]), "digits")


def compressed(source: Traced, decision: LayerPolicy, digits, epochs: float) -> QuantizedNetwork:
    """The decision in every layer whose shape its pattern of zeros fits, the precision alone in the others."""
    fits = {layer.name: pattern_fault(layer, decision.pattern) is None for layer in source.spec.layers}
    network = QuantizedNetwork(source, Policy({n: decision if may else decision.precision for n, may in fits.items()}))
    inputs = digits[0].inputs
    network.quantize([torch.from_numpy(inputs[:128])])
    _, scales = network.parameters()
    finetune(
        network.module, inputs, None, outputs_of(source.graph, inputs), epochs=epochs, batch_size=50,
        learning_rate=1e-3, seed=0, log_scales=scales,
    )  # fmt: skip
    return network


@pytest.mark.parametrize(
    ("decision", "loss"),
    [(clustered(16), 0.02), (clustered(16).with_zeros(Sparsity(0.5, "2:4")), 0.03)],
    ids=str,
)
def test_accuracy_is_kept_and_the_file_scores_the_same(source, digits, decision, loss, tmp_path):
    validation = digits[1]
    reference = top1(outputs_of(source.graph, validation.inputs), validation.labels)
    assert reference > 0.9  # else there is nothing to keep
    network = compressed(source, decision, digits, epochs=4)
    frozen = network.freeze()
    simulated = outputs_of(network.module, validation.inputs)
    assert top1(simulated, validation.labels) >= reference - loss
    np.save(tmp_path / "inputs.npy", validation.inputs)
    OnnxWriter(source).write(frozen, tmp_path / "model.onnx")
    with Scorer() as scorer:
        scored = scorer.score(tmp_path / "model.onnx", tmp_path / "inputs.npy", layer_outputs(source))
    assert precision_faults(network.policy, scored.executed) == []  # QLinearConv throughout
    # A sum that lies between two codes may round to either: now and then a close call falls the other way.
    assert (scored.outputs.argmax(axis=1) == simulated.argmax(axis=1)).mean() >= 0.995


def test_training_makes_up_for_few_levels(source, digits):
    validation = digits[1]
    scores = []
    for epochs in (0, 4):
        network = compressed(source, clustered(2), digits, epochs)
        network.freeze()
        scores.append(top1(outputs_of(network.module, validation.inputs), validation.labels))
    assert scores[1] > scores[0] + 0.02
