"""Small trained networks with their data, and what the checks of a task say of them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from autocomp import Task
from autocomp.compress.finetune import outputs_of
from autocomp.errors import UserError
from autocomp.tasks.check import Checked, check_task
from autocomp.tasks.labels import Split

CLASSES = 4


def blobs(n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 8) around four centres, and which."""
    generator = torch.Generator().manual_seed(1)
    centres, y = torch.randn(CLASSES, 8, generator=generator), torch.arange(n) % CLASSES
    return centres[y] + 0.3 * torch.randn(n, 8, generator=generator), y


X, Y = blobs()


def fit(loss, targets: torch.Tensor, outs: int) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, outs))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss(network(X), targets).backward()
        optimizer.step()
    return network.eval()


CLASSIFIER = fit(functional.cross_entropy, Y, CLASSES)
NUMBERS = X[:, :3] ** 2
REGRESSION = fit(functional.mse_loss, NUMBERS, 3)


def check(network: nn.Module = CLASSIFIER, labels=Y, inputs=X, **settings) -> Checked:
    task = Task(network, train=inputs if labels is None else (inputs, labels), **settings)
    return check_task(task, network)


def accuracy(outputs, labels) -> float:
    return float((outputs.argmax(axis=1) == labels).mean())


def rmse(outputs, targets) -> float:
    return float(np.sqrt(np.square(outputs - targets).mean()))


def refuse(expected: str, **settings) -> str:
    with pytest.raises(UserError, match=expected) as caught:
        check(**settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def score(checked: Checked, network: nn.Module, task_labels=True) -> float:
    """Of a network on the validation split, which is the first argument's own."""
    return checked.judge.score(outputs_of(network, X.numpy()), checked.judge.encode(Split("all", Y.numpy())))
