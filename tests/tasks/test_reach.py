"""What a space reaches: which network is meant, and which kernels it may execute."""

from pathlib import Path

import pytest

from autocomp.display import QuietDisplay
from autocomp.errors import UserError
from autocomp.hardware.cost import network_kernels
from autocomp.hardware.profile import find_profile
from autocomp.network import NetworkSpec
from autocomp.policy import FLOAT, INT8, Policy
from autocomp.tasks import reach as module
from autocomp.tasks.reach import Reach, reach

TASKS = Path(__file__).parents[1] / "end_to_end" / "toy_tasks.py"
PROFILE = find_profile("host_cpu")


class _Named(Exception):
    """Raised in place of tracing, with the name of what would have been traced and the size of its input."""


@pytest.fixture
def meant(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Which network a call is about, without the seconds that tracing takes."""

    def named(network: object, example: object, name: str) -> None:
        raise _Named(name, tuple(example.shape[1:]))  # type: ignore[attr-defined]

    monkeypatch.setattr(module, "trace", named)

    def call(space: str | None, network: str | None = None, task: str | None = None) -> tuple[object, ...]:
        with pytest.raises(_Named) as caught:
            reach(PROFILE, space, network, task, QuietDisplay())
        return caught.value.args

    return call


def test_a_space_names_its_network(meant) -> None:  # type: ignore[no-untyped-def]
    assert meant("efficientnet_lite0") == ("efficientnet_lite0", (3, 224, 224))
    assert meant("efficientnet_lite2") == ("efficientnet_lite2", (3, 260, 260))
    assert meant("efficientnet_lite") == ("efficientnet_lite0", (3, 224, 224))
    assert meant("mobilenet_v2") == ("mobilenet_v2", (1, 32, 32))  # as the task mnist searches it
    assert meant("mobilenet_v2", "mobilenet_v2") == ("mobilenet_v2", (3, 224, 224))
    assert meant("default", "squeezenet") == ("squeezenet", (3, 224, 224))
    assert meant(None, "resnet20") == ("resnet20", (3, 32, 32))


@pytest.mark.parametrize(
    ("space", "network", "task", "expected"),
    [
        (None, None, None, "say what is to be measured: --space NAME"),
        ("default", None, None, "comes without a network: add --network"),
        ("efficientnet_lite9", None, None, "did you mean 'efficientnet_lite"),
        (None, "resnet81", None, "did you mean 'resnet18'"),
        ("resnet18", "resnet20", None, "cannot be combined with --network resnet20"),
        (None, "resnet20", "mine.py:task", "not both"),
        (None, None, "mnist", "expected path/to/file.py:function"),
        (None, None, "no_such_file.py:task", "there is no file"),
        ("no_such_file.yaml", None, None, "does not exist"),
    ],
)
def test_what_names_no_network_is_refused(
    space: str | None, network: str | None, task: str | None, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        reach(PROFILE, space, network, task, QuietDisplay())


@pytest.fixture(scope="module")
def own() -> Reach:
    return reach(PROFILE, None, None, f"{TASKS}:unforeseen", QuietDisplay())


def test_a_network_of_ones_own_is_reached_through_its_task(own: Reach) -> None:
    assert own.name.endswith("over the space default")
    for policy in (Policy(), Policy({layer.name: INT8 for layer in own.network.layers if layer.groups == 1})):
        assert {kernel for kernel, _ in network_kernels(own.network, policy)} <= set(own.kernels)


def test_kept_channels_are_multiples_of_what_the_profile_says_and_those_in_between_are_not(own: Reach) -> None:
    convolutions = [kernel for kernel in own.kernels if kernel.op == "conv"]
    assert all(kernel.out_channels % 8 == 0 for kernel in convolutions)
    between = own.between(8)
    assert any(kernel.out_channels % 2 for kernel in between if kernel.op == "conv")
    assert {kernel.precision for kernel in between if kernel.op == "conv"} == {"fp32", "int8"}


def test_variants_are_the_same_every_time_and_stay_within_the_network(own: Reach) -> None:
    assert own.between(8) == own.between(8)
    assert set(own.between(0)) == {
        kernel
        for policy in (Policy(), _all_int8(own.network))
        for kernel, _ in network_kernels(own.network, policy)
    }  # fmt: skip
    largest = max(kernel.out_channels for kernel in own.between(0))
    assert max(kernel.out_channels for kernel in own.between(8)) <= largest


def _all_int8(network: NetworkSpec) -> Policy:
    return Policy({layer.name: INT8 if PROFILE.veto(layer, INT8) is None else FLOAT for layer in network.layers})
