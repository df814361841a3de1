"""Every controller serves several devices as it serves one: it sees one number for each kind of cost."""

import numpy as np
import pytest
from controllers.analytic import Fake

from autocomp.budget import Budget
from autocomp.controllers import NAMES, create
from autocomp.devices import Device, Devices
from autocomp.hardware.cost import Cost
from autocomp.hardware.profile import find_profile
from autocomp.outcome import Outcome, Status
from autocomp.space import Genes

FAKE = Fake.make()
TRIALS = 14


class ByMacs:
    """A device that waits for its arithmetic."""

    def __call__(self, genes: Genes) -> Cost:
        size, latency, memory = FAKE.cost(genes)
        return Cost(size, latency, latency, latency, memory)


class ByWeights:
    """A device that waits for its weights: what saves it time is what saves bytes."""

    def __call__(self, genes: Genes) -> Cost:
        size, _, memory = FAKE.cost(genes)
        latency = size / 4e5
        return Cost(size, latency, latency, latency, memory)


def share_of_full(model: ByMacs | ByWeights, latency: float, size: float | None = None) -> Budget:
    full = model(FAKE.space.largest[None])
    return Budget(None if size is None else int(size * full.size_bytes[0]), float(latency * full.latency_ms[0]))


def pair() -> Devices:
    macs, weights = ByMacs(), ByWeights()
    budgets = share_of_full(macs, 0.35, 0.5), share_of_full(weights, 0.2)
    return Devices(
        [
            Device(find_profile("mobile_arm"), macs, budgets[0]),  # type: ignore[arg-type]
            Device(find_profile("raspberry_pi_4"), weights, budgets[1]),  # type: ignore[arg-type]
        ],
        FAKE.space.largest,
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_is_proposed_keeps_the_bounds_of_each_device(name: str) -> None:
    devices = pair()
    controller = create(name, FAKE.space, devices.joint_costs, devices.joint_budget, 0)
    found = []
    for _ in range(TRIALS):
        candidate = controller.ask()
        if candidate is None:
            break
        genes = np.array([candidate.genes])
        figures = devices.figures(candidate.genes)
        assert devices.broken(figures) is None
        # Each bound by itself, as the device's own cost model has it.
        for device in devices:
            cost = device.cost(genes)
            assert device.budget.latency_ms is not None and cost.latency_ms[0] <= device.budget.latency_ms
            assert device.budget.size_bytes is None or cost.size_bytes[0] <= device.budget.size_bytes
        accuracy = float(FAKE.accuracy(genes)[0])
        outcome = Outcome(Status.COMPLETE, accuracy, int(figures[0].size_bytes), figures[0].latency_ms)
        controller.tell(candidate, devices.joint_outcome(outcome, figures))
        found.append(candidate)
    assert len(found) >= (TRIALS if name != "uniform" else 3)


@pytest.mark.parametrize("name", ["tpe", "evolution"])
def test_one_device_sees_what_it_always_saw(name: str) -> None:
    alone = next(iter(pair()))
    devices = Devices([alone], FAKE.space.largest)

    def own(genes: Genes) -> object:
        cost = alone.cost(genes)
        return type(devices.joint_costs(genes))(cost.size_bytes, cost.latency_ms, cost.memory_bytes)

    first = create(name, FAKE.space, devices.joint_costs, devices.joint_budget, 3)
    second = create(name, FAKE.space, own, alone.budget, 3)  # type: ignore[arg-type]
    for _ in range(TRIALS):
        one, other = first.ask(), second.ask()
        assert one == other
        if one is None or other is None:
            break
        outcome = FAKE.run(one)
        first.tell(one, devices.joint_outcome(outcome, devices.recorded({})))
        second.tell(other, outcome)
