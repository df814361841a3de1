"""What becomes of a search whose workers cannot begin."""

from pathlib import Path

import numpy as np
import pytest

from autocomp.bench import Bench
from autocomp.budget import Budget
from autocomp.devices import Device, Devices
from autocomp.hardware.cost import Cost
from autocomp.hardware.profile import find_profile
from autocomp.journal import Journal
from autocomp.outcome import Candidate
from autocomp.policy import Policy
from autocomp.ray_tune import run_trials
from autocomp.schedule import Schedule

pytestmark = pytest.mark.end_to_end


class Controller:
    """Proposes the same over and over."""

    count = 0

    def ask(self) -> Candidate:
        self.count += 1
        return Candidate(self.count - 1, (0,), Policy())

    def tell(self, candidate, outcome) -> None:
        pass


class Costs:
    def __call__(self, genes) -> Cost:
        return Cost(*(np.ones(len(genes)) for _ in range(5)))

    def of_policy(self, policy) -> Cost:
        return self(np.zeros((1, 1)))


def test_the_reason_of_workers_that_cannot_begin_ends_the_search(tmp_path: Path):
    def refuse(context):  # in here, so that it is sent by value
        raise ModuleNotFoundError("No module named 'mine'")

    device = Device(find_profile("mobile_arm"), Costs(), Budget())
    schedule = Schedule(Controller(), Devices([device], np.zeros(1, int)), Journal(tmp_path), lag=2, seconds=300)
    run_trials(
        schedule, Bench(tmp_path), lambda candidate, report, files: schedule.finished(candidate, report),
        targets=(), seed=0, workers=1, work=refuse,
    )  # fmt: skip
    assert schedule.hopeless is not None
    assert schedule.failures[0][0] == "the worker cannot begin: ModuleNotFoundError: No module named 'mine'"
    assert len(schedule.entries) < 10
