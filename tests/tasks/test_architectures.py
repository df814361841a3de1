"""Architectures: as many weights as their papers and reference implementations count, and reproducible."""

import numpy as np
import pytest
import torch
from needs import needs

from autocomp.compress.trace import trace
from autocomp.errors import UserError
from autocomp.tasks.architectures import ARCHITECTURES, build
from autocomp.tasks.imagenet import load_network

#: Parameters of the reference implementations: torchvision, the authors' releases, and for resnet20 (with projected
#: shortcuts) He et al.'s 269,722 plus two 1×1 projections with their batch norms: 16·32 + 2·32 and 32·64 + 2·64.
PARAMETERS = {
    "mobilenet_v1": 4_231_976,
    "mobilenet_v2": 3_504_872,
    "resnet18": 11_689_512,
    "resnet20": 272_474,
    "squeezenet": 1_235_496,
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_as_many_parameters_as_published(name: str) -> None:
    assert sum(p.numel() for p in build(name).module.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["mobilenet_v1", "squeezenet", "resnet18"])
def test_narrow_networks_for_small_images_work(name: str) -> None:
    network = build(name, side=64, classes=7, width=0.5)
    with torch.no_grad():
        outputs = network.module(network.example)
    assert outputs.shape == (2, 7)
    assert outputs.abs().max() > 1e-3  # random weights that do not fade away with depth


def test_one_seed_one_network_and_the_callers_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second, other = (build("resnet20", seed=seed).module.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_efficientnet_lite_executes_the_same_kernels_as_the_package_with_its_weights() -> None:
    needs("efficientnet_lite_pytorch")
    network = build("efficientnet_lite0")
    ours, theirs = (
        trace(module, network.example, "efficientnet_lite0").spec
        for module in (network.module, load_network("efficientnet_lite0"))
    )
    shapes = [
        [(n.op, n.height, n.width, n.kernel_h, n.kernel_w, n.stride, n.groups) for n in spec.kernels if not n.free]
        for spec in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]
    assert [layer.weight_shape for layer in ours.layers] == [layer.weight_shape for layer in theirs.layers]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"name": "resnet81"}, "did you mean 'resnet18'"),
        ({"name": "resnet18", "side": 8}, "side ≥ 16"),
        ({"name": "resnet18", "width": float("nan")}, "width"),
        ({"name": "resnet18", "classes": 1}, "classes ≥ 2"),
    ],
)
def test_faults_are_named(arguments: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        build(**arguments)  # type: ignore[arg-type]


def test_examples_are_the_same_every_time() -> None:
    network = build("resnet20")
    np.testing.assert_array_equal(network.example, network.example)
    assert network.example.shape == (2, 3, 32, 32)
