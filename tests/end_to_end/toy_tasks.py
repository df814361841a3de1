"""Tasks that are trained in seconds: synthetic images and signals, for `--task toy_tasks.py:NAME`."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from autocomp import Task

CLASSES = 4


def _images(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """12×12 images with one bright quarter, in noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    images = rng.normal(0, 0.6, (n, 1, 12, 12)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[0, 6 * row : 6 * row + 6, 6 * column : 6 * column + 6] += 0.5
    return images, labels.astype(np.int64)


def _signals(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2, 32) sines of four frequencies, in noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    time = np.arange(32) / 32
    phase = rng.uniform(0, 2 * np.pi, (n, 2, 1))
    signals = np.sin(2 * np.pi * (labels[:, None, None] + 1) * 2 * time + phase) + rng.normal(0, 0.4, (n, 2, 32))
    return signals.astype(np.float32), labels.astype(np.int64)


def _unit(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = _unit(1, 16, 3, 2)
        self.depthwise = _unit(16, 16, 3, 1, 16)
        self.project = _unit(16, 24, 1)
        self.head = nn.Linear(24 * 9, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = functional.max_pool2d(self.project(x + self.depthwise(x)), 2)
        return self.head(x.flatten(1))


class Unforeseen(nn.Module):
    """Residual, concatenation, grouped convolution, linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _unit(1, 16, 3, 2)
        self.left = _unit(16, 16)
        self.right = _unit(16, 8, 1)
        self.merge = _unit(24, 16, 1)
        self.grouped = _unit(16, 16, 3, 1, 4)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.merge(torch.cat([self.left(x), self.right(x)], 1))
        return self.head((x + self.grouped(x)).mean((2, 3)))


class Signal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(2, 16, 5, 1, 2), nn.BatchNorm1d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Conv1d(16, 16, 3, 1, 1), nn.BatchNorm1d(16), nn.ReLU())
        self.pool = nn.MaxPool1d(2)
        self.head = nn.Linear(16 * 16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.head(self.pool(x + self.second(x)).flatten(1))


def _task(network: nn.Module, data, name: str) -> Task:
    train, validation, test = data(640, 1), data(300, 2), data(300, 3)
    torch.manual_seed(0)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    inputs, labels = torch.from_numpy(train[0]), torch.from_numpy(train[1])
    for _ in range(6):
        for index in torch.randperm(len(inputs)).split(32):
            loss = functional.cross_entropy(network(inputs[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Task(network.eval(), train=train, validation=validation, test=test, name=name)


def small() -> Task:
    return _task(Small(), _images, "small")


def unforeseen() -> Task:
    return _task(Unforeseen(), _images, "unforeseen")


def signal() -> Task:
    return _task(Signal(), _signals, "signal")
