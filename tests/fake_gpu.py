"""A GPU that is not there: replays of chains cost what it is told, with what disturbs real ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from autocomp.hardware.cuda.gpu import Gpu
from autocomp.hardware.cuda.timing import ReplayedChains, chain_copies, rough_us
from autocomp.kernel import Kernel

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 50 * 2**20, 80 * 2**30, "570.86.15", "13.0", "2.14.1+cu130", "1.31.1")


class FakeReplay:
    """A chain: launch_us for the graph and kernel_us for each copy, in noise, now and then a lot slower."""

    def __init__(
        self, rng: np.random.Generator, launch_us: float, kernel_us: float, copies: int,
        noise_us: float = 0.0, spikes: float = 0.0,
    ) -> None:  # fmt: skip
        self._rng, self._us = rng, launch_us + copies * kernel_us
        self._noise_us, self._spikes = noise_us, spikes

    def replay_us(self) -> float:
        spike = 300.0 * self._rng.random() if self._rng.random() < self._spikes else 0.0
        return self._us + self._noise_us * self._rng.standard_normal() + spike


def true_us(kernel: Kernel) -> float:
    """What the fake device takes for a kernel; half in fp16."""
    return rough_us(kernel) * (1.0 if kernel.precision == "fp32" else 0.5)


def fake_chains(rng: np.random.Generator, kernel: Kernel) -> ReplayedChains:
    short, long = chain_copies(kernel)
    replays = [FakeReplay(rng, 9.0, true_us(kernel), copies, 0.2, 0.05) for copies in (short, long)]
    return ReplayedChains(replays[0], replays[1], long - short)


class FakeNetwork:
    """A model bound to the device: it takes a millisecond."""

    def __init__(self, model: Any, stopwatch: Any, *, values: Any = None) -> None:
        pass

    def replay_us(self) -> float:
        return 1000.0


@contextmanager
def gpu_at_hand(gpu: Gpu = H100) -> Iterator[None]:
    """This machine has `gpu`."""
    rng = np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autocomp.hardware.cuda.gpu.find_gpu", lambda: gpu)
        patch.setattr("autocomp.hardware.cuda.chains.stopwatch_of", lambda device: None)
        patch.setattr("autocomp.hardware.cuda.chains.make_chains", lambda kernel, _: fake_chains(rng, kernel))
        patch.setattr("autocomp.hardware.cuda.chains.OnnxReplay", FakeNetwork)
        yield
