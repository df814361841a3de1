"""What a bundle measured on a board becomes a profile of that board: a YAML file and its table."""

import csv
import datetime
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import pydantic
from pydantic import ConfigDict, Field

from autocomp.errors import UserError
from autocomp.hardware import runner
from autocomp.hardware.profile import find_profile
from autocomp.hardware.profiling.chains import REFERENCE, table_latency
from autocomp.hardware.profiling.derived import Machine, write_profile
from autocomp.hardware.profiling.growing import DRIFT, scaled
from autocomp.hardware.table import KEY_COLUMNS, Latency, LatencyTable
from autocomp.reading import read_text, shortened

_MOST_BYTES = 50_000_000

Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Microseconds = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
Record = TypeVar("Record", bound="_Record")


class _Record(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Facts(_Record):
    """The first line of the results: what they are true of. kernels: how many the bundle has."""

    format: Literal[1]
    bundle: Text
    base: Text
    space: Text
    kernels: int = Field(ge=1, le=1_000_000)
    cpu: Text
    machine: Text
    cores: int = Field(ge=1, le=1_000_000)
    threads: int = Field(ge=1, le=1024)
    onnxruntime: Annotated[Text, Field(pattern=r"^\d{1,6}\.\d{1,6}(?:[.+a-z0-9-]*)$")]
    date: datetime.date


class Row(_Record):
    """One kernel: the slope between its chains, warm and cold, and that of the reference kernel in the same rounds."""

    kernel: Text
    us: Microseconds
    cold_us: Microseconds
    spread_us: Annotated[Microseconds, Field(ge=0)]
    rounds: int = Field(ge=1, le=1_000_000)
    reference_us: Annotated[Microseconds, Field(gt=0)]


class Refused(_Record):
    """A kernel that the board's runtime does not build."""

    kernel: Text
    error: str = Field(max_length=1000)


@dataclass(frozen=True)
class Results:
    """What a board measured. table: at the speed of the fastest reference kernel. refused: kernels not built."""

    facts: Facts
    table: LatencyTable
    refused: int

    @property
    def measured(self) -> int:
        """Kernels of the bundle that have a latency; the reference kernel is in the table besides."""
        return len(self.table) - (REFERENCE in self.table)

    @property
    def complete(self) -> bool:
        return self.measured + self.refused >= self.facts.kernels


def read_results(path: Path) -> Results:
    """The results in a bundle's folder, or in a file. UserError where they are damaged or of another bundle.

    A last line without its end was being written when measuring was interrupted, and is left out.
    """
    file = path / runner.RESULTS if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise UserError(f"there is no {runner.RESULTS} in {path}; run `python3 run.py` there, on the board")
    lines = read_text(file, "results", _MOST_BYTES).split("\n")[:-1]
    if not lines:
        raise UserError(f"results {file}: nothing was measured yet; run `python3 run.py` in the bundle, on the board")
    facts = _record(Facts, lines[0], f"results {file}: line 1")
    if path.is_dir():
        _check_bundle(path, facts)
    rows, refused = [], 0
    for number, line in enumerate(lines[1:], start=2):
        where = f"results {file}: line {number}"
        if '"error"' in line:
            _record(Refused, line, where)
            refused += 1
        else:
            rows.append(_record(Row, line, where))
    if not rows:
        raise UserError(f"results {file}: no kernel was measured yet; run `python3 run.py` in the bundle, on the board")
    if len(rows) + refused > facts.kernels:
        raise UserError(
            f"results {file}: {len(rows) + refused} rows of a bundle with {facts.kernels} kernels; damaged?"
        )
    return Results(facts, _table(rows, f"results {file}"), refused)


def _check_bundle(folder: Path, facts: Facts) -> None:
    try:
        bundle = runner.read_manifest(folder)["bundle"]
    except runner.Fault as fault:
        raise UserError(str(fault)) from None
    if bundle != facts.bundle:
        raise UserError(
            f"the results in {folder} are of another bundle than the one there ({facts.bundle} and "
            f"{shortened(str(bundle), 40)}); run `python3 run.py --fresh` there, or import the results file alone"
        )


def _record(kind: type[Record], line: str, where: str) -> Record:
    try:
        return kind.model_validate_json(line)
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"]))
        raise UserError(f"{where}: {field + ': ' if field else ''}{shortened(fault['msg'])}; damaged?") from None


def _table(rows: Sequence[Row], origin: str) -> LatencyTable:
    """Rows as a table, all at the speed of the fastest reference kernel; see `growing.at_one_speed`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*KEY_COLUMNS, "latency_us", "spread_us", "repeats"])
    writer.writerows([*row.kernel.split(","), 1.0, row.spread_us, row.rounds] for row in rows)
    kernels = LatencyTable.parse(text.getvalue(), origin)  # the table's own reader says what is wrong with a kernel
    yardstick = min(_reference_us(row) for row in rows)
    table = {REFERENCE: Latency(yardstick)}
    for kernel, row in zip(kernels, rows, strict=True):
        drift = _reference_us(row) / yardstick
        latency = table_latency(kernel, runner.Timing(row.us, row.spread_us, row.rounds, row.cold_us))
        table[kernel] = scaled(latency, 1 / drift if drift > 1 + DRIFT else 1.0)
    return LatencyTable(table)


def _reference_us(row: Row) -> float:
    return table_latency(REFERENCE, runner.Timing(row.reference_us, 0.0, row.rounds, row.reference_us)).latency_us


@dataclass(frozen=True)
class Imported:
    """The files that an import wrote, and what is in them."""

    profile: Path
    table: Path
    results: Results

    def document(self) -> dict[str, object]:
        """For `--json`."""
        facts = self.results.facts
        return {
            "profile": str(self.profile), "table": str(self.table), "rows": len(self.results.table),
            "kernels": facts.kernels, "measured": self.results.measured, "refused": self.results.refused,
            "complete": self.results.complete, "cpu": facts.cpu, "runtime": f"onnxruntime {facts.onnxruntime}",
        }  # fmt: skip

    def __str__(self) -> str:
        results = self.results
        text = f"{self.profile}: {results.measured} of {results.facts.kernels} kernels of {results.facts.space}"
        text += f" on {results.facts.cpu}, ONNX Runtime {results.facts.onnxruntime}"
        if results.refused:
            text += f"; {results.refused} that its runtime does not build"
        if not results.complete:
            text += "; incomplete: `python3 run.py` on the board goes on, then import again"
        return f"{text}\nuse it with --hw {self.profile}"


def import_results(path: Path, name: str, out: Path, base: str | None = None) -> Imported:
    """Writes the profile `name` and its table to the folder `out`, from results of a bundle.

    What the device executes is taken from the profile that the bundle was made for, or from `base`.
    UserError for results that cannot be used (see `read_results`), and where `out` holds another file of that name.
    """
    results = read_results(path)
    facts = results.facts
    profile, table = write_profile(
        find_profile(base or facts.base),
        name,
        out,
        results.table,
        Machine(facts.cpu, f"{facts.cpu}, {facts.machine}, {facts.cores} cores", facts.onnxruntime, facts.threads),
        f"{results.measured} of {facts.kernels} kernels of {facts.space}",
        facts.date,
    )
    return Imported(profile, table, results)
