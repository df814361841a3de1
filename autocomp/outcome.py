"""Candidates and what came of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from autocomp.policy import Policy


class Status(StrEnum):
    """How a trial ended. Only COMPLETE has a file; INFEASIBLE spent no training; FAILED names its reason."""

    COMPLETE = "complete"
    INFEASIBLE = "infeasible"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy with an id. ids count from 0 in the order in which the controller proposed them.

    genes: choice index per gene of the search space; equal genes mean an equal policy.
    """

    id: int
    genes: tuple[int, ...]
    policy: Policy


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back for a candidate.

    accuracy: of the file, scored by the runtime on the validation split, in [0, 1]. size_bytes: of the file on disk.
    latency_ms: by the profile's table. All three are None unless the status is COMPLETE (INFEASIBLE keeps the
    predicted size and latency, so that a controller can learn how far off it was).
    """

    status: Status
    accuracy: float | None = None
    size_bytes: int | None = None
    latency_ms: float | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.status is Status.COMPLETE and None in (self.accuracy, self.size_bytes, self.latency_ms):
            raise ValueError("a complete outcome needs accuracy, size_bytes and latency_ms")
        if self.status in (Status.INFEASIBLE, Status.FAILED) and not self.reason:
            raise ValueError(f"a {self.status} outcome needs a reason")

    @property
    def costs(self) -> Sequence[float]:
        """(−accuracy, size_bytes, latency_ms) for dominance; only for COMPLETE outcomes."""
        if self.accuracy is None or self.size_bytes is None or self.latency_ms is None:
            raise ValueError(f"a {self.status} outcome has no costs")
        return (-self.accuracy, float(self.size_bytes), self.latency_ms)
