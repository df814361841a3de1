"""The embedded task: splits that are the same for everybody, and the network that its space describes."""

import hashlib

import numpy as np
import pytest
import torch

from autocomp.tasks.mnist import distort, splits
from autocomp.tasks.mobilenet import MobileNetV2, rounded
from autocomp.tasks.spaces import load_space


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
