"""Which kernels a search may ever execute: a network, traced with random weights, and a space over it. No data needed.

A space names its network: `mobilenet_v2` has a network section, `efficientnet_lite0` is a built-in network with a
space that is meant for it, and any other space goes with `--network NAME` or with a task of one's own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice

import numpy as np
import torch

from autocomp.compress.trace import trace
from autocomp.errors import UserError, unknown_name
from autocomp.hardware.choices import choosable_kernels
from autocomp.hardware.cost import network_kernels
from autocomp.hardware.profile import HardwareProfile
from autocomp.kernel import Kernel
from autocomp.network import NetworkSpec
from autocomp.policy import FLOAT, INT8, Policy
from autocomp.space import SearchSpace, SpaceOptions
from autocomp.tasks import Progress, TaskRequest, load_task, mnist
from autocomp.tasks.architectures import ARCHITECTURES, Network, build
from autocomp.tasks.spaces import load_space, space_names

#: Sides of images in pixels: multiples of 32, which halve evenly as often as these networks do.
_OTHER_SIDES = (32, 64, 96, 128, 160, 192, 224)


@dataclass(frozen=True)
class Reach:
    """A traced network and its space on a device. name: of the network, and of the space where that differs."""

    name: str
    network: NetworkSpec
    space: SearchSpace
    profile: HardwareProfile

    @property
    def kernels(self) -> list[Kernel]:
        """Every kernel that some candidate of the space executes."""
        return choosable_kernels(self.space)

    def between(self, networks: int, seed: int = 0) -> list[Kernel]:
        """Kernels of the whole network, and of so many with any channel counts, odd ones too, down to a quarter.

        Each as float and as int8, and the pruned ones also with both mixed. Every other pruned one is for images of
        another size.
        """
        rng = np.random.default_rng(seed)
        shape = self.network.input_shape
        found: dict[Kernel, None] = {}
        for index, policy in enumerate(islice(self._any_policy(rng), 2 + networks)):
            resized = len(shape) == 3 and index >= 2 and index % 2
            ratio = Fraction(int(rng.choice(_OTHER_SIDES)), shape[-1]) if resized else Fraction(1)
            found |= dict.fromkeys(_resized(kernel, ratio) for kernel, _ in network_kernels(self.network, policy))
        return list(found)

    def _any_policy(self, rng: np.random.Generator) -> Iterator[Policy]:
        integer = [layer.name for layer in self.network.layers if self.profile.veto(layer, INT8) is None]
        prunable = [group for group in self.network.groups if group.prunable]
        yield Policy()
        yield Policy(dict.fromkeys(integer, INT8))
        while True:
            chance = rng.choice([0.0, 0.5, 1.0])  # all float, mixed, all int8
            yield Policy(
                {name: INT8 if rng.random() < chance else FLOAT for name in integer},
                {g.name: int(rng.integers(max(1, g.channels // 4), g.channels + 1)) for g in prunable},
            )


def _resized(kernel: Kernel, ratio: Fraction) -> Kernel:
    """The kernel on an image `ratio` times as large, as far as its sides are then whole numbers; see `_OTHER_SIDES`."""
    sides = kernel.height * ratio, kernel.width * ratio
    if kernel.height * kernel.width == 1 or any(side.denominator > 1 for side in sides):
        return kernel
    return replace(kernel, height=int(sides[0]), width=int(sides[1]))


def reach(
    profile: HardwareProfile,
    space: str | None,
    network: str | None,
    task: str | None,
    watch: Progress,
) -> Reach:
    """What a search over `space` reaches on the device. UserError where no network can be told from the arguments.

    space: a space, the path of its file, or a built-in network. network: a built-in network. task: of one's own,
    path.py:function.
    """
    subject, options, space_name = _subject(space, network, task, watch)
    watch.phase("tracing the network", detail=subject.name)
    spec = trace(subject.module, subject.example, subject.name).spec
    offered = SearchSpace.build(spec, replace(options, channel_multiple=profile.channel_multiple), profile.veto)
    name = subject.name if space_name == subject.name else f"{subject.name} over the space {space_name}"
    return Reach(name, spec, offered, profile)


@dataclass(frozen=True)
class _Own:
    """A user's own network, as `Network` is a built-in one."""

    name: str
    module: torch.nn.Module
    example: torch.Tensor


def _subject(
    space: str | None, network: str | None, task: str | None, watch: Progress
) -> tuple[Network | _Own, SpaceOptions, str]:
    """The network, and the options and the name of the space over it."""
    if task is not None:
        if network is not None:
            raise UserError("give --network or --task, not both: a task brings its network")
        if ":" not in task:
            raise UserError(f"--task {task}: expected path/to/file.py:function; built-in networks go by --network")
        own = load_task(TaskRequest(task), watch)
        subject = _Own(own.name, own.network, own.example)
        if space is None:
            return subject, own.space, own.space_name
        return subject, load_space(space).options, space
    if space is None and network is None:
        raise UserError(
            "say what is to be measured: --space NAME (autocomp space list, or a built-in network: "
            f"{', '.join(ARCHITECTURES)}) or --task path.py:function"
        )
    if space in ARCHITECTURES and space not in space_names():
        if network not in (None, space):
            raise UserError(f"--space {space} is the network {space}; it cannot be combined with --network {network}")
        network, space = space, ARCHITECTURES[space].space
    if network is not None:
        if network not in ARCHITECTURES:
            raise unknown_name("network", network, ARCHITECTURES)
        space = space or ARCHITECTURES[network].space
        return build(network), load_space(space).options, space
    assert space is not None
    if not space.endswith((".yaml", ".yml")) and space not in space_names():
        raise unknown_name("search space or network", space, {*space_names(), *ARCHITECTURES})
    file = load_space(space)
    if file.network is not None:
        with torch.random.fork_rng(devices=[]):
            module = mnist.untrained(file.network).eval()
        return Network(file.name, module, (1, file.network.resolution, file.network.resolution)), file.options, space
    meant = [name for name, architecture in ARCHITECTURES.items() if architecture.space == space != "default"]
    if not meant:
        raise UserError(
            f"the space {space} comes without a network: add --network ({', '.join(ARCHITECTURES)}) "
            "or --task path.py:function"
        )
    return build(meant[0]), file.options, space
