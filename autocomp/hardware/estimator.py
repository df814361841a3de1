"""Latency of kernels that are not in the table: a physical model of each operator family, corrected by its neighbours.

For one (op, precision) the estimate is  exp(GP(x)) · Σ w_j f_j,  where

* f_j are roofline-like terms in microseconds per unit (Williams et al. 2009): a call, multiply-accumulates with
  channels rounded up to the vector width, bytes of input, output and weights, bytes of the im2col buffer. The weights
  w_j ≥ 0 are fitted by non-negative least squares on relative errors (rows divided by their latency).
* GP is a Gaussian process on the logarithm of measured / modelled over log-sizes (Rasmussen & Williams 2006, §2.2),
  so measured kernels are met nearly exactly, their neighbours are smooth, and far from data the physical model stands.
  Each kernel is conditioned on its nearest rows only (Vecchia 1988; Datta et al. 2016), so a table may have any size.
* the band is the GP's own deviation, widened until 90 % of the leave-one-out residuals lie inside it: a number learned
  from kernels that were held out, not assumed.

An (op, precision) without rows is estimated from the nearest that has some, within a factor of 3: see `unlisted`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autocomp.hardware.ethos_u.encoded import EncodedWeights
from autocomp.hardware.ethos_u.family import EthosFamily
from autocomp.hardware.neighbours import Neighbours, fit_terms
from autocomp.hardware.positions import position, sizes, up
from autocomp.hardware.table import LatencyTable
from autocomp.hardware.unlisted import MULTIPLIES, best_us_per_mac, stand_ins
from autocomp.kernel import Kernel

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: A family with fewer rows is extrapolated from what is known of other families.
_FEWEST_ROWS = 3
#: Band of a kernel whose family was never measured, if another stands in for it and if none does: a factor either way.
_NEAREST, _UNKNOWN = np.log(3.0), np.log(4.0)


@dataclass(frozen=True)
class LatencyEstimate:
    """Latencies of n kernels.

    us: microseconds, shape (n,). own_us: half-width of the 90 % band of what a kernel is off by alone, shape (n,).
    common: the same of what all are off by together (the board, the clock, the method), in log-units. extrapolated:
    outside what was measured, shape (n,). measured: the kernel is a row of the table, shape (n,). unlisted: the table
    has no rows of its operator in its precision, so that another stands in, shape (n,).
    """

    us: Floats
    own_us: Floats
    common: float
    extrapolated: Bools
    measured: Bools
    unlisted: Bools

    @property
    def low_us(self) -> Floats:
        """Lower end of each kernel's 90 % band, shape (n,)."""
        return band(self.us, np.square(self.own_us), self.common)[0]

    @property
    def high_us(self) -> Floats:
        """Upper end of each kernel's 90 % band, shape (n,)."""
        return band(self.us, np.square(self.own_us), self.common)[1]

    @property
    def total_us(self) -> tuple[float, float, float]:
        """Of all kernels one after the other: microseconds, and the ends of the 90 % band."""
        us, squares = np.array([self.us.sum()]), np.array([np.square(self.own_us).sum()])
        low, high = band(us, squares, self.common)
        return float(us[0]), float(low[0]), float(high[0])


def band(us: Floats, own_squares: Floats, common: float) -> tuple[Floats, Floats]:
    """Ends of the 90 % band of sums of kernels, in the unit of `us`; (n,).

    own_squares: sums of the squares of what the kernels are off by each alone, which partly cancels out. common: what
    they are off by together, in log-units, which does not.
    """
    half = np.sqrt(own_squares / np.square(np.maximum(us, 1e-12)) + common**2)
    return us * np.exp(-half), us * np.exp(half)


def _ragged(channels: Floats) -> Floats:
    """1 where the channels do not fill vectors of 4, else 0: kernels fall back to slower code there."""
    return np.asarray(channels % 4 != 0, np.float64)


def _bytes_moved(size: dict[str, Floats]) -> Floats:
    width = np.where(size["fp32"] > 0, 4.0, 1.0)
    return width * (size["weights"] + size["reads"] + size["writes"])


def _terms(op: str, size: dict[str, Floats]) -> Floats:
    """Terms that the latency of a family is a non-negative combination of, shape (n, terms)."""
    width = np.where(size["fp32"] > 0, 4.0, 1.0)
    one = np.ones_like(width)
    reads, writes, weights = width * size["reads"], width * size["writes"], width * size["weights"]
    if op in MULTIPLIES:
        per_group_in, per_group_out = size["in"] / size["groups"], size["out"] / size["groups"]
        depth = per_group_in * size["window"]
        macs = [size["groups"] * size["out_area"] * depth * per_group_out]
        for rounded in (8, 16):
            macs.append(size["groups"] * size["out_area"] * up(depth, 4) * up(per_group_out, rounded))
            macs.append(size["groups"] * size["out_area"] * size["window"] * up(per_group_in, rounded)
                        * up(per_group_out, rounded))  # fmt: skip
        macs.append(size["groups"] * up(size["out_area"], 6) * depth * up(per_group_out, 16))
        unfolded = width * size["in"] * size["window"] * size["out_area"]
        ragged = [reads * _ragged(size["in"]), writes * _ragged(size["out"]), size["out_area"] * _ragged(size["out"])]
        calls = [size["groups"], size["out_area"]]
        return np.stack([one, *macs, reads, writes, weights, unfolded, *calls, *ragged], axis=1)
    if op == "depthwise":
        macs = [size["out_area"] * size["window"] * up(size["out"], multiple) for multiple in (1, 8, 16)]
        ragged = [_ragged(size["out"]) * term for term in (macs[0], size["out"], writes)]
        ragged += [(size["out"] % multiple != 0) * macs[0] for multiple in (8, 16)]
        return np.stack([one, *macs, reads, writes, size["out_area"] * size["window"], size["out"], *ragged], axis=1)
    windows = size["out_area"] * size["window"]
    return np.stack([one, reads, writes, windows * size["out"], windows, size["out"]], axis=1)


class Family(Protocol):
    """The fitted model of one (op, precision), which `kernels` of it were the rows of."""

    kernels: tuple[Kernel, ...]

    @property
    def surprises(self) -> Floats:
        """log(measured / what the other rows predict) of each row, shape (rows,)."""

    def predict(self, kernels: Sequence[Kernel]) -> tuple[Floats, Floats, Bools]:
        """Microseconds, half-width of the band in log-units, and whether it lies outside the measured range."""


class _Family:
    """The roofline of one (op, precision), corrected by its neighbours."""

    def __init__(self, op: str, kernels: Sequence[Kernel], latencies_us: Floats) -> None:
        self.op = op
        self.kernels = tuple(kernels)
        size = sizes(kernels)
        self.weights, self.scale = fit_terms(_terms(op, size), latencies_us)
        self.neighbours = Neighbours(position(size), np.log(latencies_us) - np.log(self._physical(size)))

    def _physical(self, size: dict[str, Floats]) -> Floats:
        return np.maximum(_terms(self.op, size) / self.scale @ self.weights, 1e-3)

    @property
    def surprises(self) -> Floats:
        return self.neighbours.surprises

    def predict(self, kernels: Sequence[Kernel]) -> tuple[Floats, Floats, Bools]:
        size = sizes(kernels)
        factor, band, extrapolated = self.neighbours.predict(position(size))
        return self._physical(size) * factor, band, extrapolated


class LatencyModel:
    """Latencies of any kernel from a table of some. Fitted once; see the module's docstring for the method."""

    def __init__(
        self,
        families: Mapping[tuple[str, str], Family],
        fallback: tuple[float, float],
        table: LatencyTable,
        floor: float,
        encoded: EncodedWeights | None = None,
    ) -> None:
        self._families = dict(families)
        self._call_us, self._us_per_byte = fallback
        self._rows = {kernel: row.latency_us for kernel, row in table.items()}
        self._spread = {kernel: row.spread_us or 0.0 for kernel, row in table.items()}
        #: Bytes of weights in the files that an NPU's compiler makes; None for other devices.
        self.encoded = encoded
        #: What all kernels are off by together, in log-units.
        self.common = float(np.log1p(floor))
        self._us_per_mac = best_us_per_mac(table)

    @classmethod
    def from_table(cls, table: LatencyTable, calibration: Mapping[str, float] | None = None) -> "LatencyModel":
        """The model of `table`. calibration: of the profile; a network is off by its `relative_error`."""
        grouped: dict[tuple[str, str], list[Kernel]] = {}
        for kernel in sorted(table):
            grouped.setdefault((kernel.op, kernel.precision), []).append(kernel)
        families: dict[tuple[str, str], Family] = {}
        in_parts = any(row.parts is not None for row in table.values())
        encoded = EncodedWeights(table) if in_parts else None
        for (op, precision), kernels in grouped.items():
            if len(kernels) >= _FEWEST_ROWS:
                latencies = np.array([table[kernel].latency_us for kernel in kernels])
                families[op, precision] = (
                    EthosFamily(op, kernels, table, encoded) if encoded is not None else _Family(op, kernels, latencies)
                )
        floor = (calibration or {}).get("relative_error", 0.0)
        return cls(families, _bytes_model(table), table, floor, encoded)

    @cached_property
    def families(self) -> tuple[tuple[str, str], ...]:
        """The (op, precision) that were fitted; any other is estimated from the nearest of them."""
        return tuple(sorted(self._families))

    def lists(self, kernel: Kernel) -> bool:
        """Whether the table has the kernel, or others of its operator in its precision."""
        return kernel in self._rows or (kernel.op, kernel.precision) in self._families

    def parts_us(self, kernels: Sequence[Kernel]) -> Floats | None:
        """Microseconds that array, feature-map memory and weight memory of an NPU are busy with each, shape (n, 3).

        None for other devices. Zeros for a family that the table does not have.
        """
        npu = {family: model for family, model in self._families.items() if isinstance(model, EthosFamily)}
        if not npu:
            return None
        found = np.zeros((len(kernels), 3))
        for family, model in npu.items():
            places = [place for place, kernel in enumerate(kernels) if (kernel.op, kernel.precision) == family]
            if places:
                found[places] = model.parts([kernels[place] for place in places])
        return found

    def surprises(self) -> dict[Kernel, float]:
        """log(measured / what the other rows predict) of the fitted rows: large where a measurement was disturbed."""
        return {
            kernel: float(surprise)
            for family in self._families.values()
            for kernel, surprise in zip(family.kernels, family.surprises, strict=True)
        }

    def predict(self, kernels: Sequence[Kernel]) -> LatencyEstimate:
        """Latency of each kernel, in the order given. Always above 0; see `LatencyEstimate` for the shapes."""
        n = len(kernels)
        us, own = np.zeros(n), np.zeros(n)
        extrapolated, measured = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        grouped: dict[tuple[str, str], dict[Kernel, list[int]]] = {}
        for index, kernel in enumerate(kernels):
            grouped.setdefault((kernel.op, kernel.precision), {}).setdefault(kernel, []).append(index)
        for family, places in grouped.items():
            distinct = list(places)
            values = self._predict_family(family, distinct)
            where = np.concatenate([np.array(p) for p in places.values()])
            source = np.repeat(np.arange(len(distinct)), [len(p) for p in places.values()])
            us[where], own[where], extrapolated[where] = (v[source] for v in values)
        for index, kernel in enumerate(kernels):
            if kernel in self._rows:
                us[index], measured[index], extrapolated[index] = self._rows[kernel], True, False
                own[index] = self._spread[kernel] / us[index]
        unlisted = np.array([not self.lists(kernel) for kernel in kernels], np.bool_)
        return LatencyEstimate(us, us * own, self.common, extrapolated, measured, unlisted)

    def _predict_family(self, family: tuple[str, str], kernels: Sequence[Kernel]) -> tuple[Floats, Floats, Bools]:
        if family in self._families:
            return self._families[family].predict(kernels)
        found = [self._unlisted(kernel) for kernel in kernels]
        us, own = (np.array(column) for column in zip(*found, strict=True))
        return us, own, np.ones(len(kernels), np.bool_)

    def _unlisted(self, kernel: Kernel) -> tuple[float, float]:
        """Microseconds of a kernel whose family has no rows, and the half-width of its band in log-units.

        From the nearest family that has some; never faster than the table's best row multiplies, nor than its bytes
        move if no family is near.
        """
        moved = self._call_us + self._us_per_byte * float(_bytes_moved(sizes([kernel]))[0])
        # On an NPU what a kernel takes depends on how its weights are encoded, which no stand-in knows.
        parts = stand_ins(kernel, self._families) if self.encoded is None else None
        if parts is None:
            # Of the precisions that the table has; without any, a multiply-accumulate counts as a byte.
            us_per_mac = max(self._us_per_mac.values(), default=self._us_per_byte)
            return max(moved, kernel.macs * us_per_mac), float(_UNKNOWN)
        us = sum(times * float(self._families[part.op, part.precision].predict([part])[0][0]) for part, times in parts)
        return max(us, kernel.macs * self._us_per_mac.get(parts[0][0].precision, 0.0)), float(_NEAREST)


def _bytes_model(table: LatencyTable) -> tuple[float, float]:
    """Microseconds a call and a byte of the kernels that only move bytes; typical values for an empty table."""
    light = [k for k in table if k.weight_count == 0] or list(table)
    if not light:
        return 1.0, 1e-3
    latencies = np.array([table[kernel].latency_us for kernel in light])
    moved = _bytes_moved(sizes(light))
    weights, scale = fit_terms(np.stack([np.ones_like(moved), moved], axis=1), latencies)
    call, per_byte = weights / scale
    return max(float(call), 0.1), max(float(per_byte), 1e-6)
