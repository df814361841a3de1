"""The devices that one search is for: each with its costs and its bounds, and one figure in the place of them all.

A controller weighs accuracy against bytes, milliseconds and memory, a number each. Where a network has to suit
several devices, `Joint` makes that one number of theirs, so that no controller needs to know how many there are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocomp.artifact import Artifact, Draft
from autocomp.budget import Budget
from autocomp.controllers import Costs
from autocomp.errors import UserError
from autocomp.hardware.cost import Cost, CostModel
from autocomp.hardware.profile import HardwareProfile
from autocomp.outcome import Outcome
from autocomp.policy import Policy
from autocomp.space import Genes

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figures:
    """What one candidate takes on one device: bytes, milliseconds with the ends of their band, and peak memory."""

    size_bytes: float
    latency_ms: float
    latency_low_ms: float
    latency_high_ms: float
    memory_bytes: float

    @classmethod
    def of(cls, cost: Cost) -> "Figures":
        """The first candidate of `cost`."""
        return cls(*(float(values[0]) for values in cost))

    def settled(self, artifact: Artifact | Draft) -> "Figures":
        """With what a file was found to take in the place of what was predicted.

        A compiler's latency is of the whole model: nothing in it is interpolated, so that it has no band.
        """
        found = replace(self, size_bytes=float(artifact.stored_bytes))
        if artifact.memory_bytes is not None:
            found = replace(found, memory_bytes=float(artifact.memory_bytes))
        if artifact.latency_ms is None:
            return found
        latency = artifact.latency_ms
        return replace(found, latency_ms=latency, latency_low_ms=latency, latency_high_ms=latency)

    @property
    def bounded(self) -> tuple[float, float, float]:
        """What a budget bounds, in the order of its methods' arguments."""
        return self.size_bytes, self.latency_ms, self.memory_bytes

    def __str__(self) -> str:
        return f"{self.size_bytes:,.0f} bytes, {self.latency_ms:.3g} ms and {self.memory_bytes:,.0f} bytes of memory"


@dataclass(frozen=True)
class Device:
    """A device of a search: its profile, what candidates cost on it, and what they may cost."""

    profile: HardwareProfile
    cost: CostModel
    budget: Budget

    @property
    def name(self) -> str:
        return self.profile.name


@dataclass(frozen=True)
class Joint:
    """One kind of cost on D devices as one number, in the unit of the first.

    Each device's figure is taken as a share: of its bound, or of what the least compressed candidate takes there if it
    has none. Within all bounds the number stands for the geometric mean of the shares, so that a gain of one percent
    counts the same on every device (Fleming & Wallace 1986 on means of normalized figures). Beyond a bound it stands
    for 1 and the sum of all breaches, so that it breaks `bound` exactly where some device's bound is broken.

    units: (D,) what is one share. bounded: (D,) whether that is a bound.
    """

    units: Floats
    bounded: NDArray[np.bool_]

    @classmethod
    def of(cls, bounds: Sequence[float | None], largest: Sequence[float]) -> "Joint":
        """bounds: of each device, None for none. largest: what the least compressed candidate takes on each."""
        units = [most if bound is None else bound for bound, most in zip(bounds, largest, strict=True)]
        return cls(np.maximum(np.array(units, dtype=float), 1e-12), np.array([bound is not None for bound in bounds]))

    def __call__(self, figures: Floats) -> Floats:
        """figures: (D, n). Returns (n,)."""
        shares = figures / self.units[:, None]
        if self.bounded.any():
            # A device without a bound must not seem to break one.
            shares = np.where(self.bounded[:, None], shares, np.minimum(shares, 1.0))
        breaches = np.maximum(0.0, shares[self.bounded] - 1).sum(axis=0)
        mean = np.exp(np.log(np.maximum(shares, 1e-12)).mean(axis=0))
        number: Floats = self.units[0] * np.where(breaches > 0, 1 + breaches, mean)
        return number

    @property
    def bound(self) -> float | None:
        return float(self.units[0]) if self.bounded.any() else None


class Devices:
    """One device or several. The first is the primary one: its figures are a point's in front.csv."""

    def __init__(self, devices: Sequence[Device], largest: Genes) -> None:
        """largest: (G,) the least compressed candidate. UserError where two devices have one name."""
        self._devices = tuple(devices)
        #: By device: found / predicted bytes and milliseconds of what was compiled, and the ratios that hold now.
        self._ratios: dict[str, list[tuple[float, float]]] = {}
        self._corrections: dict[str, tuple[float, float]] = {}
        names = [device.name for device in devices]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"--hw: expected different devices, got {name} twice")
        self._size = self._latency = self._memory = Joint(np.ones(1), np.zeros(1, bool))
        if self.several:
            most, bounds = self.figures(largest), [device.budget for device in devices]
            self._size = Joint.of([b.size_bytes for b in bounds], [f.size_bytes for f in most])
            self._latency = Joint.of([b.latency_ms for b in bounds], [f.latency_ms for f in most])
            self._memory = Joint.of([b.memory_bytes for b in bounds], [f.memory_bytes for f in most])

    def __iter__(self) -> Iterator[Device]:
        return iter(self._devices)

    def __len__(self) -> int:
        return len(self._devices)

    @property
    def primary(self) -> Device:
        return self._devices[0]

    @property
    def several(self) -> bool:
        return len(self._devices) > 1

    @property
    def title(self) -> str:
        """In words."""
        return " and ".join(device.profile.title for device in self._devices)

    @property
    def joint_budget(self) -> Budget:
        """The bounds of `joint_costs`, met exactly where every device's are."""
        if not self.several:
            return self.primary.budget
        size, latency, memory = self._size.bound, self._latency.bound, self._memory.bound
        return Budget(
            None if size is None else int(size), latency, self.primary.budget.accuracy_drop,
            None if memory is None else int(memory),
        )  # fmt: skip

    def learn(self, policy: Policy, found: Mapping[str, Artifact | Draft]) -> None:
        """Correct later predictions by what compilers made of a candidate; without any, nothing is learned.

        The table knows no network: one whose weights compress worse than Gaussian ones takes longer in each version of
        it. The correction is the median ratio of found to predicted, of all that was told so far.
        """
        for device in self._devices:
            made = found.get(device.name)
            if made is None or made.latency_ms is None:
                continue
            predicted = Figures.of(device.cost.of_policy(policy))
            ratios = self._ratios.setdefault(device.name, [])
            ratios.append((made.stored_bytes / predicted.size_bytes, made.latency_ms / predicted.latency_ms))
            size, latency = np.median(ratios, axis=0)
            self._corrections[device.name] = float(size), float(latency)

    def _predicted(self, device: Device, genes: Genes) -> Cost:
        cost = device.cost(genes)
        if device.name not in self._corrections:
            return cost
        size, latency = self._corrections[device.name]
        return Cost(
            size * cost.size_bytes, latency * cost.latency_ms, latency * cost.latency_low_ms,
            latency * cost.latency_high_ms, cost.memory_bytes,
        )  # fmt: skip

    def joint_costs(self, genes: Genes) -> Costs:
        """genes: (n, len(space)). What a controller may know of the costs: no bands, and one number for all devices."""
        costs = [self._predicted(device, genes) for device in self._devices]
        if not self.several:
            return Costs(costs[0].size_bytes, costs[0].latency_ms, costs[0].memory_bytes)
        return Costs(
            self._size(np.stack([cost.size_bytes for cost in costs])),
            self._latency(np.stack([cost.latency_ms for cost in costs])),
            self._memory(np.stack([cost.memory_bytes for cost in costs])),
        )

    def joint_outcome(self, outcome: Outcome, figures: Sequence[Figures]) -> Outcome:
        """`outcome` as a controller is told it: with bytes and latency as in `joint_costs`. figures: on each device."""
        if not self.several or outcome.size_bytes is None:
            return outcome
        size = self._size(np.array([[figure.size_bytes] for figure in figures]))
        latency = self._latency(np.array([[figure.latency_ms] for figure in figures]))
        return replace(outcome, size_bytes=round(float(size[0])), latency_ms=float(latency[0]))

    def figures(self, genes: Sequence[int] | Genes) -> list[Figures]:
        """Predicted for one candidate, on each device, by all that was learned."""
        return [Figures.of(self._predicted(device, np.array([genes]))) for device in self._devices]

    def figures_of_policy(self, policy: Policy) -> list[Figures]:
        """By the tables alone."""
        return [Figures.of(device.cost.of_policy(policy)) for device in self._devices]

    def broken(self, figures: Sequence[Figures]) -> tuple[Device, Figures, str] | None:
        """The device whose bound is broken the most, its figures and the constraint's name; None where all fit."""
        over = [d.budget.excess(*f.bounded) for d, f in zip(self._devices, figures, strict=True)]
        worst = int(np.argmax(over))
        if over[worst] <= 0:
            return None
        device, found = self._devices[worst], figures[worst]
        return device, found, device.budget.binding(*found.bounded)

    def details(self, figures: Sequence[Figures]) -> dict[str, Any]:
        """For the journal, so that a resumed search and a report need not ask the tables again; {} for one device."""
        if not self.several:
            return {}
        return {"devices": {d.name: asdict(f) for d, f in zip(self._devices, figures, strict=True)}}

    def recorded(self, details: Mapping[str, Any]) -> list[Figures]:
        """What `details` put there; [] for one device."""
        if not self.several:
            return []
        return [Figures(**details["devices"][device.name]) for device in self._devices]
