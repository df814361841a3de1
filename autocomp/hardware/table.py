"""Latency tables: measured or simulated kernels of one device, one row a kernel, as a CSV file."""

import csv
import hashlib
import io
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from types import MappingProxyType

from autocomp.errors import UserError
from autocomp.kernel import OPS, PRECISIONS, Kernel, WeightCoding
from autocomp.policy import PATTERNS, LayerPolicy
from autocomp.reading import read_text, shortened

#: What tells kernels apart whose weights are not coded, in the order of the columns.
KEY_COLUMNS = tuple(name for name in Kernel.__dataclass_fields__ if name != "coding")
#: Further columns, all of a group or none: the coding of weights where kernels differ by it, and the parts of an NPU.
_CODING = ("weight_bits", "clusters", "sparsity", "pattern")
_PARTS = ("array_us", "sram_us", "weights_us", "encoded_bytes")
_OPTIONAL = ("repeats", *_CODING, *_PARTS)
_WHOLE = re.compile(r"[0-9]{1,8}")
_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,3})?")
UNITS = ("us", "ms")
_MOST_BYTES = 20_000_000
#: A thousand seconds. What is above is no kernel's latency but a damaged file.
_SLOWEST_US = 1e9


@dataclass(frozen=True, slots=True)
class NpuParts:
    """How long each part of an NPU is busy with a kernel, in microseconds; they overlap, and the longest decides.

    array_us: the multiply-accumulate array, with its weight decoder. sram_us: feature maps. weights_us: the memory that
    weights are stored in. encoded_bytes: that the kernel's weights take there, without scales and biases.
    """

    array_us: float
    sram_us: float
    weights_us: float
    encoded_bytes: int


@dataclass(frozen=True, slots=True)
class Latency:
    """One kernel's latency.

    latency_us: microseconds, above 0, at most a thousand seconds. spread_us: half-width of what repeated rounds gave,
    None where unknown. repeats: number of rounds, None where unknown. parts: what an NPU is busy with, else None.
    """

    latency_us: float
    spread_us: float | None = None
    repeats: int | None = None
    parts: NpuParts | None = None

    def __post_init__(self) -> None:
        if not 0 < self.latency_us <= _SLOWEST_US:
            raise UserError(f"latency must be above 0 and at most {_SLOWEST_US:g} us, got {self.latency_us!r} us")
        if self.spread_us is not None and not 0 <= self.spread_us <= _SLOWEST_US:
            raise UserError(f"spread must be from 0 to {_SLOWEST_US:g} us, got {self.spread_us!r} us")
        if self.repeats is not None and self.repeats < 1:
            raise UserError(f"repeats must be at least 1, got {self.repeats!r}")


class LatencyTable(Mapping[Kernel, Latency]):
    """An immutable mapping from kernel to latency. Latencies are kept in microseconds, whatever the file's unit."""

    def __init__(self, rows: Mapping[Kernel, Latency]) -> None:
        self._rows = MappingProxyType(dict(rows))

    def __getitem__(self, kernel: Kernel) -> Latency:
        return self._rows[kernel]

    def __iter__(self) -> Iterator[Kernel]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def with_rows(self, rows: Mapping[Kernel, Latency]) -> "LatencyTable":
        """This table with `rows` added or replaced."""
        return LatencyTable({**self._rows, **rows})

    def to_csv(self) -> str:
        """The file's text, rows sorted by kernel; `parse` reads it back to an equal table."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        coded = any(kernel.coding is not None for kernel in self._rows)
        in_parts = any(row.parts is not None for row in self._rows.values())
        further = (*(_CODING if coded else ()), *(_PARTS if in_parts else ()))
        writer.writerow([*KEY_COLUMNS, "latency_us", "spread_us", "repeats", *further])
        for kernel in sorted(self._rows):
            row = self._rows[kernel]
            spread = "" if row.spread_us is None else repr(float(row.spread_us))
            key = [getattr(kernel, column) for column in KEY_COLUMNS]
            fields = [*key, repr(float(row.latency_us)), spread, "" if row.repeats is None else row.repeats]
            fields += astuple(kernel.coding) if kernel.coding else [""] * len(_CODING) * coded
            fields += astuple(row.parts) if row.parts else [""] * len(_PARTS) * in_parts
            writer.writerow(fields)
        return text.getvalue()

    def write(self, path: Path) -> None:
        """Replaces the file in one step: a reader sees the old table or the new one, never half of one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text(self.to_csv(), encoding="utf-8")
        temporary.replace(path)

    @property
    def digest(self) -> str:
        """SHA-256 of the rows, in hexadecimal."""
        return hashlib.sha256(self.to_csv().encode()).hexdigest()

    @classmethod
    def read(cls, path: Path, unit: str = "us") -> "LatencyTable":
        """The table in the file `path`, whose latencies are declared to be in `unit`.

        UserError naming the file, and the row where there is one, for anything that is not a table: the file is
        missing or leads out of its folder, is cut off, lacks a column or has an unknown one, repeats a kernel, or
        holds a value of the wrong type or range.
        """
        return cls.parse(read_text(path, "latency table", _MOST_BYTES), str(path), unit)

    @classmethod
    def parse(cls, text: str, origin: str = "latency table", unit: str = "us") -> "LatencyTable":
        """The table in CSV `text`; `origin` names it in errors. See `read`."""
        if unit not in UNITS:
            raise UserError(f"{origin}: unit must be one of {', '.join(UNITS)}, got {unit!r}")
        if not text.strip():
            raise UserError(f"{origin}: is empty; expected a header and one row a kernel")
        try:
            records = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        except csv.Error as error:
            raise UserError(f"{origin}: is not a CSV file or was cut off: {shortened(str(error))}") from None
        header = records[0]
        _check_header(header, origin, unit)
        if not text.endswith("\n"):
            raise UserError(f"{origin}: was cut off: row {len(records)} has no line end; restore the file")
        rows: dict[Kernel, Latency] = {}
        first_seen: dict[Kernel, int] = {}
        for number, record in enumerate(records[1:], start=2):
            where = f"{origin}: row {number}"
            if len(record) != len(header):
                raise UserError(f"{where} has {len(record)} fields where the header has {len(header)}: cut off?")
            values = dict(zip(header, record, strict=True))
            kernel = _kernel(values, where)
            if kernel in rows:
                raise UserError(f"{where} repeats row {first_seen[kernel]}: {kernel}; keep one of them")
            rows[kernel], first_seen[kernel] = _latency(values, unit, where), number
        return cls(rows)


def _check_header(header: list[str], origin: str, unit: str) -> None:
    for other in UNITS:
        if other != unit and f"latency_{other}" in header and f"latency_{unit}" not in header:
            raise UserError(f"{origin}: latencies are in {other} (column latency_{other}), but {unit} is declared")
    known = (*KEY_COLUMNS, f"latency_{unit}", f"spread_{unit}")
    missing = [column for column in known if column not in header]
    if missing:
        raise UserError(f"{origin}: the header lacks {', '.join(missing)}; expected {','.join(known)}")
    unknown = [column for column in header if column not in known + _OPTIONAL]
    if unknown:
        raise UserError(
            f"{origin}: unknown columns {shortened(', '.join(map(repr, unknown)))}; "
            f"known: {', '.join(known + _OPTIONAL)}"
        )
    for group in (_CODING, _PARTS):
        lacking = [column for column in group if column not in header]
        if 0 < len(lacking) < len(group):
            raise UserError(f"{origin}: the header lacks {', '.join(lacking)}, which belong to {', '.join(group)}")
    if len(set(header)) != len(header):
        raise UserError(f"{origin}: a column stands twice in the header: {shortened(','.join(header))}")


def _whole(values: Mapping[str, str], column: str, where: str) -> int:
    text = values[column]
    if _WHOLE.fullmatch(text) is None or int(text) < 1:
        raise UserError(f"{where}: {column} must be a whole number of at least 1, got {shortened(text, 40)!r}")
    return int(text)


def _number(values: Mapping[str, str], column: str, where: str, *, positive: bool) -> float:
    text = values[column].strip()
    wish = "above 0" if positive else "of at least 0"
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise UserError(f"{where}: {column} must be a number {wish}, got {shortened(text, 40)!r}")
    return value


def _kernel(values: Mapping[str, str], where: str) -> Kernel:
    op, precision = values["op"], values["precision"]
    if op not in OPS:
        raise UserError(f"{where}: op must be one of {', '.join(OPS)}, got {shortened(op, 40)!r}")
    if precision not in PRECISIONS:
        raise UserError(f"{where}: precision must be one of {', '.join(PRECISIONS)}, got {shortened(precision, 40)!r}")
    size = {column: _whole(values, column, where) for column in KEY_COLUMNS[2:]}
    try:
        kernel = Kernel(op, precision, **size, coding=_coding(values, where))
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if kernel.in_channels % kernel.groups or kernel.out_channels % kernel.groups:
        raise UserError(f"{where}: {kernel.groups} groups do not divide the channels of {kernel}")
    if "weight_bits" in values and (kernel.coding is not None) != (kernel.weight_count > 0):
        raise UserError(f"{where}: weight_bits must be told exactly for what has weights, got {kernel}")
    return kernel


def _coding(values: Mapping[str, str], where: str) -> WeightCoding | None:
    if not values.get("weight_bits", "").strip():
        return None
    bits = _whole(values, "weight_bits", where)
    clusters, sparsity = (_number(values, column, where, positive=False) for column in ("clusters", "sparsity"))
    if clusters % 1:
        raise UserError(f"{where}: clusters must be a whole number, 0 for none, got {values['clusters']!r}")
    pattern = next((known for known in PATTERNS if known == values["pattern"]), None)
    if pattern is None:
        came = shortened(values["pattern"], 40)
        raise UserError(f"{where}: pattern must be one of {', '.join(PATTERNS)}, got {came!r}")
    try:
        return WeightCoding.of(LayerPolicy(bits, "int8", sparsity, int(clusters) or None, pattern))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _parts(values: Mapping[str, str], where: str) -> NpuParts | None:
    if not values.get("array_us", "").strip():
        return None
    array, sram, weights, encoded = (_number(values, column, where, positive=False) for column in _PARTS)
    return NpuParts(array, sram, weights, int(encoded))


def _latency(values: Mapping[str, str], unit: str, where: str) -> Latency:
    factor = 1000.0 if unit == "ms" else 1.0
    latency = _number(values, f"latency_{unit}", where, positive=True) * factor
    spread = None
    if values[f"spread_{unit}"].strip():
        spread = _number(values, f"spread_{unit}", where, positive=False) * factor
    repeats = _whole(values, "repeats", where) if values.get("repeats", "").strip() else None
    try:
        return Latency(latency, spread, repeats, _parts(values, where))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
