"""Finetuning by distillation from the float network, with or without labels, quantizers in place or not."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from autocomp.compress.outputs import first_output

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def batches(count: int, batch_size: int, seed: int, epochs: float) -> Iterator[NDArray[np.int64]]:
    """Shuffled index batches of `epochs` passes over `count` examples, the same for one seed."""
    rng = np.random.default_rng(seed)
    size = min(batch_size, count)
    left = max(1, round(epochs * count / size))
    while left > 0:
        order = rng.permutation(count)
        for start in range(0, count - size + 1, size):
            if left <= 0:
                return
            left -= 1
            yield order[start : start + size]


def distillation_loss(outputs: torch.Tensor, teacher: torch.Tensor, temperature: float = 2.0) -> torch.Tensor:
    """How far the outputs are from the float network's (Hinton et al. 2015, §2); both (n, …).

    For class scores, (n, classes): temperature² · KL between the softened distributions. For anything else: mean
    squared error, relative to the teacher's variance so that the loss has no unit.
    """
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        soft = functional.log_softmax(teacher / temperature, dim=1)
        mine = functional.log_softmax(outputs / temperature, dim=1)
        return functional.kl_div(mine, soft, reduction="batchmean", log_target=True) * temperature**2
    return functional.mse_loss(outputs, teacher) / teacher.var().clamp_min(1e-6)


def finetune(
    module: nn.Module,
    inputs: NDArray[Any],
    labels: NDArray[Any] | None,
    teacher: NDArray[np.float32],
    *,
    epochs: float,
    batch_size: int,
    learning_rate: float,
    seed: int,
    loss: Loss | None = None,
    distillation: Loss | None = None,
    label_weight: float = 0.3,
    log_scales: list[nn.Parameter] | None = None,
) -> float:
    """Train `module` in place; returns the mean loss of the last tenth of the steps, NaN if it diverged.

    inputs: (n, …). teacher: the float network's outputs on them, (n, …); computed once, since every trial distils
    from the same network. labels with `loss` add a share of `label_weight`. distillation: (outputs, teacher)
    → scalar, `distillation_loss` by default. log_scales learn ten times faster than
    weights: they are logarithms, and there are few of them.
    """
    if epochs <= 0 or not any(parameter.requires_grad for parameter in module.parameters()):
        return 0.0
    scales = {id(p) for p in log_scales or []}
    # The aten operators that the graph calls have no train mode: batch-norm is folded, dropout is gone.
    weights = [p for p in module.parameters() if id(p) not in scales and p.requires_grad]
    groups = [{"params": weights, "lr": learning_rate}]
    if log_scales:
        groups.append({"params": list(log_scales), "lr": learning_rate * 10})
    optimizer = torch.optim.Adam(groups)
    plan = list(batches(len(inputs), batch_size, seed, epochs))
    warmup = max(1, len(plan) // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (step + 1) / warmup if step < warmup
        else 0.5 * (1 + np.cos(np.pi * (step - warmup) / max(1, len(plan) - warmup))),
    )  # fmt: skip
    distil = distillation_loss if distillation is None else distillation
    images = inputs.ndim == 4 and inputs.dtype.kind == "f"
    if images:
        module.to(memory_format=torch.channels_last)  # twice as fast on a CPU: depthwise convolutions
    recent: list[float] = []
    for index in plan:
        x = torch.from_numpy(np.array(inputs[index]))
        if images:
            x = x.contiguous(memory_format=torch.channels_last)
        outputs = first_output(module(x))
        total = distil(outputs, torch.from_numpy(np.array(teacher[index])))
        if labels is not None and loss is not None:
            total = (1 - label_weight) * total + label_weight * loss(outputs, torch.from_numpy(np.array(labels[index])))
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(weights, 5.0)
        optimizer.step()
        schedule.step()
        recent.append(float(total.detach()))
        if not np.isfinite(recent[-1]):
            return float("nan")
    if images:
        module.to(memory_format=torch.contiguous_format)
    return float(np.mean(recent[-max(1, len(recent) // 10) :]))


@torch.no_grad()
def outputs_of(module: nn.Module, inputs: NDArray[Any], batch_size: int = 64) -> NDArray[np.float32]:
    """Outputs of a torch network on (n, …) inputs; of several, the one that is scored."""
    pieces = [
        first_output(module(torch.from_numpy(np.array(inputs[i : i + batch_size])))).numpy()
        for i in range(0, len(inputs), batch_size)
    ]
    return np.concatenate(pieces)
