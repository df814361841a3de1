"""What a table is worth after it was measured: what it covers, how well it predicts, what more time would improve."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from autocomp.hardware.estimator import LatencyModel
from autocomp.hardware.profiling.planning import expected_errors_us
from autocomp.hardware.table import LatencyTable
from autocomp.kernel import Kernel

#: Kinds of kernels named where more time would help.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Improvable:
    """One (op, precision) of the kernels that were asked for.

    kernels, measured: how many there are and how many of them are rows. error_us: expected error of the mean kernel.
    """

    kind: str
    kernels: int
    measured: int
    error_us: float


@dataclass(frozen=True, slots=True)
class Summary:
    """rows: of the table. reachable, measured: kernels that were asked for, and how many of them are rows.

    band: half-width of the 90 % band of the median kernel that was asked for, as a fraction. held_out_median,
    held_out_90pct: quantiles of |log(measured / predicted by the other rows)| over the rows; None with too few rows.
    improvable: where an hour more would help most, largest expected error first.
    """

    rows: int
    reachable: int
    measured: int
    band: float
    held_out_median: float | None
    held_out_90pct: float | None
    improvable: tuple[Improvable, ...]

    def document(self) -> dict[str, object]:
        """For `--json`."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For a person."""
        share = f" ({100 * self.measured / self.reachable:.0f} %)" if self.reachable else ""
        held_out = "too few rows to hold any out"
        if self.held_out_median is not None and self.held_out_90pct is not None:
            held_out = (
                f"{100 * self.held_out_median:.1f} % in the median, {100 * self.held_out_90pct:.1f} % for 9 of 10"
            )
        lines = [
            f"rows              {self.rows}",
            f"coverage          {self.measured} of {self.reachable} kernels that the space reaches{share}",
            f"band              ±{100 * self.band:.1f} % for the median kernel (learned; holds 90 %)",
            f"held-out error    {held_out}",
        ]
        todo = [kind for kind in self.improvable if kind.measured < kind.kernels]
        if todo:
            most = ", ".join(f"{k.kind} ({k.measured} of {k.kernels} measured, ±{k.error_us:.2g} µs)" for k in todo)
            lines.append(f"more time helps   {most}")
        else:
            lines.append("more time helps   networks outside this space only: all that it reaches is measured")
        return lines


def summarize(table: LatencyTable, reachable: Sequence[Kernel], calibration: dict[str, float]) -> Summary:
    """The worth of `table` for the `reachable` kernels. calibration: of the profile."""
    model = LatencyModel.from_table(table, calibration)
    estimate = model.predict(reachable)
    band = np.median((estimate.high_us - estimate.low_us) / 2 / estimate.us) if reachable else 0.0
    surprises = np.abs(list(model.surprises().values()))
    errors = expected_errors_us(reachable, LatencyModel.from_table(table)) if reachable else np.zeros(0)
    kinds: dict[str, list[int]] = {}
    for index, kernel in enumerate(reachable):
        kinds.setdefault(f"{kernel.op} {kernel.precision}", []).append(index)
    improvable = [
        Improvable(kind, len(at), sum(reachable[i] in table for i in at), float(errors[at].mean()))
        for kind, at in kinds.items()
    ]
    improvable.sort(key=lambda entry: -entry.error_us * (entry.kernels - entry.measured))
    return Summary(
        rows=len(table),
        reachable=len(reachable),
        measured=sum(kernel in table for kernel in reachable),
        band=float(band),
        held_out_median=float(np.median(surprises)) if len(surprises) else None,
        held_out_90pct=float(np.quantile(surprises, 0.9)) if len(surprises) else None,
        improvable=tuple(improvable[:_NAMED]),
    )
