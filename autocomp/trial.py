"""One trial: a policy goes in, verified files come out."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from autocomp.artifact import Artifact, Draft, Target
from autocomp.bench import Bench
from autocomp.compress.finetune import finetune, outputs_of
from autocomp.compress.network import CompressedNetwork, QuantizedNetwork
from autocomp.compress.prune import select_channels
from autocomp.compress.reconstruct import reconstruct
from autocomp.compress.renormalize import Renormalized
from autocomp.compress.trace import Traced
from autocomp.errors import RunError
from autocomp.export.score import Scorer, layer_outputs, precision_faults
from autocomp.export.tflite_writer import TfliteWriter
from autocomp.export.writer import OnnxWriter
from autocomp.hardware.ethos_u.compiler import compile_tflite
from autocomp.policy import Policy
from autocomp.worker import Closing

#: Examples that activation ranges are chosen on, and how many go through the network at once.
_CALIBRATION, _CALIBRATION_BATCH = 128, 32

#: Examples that pruned layers are refitted on, at most, and elements of them where they are large images.
_RECONSTRUCTION, _RECONSTRUCTION_ELEMENTS = 1024, 5_000_000
#: Training of a pruned network before it is quantized, as multiples of the task's epochs and learning rate: with
#: batch-norm in place it bears a higher rate, and it has more to learn. On the embedded task at half the channels,
#: two epochs reach 90.7 % of validation, without batch-norm and reconstruction one reached 36 %.
_RECOVERY_EPOCHS, _RECOVERY_RATE = 2, 3.0
#: Mean bits a weight below which training goes on for so many times as long. Embedded task, 2.9 bits in the mean on an
#: NPU: 97.6 % of validation after 2 epochs, 97.7 % after 4, 98.1 % after 8 (float: 98.1 %).
_FEW_BITS, _PATIENCE = 3.5, 4.0
#: Mean bits a weight from which nothing is trained. EfficientNet-Lite0 at 6 bits: 91.0 % on held-out images without
#: training, 89.2 % after an epoch on 173 photographs at a learning rate of 1e-4.
_NO_TRAINING_BITS = 6.0
#: Share of a bound by which a draft may be over it and still be trained. Without pruned channels and zeros, drafts and
#: files of twelve networks differed by 0.2 % at most; of pruned ones, training saves up to 4.6 % (1.7 % in the median).
_TRAINING_MAY_SAVE, _RECOVERY_MAY_SAVE = 0.002, 0.03


@dataclass(frozen=True)
class TrialResult:
    """What a trial measured.

    artifacts: by device, the first target's first. drafts: by device; where one breaks its budget, nothing was trained
    and there are no artifacts. files: path of each file that was made, by what follows the
    candidate's id in its name. details: plain values for the journal: simulated_accuracy (torch, before export),
    loss, seconds per step.
    """

    artifacts: dict[str, Artifact]
    files: dict[str, Path]
    drafts: dict[str, Draft] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def primary(self) -> Artifact:
        """The first device's: its figures steer the search."""
        return next(iter(self.artifacts.values()))


class TrialRunner(Closing):
    """Runs trials of one bench for some devices, one after the other, in this process and its scoring process."""

    def __init__(self, bench: Bench, targets: Sequence[Target]) -> None:
        torch.set_num_threads(1)
        self.bench = bench
        self.targets = tuple(targets)
        self.traced = bench.traced
        # Devices that take files of one format share them: uint8 weights compute the same on all.
        unsigned = any(target.unsigned_weights for target in self.targets)
        self.writers = {target.suffix: _writer(self.traced, target, unsigned) for target in self.targets}
        self.scorer = Scorer()
        self._outputs = layer_outputs(self.traced)

    def close(self) -> None:
        self.scorer.close()

    def run(self, policy: Policy, seed: int, stem: Path, epochs: float | None = None) -> TrialResult:
        """Compress by `policy`, write the devices' files, named `stem` and a suffix, and score them.

        What a compiler finds over a device's budget ahead of training is not trained (`TrialResult.drafts`).
        The same policy, seed and epochs give the same files. RunError with the reason where training diverges, a file
        does not run or compile, a layer does not execute as the policy says, or a file's accuracy is not what torch
        simulated.
        """
        bench = self.bench
        started = time.perf_counter()
        drafts = self._drafts(policy, seed)
        steps = {"draft_s": time.perf_counter() - started}
        if self._over_budget(drafts, _RECOVERY_MAY_SAVE if self._is_pruned(policy) else _TRAINING_MAY_SAVE):
            return TrialResult({}, {}, drafts, {"seconds": round(steps["draft_s"], 3)})
        torch.manual_seed(seed)
        epochs = float(bench.settings["epochs"]) if epochs is None else epochs
        integer_only = any(target.integer_only for target in self.targets)
        network = QuantizedNetwork(self.traced, policy, integer_only=integer_only)
        if self._is_pruned(policy):
            # Recover in float first: ranges that are chosen on a broken network are wrong ones.
            self._recover(network, policy, epochs, seed)
            steps["recover_s"] = time.perf_counter() - started
        self._quantize(network, seed)
        steps["quantize_s"] = time.perf_counter() - started
        loss = 0.0
        if self._worth_training(policy):
            loss = self._finetune(network, epochs * self._patience(policy), seed + 1)
        steps["finetune_s"] = time.perf_counter() - started
        if not np.isfinite(loss):
            raise RunError("finetuning diverged: the loss is not a number")
        compressed = network.freeze()
        simulated = outputs_of(network.module, bench.validation_inputs)
        artifacts, files = self._artifacts(compressed, stem, simulated)
        steps["seconds"] = time.perf_counter() - started
        details: dict[str, Any] = {"simulated_accuracy": self._accuracy(simulated), "loss": loss}
        details |= {name: round(value, 3) for name, value in steps.items()}
        return TrialResult(artifacts, files, drafts, details)

    def _drafts(self, policy: Policy, seed: int) -> dict[str, Draft]:
        """What bounded devices' compilers make of the candidate before it is trained; {} where there is none.

        They ask for shapes and for how well the weights compress, which training changes by little: a second of work,
        where the table takes a candidate for just within its bound, instead of a training for nothing.
        """
        bounded = [(t, t.accelerator) for t in self.targets if t.accelerator is not None and t.budget.bounds_costs]
        if not bounded:
            return {}
        network = QuantizedNetwork(self.traced, policy, integer_only=True)
        network.quantize([self._examples(1, seed)], correct_bias=False)
        frozen, drafts = network.freeze(), {}
        with TemporaryDirectory(prefix="autocomp-draft-") as folder:
            paths = {suffix: Path(folder, f"draft{suffix}") for suffix in {target.suffix for target, _ in bounded}}
            for suffix, path in paths.items():
                self.writers[suffix].write(frozen, path)
            for target, accelerator in bounded:
                compiled = compile_tflite(paths[target.suffix], Path(folder), accelerator)
                drafts[target.device] = Draft(compiled.size_bytes, compiled.latency_ms, compiled.sram_bytes)
        return drafts

    def _over_budget(self, drafts: Mapping[str, Draft], allowed: float) -> bool:
        return any(
            target.budget.excess(draft.stored_bytes, draft.latency_ms, draft.memory_bytes) > allowed
            for target in self.targets
            if (draft := drafts.get(target.device)) is not None
        )

    def _artifacts(
        self, network: CompressedNetwork, stem: Path, simulated: np.ndarray
    ) -> tuple[dict[str, Artifact], dict[str, Path]]:
        """Each format is written and scored once, whichever devices share it, and compiled for each that needs it."""
        files = {suffix: stem.with_name(stem.name + suffix) for suffix in self.writers}
        written: dict[str, Artifact] = {}
        for suffix, writer in self.writers.items():
            size = writer.write(network, files[suffix])
            scored = self.scorer.score(files[suffix], self.bench.validation_inputs_path, self._outputs)
            faults = precision_faults(network.policy, scored.executed)
            if faults:
                raise RunError("; ".join(faults[:3]))
            written[suffix] = Artifact(self._accuracy(scored.outputs), size)
            gap = unexplained_gap(simulated, scored.outputs, self._accuracy, self.bench.judge.changed)
            if gap:
                raise RunError(gap)
        artifacts = {}
        for target in self.targets:
            artifacts[target.device] = written[target.suffix]
            if target.accelerator is not None:
                compiled = compile_tflite(files[target.suffix], stem.parent, target.accelerator)
                path = stem.with_name(stem.name + target.compiled_suffix)
                files[target.compiled_suffix] = compiled.path.replace(path)
                artifacts[target.device] = replace(
                    written[target.suffix], compiled_bytes=compiled.size_bytes, latency_ms=compiled.latency_ms,
                    memory_bytes=compiled.sram_bytes, cpu_operators=compiled.fallbacks,
                )  # fmt: skip
        return artifacts, files

    def _recover(self, network: QuantizedNetwork, policy: Policy, epochs: float, seed: int) -> None:
        """Refit the layers of a pruned network to what they gave before, then train it with batch-norm in place."""
        inputs = self.bench.train_inputs
        # Both networks hold a layer's activations at once: few images where they are large.
        count = max(_CALIBRATION_BATCH, min(_RECONSTRUCTION, int(_RECONSTRUCTION_ELEMENTS // inputs[0].size)))
        examples = self._examples(count, seed)
        reconstruct(self.traced, network.module, select_channels(self.traced, policy), examples)
        if epochs <= 0:
            return
        normalized = Renormalized(network.module, examples)
        network.module.train()
        loss = self._finetune(network, _RECOVERY_EPOCHS * epochs, seed, _RECOVERY_RATE)
        network.module.eval()
        normalized.fold()
        if not np.isfinite(loss):
            raise RunError("the recovery after pruning diverged: the loss is not a number")

    def _examples(self, count: int, seed: int) -> torch.Tensor:
        """Some training inputs, (count, …), the same for one seed."""
        inputs = self.bench.train_inputs
        chosen = np.sort(np.random.default_rng(seed).permutation(len(inputs))[:count])
        return torch.from_numpy(np.array(inputs[chosen]))

    def _quantize(self, network: QuantizedNetwork, seed: int) -> None:
        calibration = self._examples(_CALIBRATION, seed)
        network.quantize(calibration.split(_CALIBRATION_BATCH))

    def _worth_training(self, policy: Policy) -> bool:
        """Float and 6 bits or more need no finetuning: calibration keeps their accuracy, few examples may not."""
        decisions = [policy.layer(layer.name) for layer in self.traced.spec.layers]
        return (
            self._mean_bits(policy) < _NO_TRAINING_BITS or any(d.sparsity for d in decisions) or self._is_pruned(policy)
        )

    def _is_pruned(self, policy: Policy) -> bool:
        """Whether any group loses channels."""
        return any(kept < self.traced.spec.group_by_name[g].channels for g, kept in policy.channels.items())

    def _patience(self, policy: Policy) -> float:
        """How many times the task's epochs quantization-aware training goes on: few bits take longer to settle."""
        return _PATIENCE if self._mean_bits(policy) < _FEW_BITS else 1.0

    def _mean_bits(self, policy: Policy) -> float:
        """Bits a weight, averaged over all weights; 32 for float."""
        layers = self.traced.spec.layers
        weights = sum(layer.weights(policy) for layer in layers)
        return sum(layer.weights(policy) * (policy.layer(layer.name).stored_bits or 32) for layer in layers) / weights

    def _finetune(self, network: QuantizedNetwork, epochs: float, seed: int, faster: float = 1.0) -> float:
        bench = self.bench
        _, scales = network.parameters()
        return finetune(
            network.module, bench.train_inputs, bench.train_labels, bench.train_teacher, epochs=epochs,
            batch_size=int(bench.settings["batch_size"]), learning_rate=faster * float(bench.settings["learning_rate"]),
            seed=seed, loss=bench.judge.training_loss, distillation=bench.judge.distillation, log_scales=scales,
        )  # fmt: skip

    def _accuracy(self, outputs: np.ndarray) -> float:
        return self.bench.judge.score(outputs, np.asarray(self.bench.validation_labels))


def unexplained_gap(
    simulated: np.ndarray, outputs: np.ndarray, accuracy: Callable[[np.ndarray], float],
    count_changed: Callable[[np.ndarray, np.ndarray], float],
) -> str:  # fmt: skip
    """Why outputs of a file, (n, …), cannot be those that torch simulated; "" if rounding may explain the difference.

    A file that is not what was trained must not reach the front, in whichever direction it is off. Where rounding alone
    changes answers, it makes as many right as wrong, give or take the root of their number (McNemar 1947); a network
    that was compressed to near nothing answers at random, and many change.
    """
    expected, found, count = accuracy(simulated), accuracy(outputs), len(outputs)
    changed = count_changed(simulated, outputs)
    tolerance = max(0.01, 4 / count, 3 * changed**0.5 / count)
    if abs(expected - found) <= tolerance:
        return ""
    return (
        f"the file scores {found:.4f} where torch simulated {expected:.4f}: "
        f"more than the {tolerance:.3f} that rounding explains"
    )


def _writer(traced: Traced, target: Target, unsigned_weights: bool) -> OnnxWriter | TfliteWriter:
    """UserError where the format cannot express the network."""
    if target.format == "onnx":
        return OnnxWriter(traced, unsigned_weights=unsigned_weights)
    return TfliteWriter(traced)
