"""The embedded task: splits that are the same for everybody, and the network that its space describes."""

import hashlib
import json
import os

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from autocomp.resources import data_folder
from autocomp.tasks import mnist
from autocomp.tasks.mnist import distort, splits
from autocomp.tasks.mobilenet import MobileNetV2, rounded
from autocomp.tasks.spaces import load_space
from autocomp.tasks.task import Data


@pytest.fixture(scope="module")
def data():
    return splits(32)


def test_the_splits_are_70_15_15_and_stratified(data):
    assert [len(part) for part in data] == [3500, 750, 750]
    for part, each in zip(data, (350, 75, 75), strict=True):
        assert np.bincount(part.labels).tolist() == [each] * 10


def test_no_digit_is_in_two_splits(data):
    digests = [{image.tobytes() for image in part.inputs} for part in data]
    assert sum(map(len, digests)) == len(set.union(*digests)) == 5000


def test_the_splits_are_always_the_same(data):
    for one, again in zip(data, splits(32), strict=True):
        assert (one.inputs == again.inputs).all()
        assert (one.labels == again.labels).all()
    # Fixed for good, since every published figure depends on them.
    assert [hashlib.sha256(part.inputs.tobytes()).hexdigest()[:16] for part in data] == [
        "d3de62437d4d661a",
        "567590c19a39c364",
        "322c6ee6f7b20c3b",
    ]


def test_images_are_padded_with_background_and_lie_in_range(data):
    inputs = data[0].inputs
    assert inputs.shape[1:] == (1, 32, 32)
    assert (inputs.min(), inputs.max()) == (-1.0, 1.0)
    assert (inputs[:, :, :2] == -1).all()
    assert splits(16)[0].inputs.shape == (3500, 1, 16, 16)


def test_distortion_keeps_background_and_is_repeatable(data):
    images = torch.from_numpy(data[0].inputs[:32])
    one, again = (distort(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, again)
    assert (one - images).abs().mean() > 0.01
    assert torch.allclose(distort(torch.full((4, 1, 32, 32), -1.0), torch.Generator()), torch.tensor(-1.0))


@pytest.mark.parametrize(("channels", "expected"), [(3, 8), (12, 16), (11, 16), (18, 24), (32, 32), (100, 104)])
def test_channels_are_rounded_to_eights_and_not_more_than_a_tenth_down(channels, expected):
    assert rounded(channels) == expected
    assert rounded(channels) >= 0.9 * channels


# torchvision's MobileNetV2 with 10 classes, less the weights of two input channels.
@pytest.mark.parametrize(("width", "parameters"), [(1.0, 2_236_106), (0.5, 700_202)])
def test_the_network_has_the_parameters_of_the_published_one(width, parameters):
    spec = load_space("mobilenet_v2").network.model_copy(update={"width": width})
    network = MobileNetV2(spec, 1, 10)
    assert network.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert sum(p.numel() for p in network.parameters()) == parameters


SPEC = load_space("mobilenet_v2").network
SMALL = SPEC.model_copy(update={"width": 0.1, "blocks": SPEC.blocks[:2], "head_channels": 64})


class Told:
    """What a task says while it prepares, and with how many threads torch computes then."""

    def __init__(self) -> None:
        self.details: list[str] = []
        self.threads: list[int] = []

    def phase(self, name, total=None, detail=""):
        self.details.append(detail)
        self.threads.append(torch.get_num_threads())

    def advance(self, done):
        self.threads.append(torch.get_num_threads())


@pytest.fixture
def short(monkeypatch, tmp_path):
    """One epoch of two batches on 64 digits, of a network of a few channels; what is cached is forgotten afterwards."""
    monkeypatch.setitem(mnist.TRAINING, "epochs", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    parts = [Data(part.inputs[:64], part.labels[:64]) for part in splits(32)]
    monkeypatch.setattr(mnist, "splits", lambda resolution: parts)
    space = yaml.safe_load((data_folder("search_spaces") / "mobilenet_v2.yaml").read_text())
    space["network"] = SMALL.model_dump(mode="json")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(space))
    return tmp_path


def untrainable(monkeypatch):
    def train(*arguments, **options):
        raise AssertionError("trained from scratch")

    monkeypatch.setattr(mnist, "_train", train)


def test_the_weights_that_ship_are_loaded_and_score_what_stands_beside_them(data, monkeypatch):
    untrainable(monkeypatch)
    train, validation, test = data
    network = mnist.baseline(SPEC, train, Told())
    facts = json.loads(mnist.SHIPPED.with_suffix(".json").read_text())
    assert not network.training
    assert facts["accuracy"]["validation"] >= 0.975
    assert facts["accuracy"]["test"] >= 0.97
    # Another processor may round one image across the border of two classes.
    assert mnist.accuracy(network, validation) == pytest.approx(facts["accuracy"]["validation"], abs=2 / 750)
    assert mnist.accuracy(network, test) == pytest.approx(facts["accuracy"]["test"], abs=2 / 750)
    assert mnist.SHIPPED.stat().st_size < 5_000_000


def test_weights_are_written_in_half_precision_with_what_shaped_them_and_are_taken_where_that_is_the_same(
    short, monkeypatch
):
    out = short / "small.safetensors"
    facts = mnist.make_weights(out, Told(), str(short / "small.yaml"))
    stored = load_file(out)
    assert {v.dtype for k, v in stored.items() if "running" in k} == {torch.float32}
    assert {v.dtype for k, v in stored.items() if k.endswith(("weight", "bias"))} == {torch.float16}
    assert facts == json.loads(out.with_suffix(".json").read_text())
    assert facts["command"] == f"python -m autocomp.tasks.mnist small.safetensors --space {short}/small.yaml"
    train, validation, test = mnist.splits(32)
    with monkeypatch.context() as patch:
        untrainable(patch)
        network = mnist.baseline(SMALL, train, Told(), out)
    assert all(torch.equal(value, stored[name].to(value.dtype)) for name, value in network.state_dict().items())
    assert facts["accuracy"] == {
        "validation": mnist.accuracy(network, validation),
        "test": mnist.accuracy(network, test),
    }

    told = Told()
    other = SMALL.model_copy(update={"head_channels": 72})
    for spec, digits in ((other, train), (SMALL, Data(train.inputs + 1, train.labels)), (SMALL, mnist.splits(32)[1])):
        mnist.baseline(spec, digits, told, out)
        mnist.baseline(spec, digits, told, out)  # from the cache, without a word
    monkeypatch.setitem(mnist.TRAINING, "seed", 1)
    mnist.baseline(SMALL, train, told, out)
    mnist.baseline(SMALL, train, told, short / "nothing.safetensors")
    assert told.details == [
        f"once, then cached: the weights that ship are of another {what}"
        for what in ("architecture", "data", "data", "training")
    ]


def test_an_installation_without_weights_trains_them(short):
    told = Told()
    network = mnist.baseline(SMALL, mnist.splits(32)[0], told, short / "none.safetensors")
    assert told.details == ["once, then cached: this installation has no trained weights"]
    assert not network.training


def test_training_takes_all_cores_and_leaves_as_many_threads_as_before(short):
    before, told = torch.get_num_threads(), Told()
    torch.set_num_threads(1)
    try:
        mnist.baseline(SMALL, mnist.splits(32)[0], told, short / "none.safetensors")
        assert set(told.threads) == {len(os.sched_getaffinity(0))}
        assert torch.get_num_threads() == 1
        facts = mnist.make_weights(short / "out.safetensors", told, str(short / "small.yaml"), threads=1)
        assert told.threads[-1] == 1
        assert facts["command"].endswith("--threads 1")
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "words",
    ["", "out.bin", "no/such/folder/out.safetensors", "out.safetensors --space none", "out.safetensors --threads 0"],
)
def test_the_command_refuses_what_it_cannot_write(words, capsys):
    with pytest.raises(SystemExit) as ended:
        mnist.main(words.split())
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) <= 3


@pytest.mark.slow
def test_the_weights_that_ship_can_be_made_again(tmp_path):
    shipped = json.loads(mnist.SHIPPED.with_suffix(".json").read_text())
    made = mnist.make_weights(tmp_path / mnist.SHIPPED.name, Told(), threads=1)
    assert {name: made[name] for name in ("command", "seed", "digests")} == {
        name: shipped[name] for name in ("command", "seed", "digests")
    }
    for split, accuracy in shipped["accuracy"].items():
        assert made["accuracy"][split] == pytest.approx(accuracy, abs=0.003)
