"""A table file that grows while it is measured: each row is on the disk as soon as it is known."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from autocomp.hardware.profiling.chains import REFERENCE
from autocomp.hardware.table import Latency, LatencyTable
from autocomp.kernel import Kernel

#: A change of the reference kernel below this is noise: it repeats within ±4 %, and the luckiest of many rounds would
#: otherwise scale a whole table down. Clock frequencies change by more.
DRIFT = 0.1


class GrowingTable:
    """The rows of one file, which several processes may add to at once."""

    def __init__(self, path: Path) -> None:
        """Reads what is there. UserError where that is no table; a last line that was cut off is dropped."""
        self.path = path
        self._table = LatencyTable({})
        self._seen: tuple[int, int] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            pass

    @property
    def table(self) -> LatencyTable:
        return self._table

    def add(self, kernel: Kernel, latency: Latency, reference_us: float) -> None:
        """Adds or replaces a row, at the speed of the fastest reference kernel that was ever seen."""
        with self._locked():
            before = self._table
            self._table = at_one_speed(before, kernel, latency, reference_us)
            # All rows are scaled or none is, so the reference tells; to compare all would cost more than to measure.
            alike = kernel not in before and REFERENCE in before and self._table[REFERENCE] is before[REFERENCE]
            if alike:
                new = LatencyTable({kernel: self._table[kernel]})
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(new.to_csv().partition("\n")[2])
            else:
                self._table.write(self.path)
            self._seen = self._stamp()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else changes the file meanwhile; what others changed before is read again."""
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            stamp = self._stamp()
            if stamp is None:
                self._table = LatencyTable({})
            elif stamp != self._seen:
                self._drop_half_a_line()
                self._table = LatencyTable.read(self.path)
                self._seen = self._stamp()
            yield

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_size

    def _drop_half_a_line(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if 0 < whole < len(content):
            with self.path.open("r+b") as file:
                file.truncate(whole)


def at_one_speed(table: LatencyTable, kernel: Kernel, latency: Latency, reference_us: float) -> LatencyTable:
    """`table` with one row more, all rows at the speed of the fastest reference kernel seen so far.

    A slower reference means that this row ran slower, too (clock frequency, a busy neighbour): it is scaled down. A
    faster one means that about all rows before. Changes within the noise of the reference are left alone.
    """
    yardstick = table[REFERENCE].latency_us if REFERENCE in table else reference_us
    drift = reference_us / yardstick
    if abs(drift - 1) < DRIFT:
        drift = 1.0
    before = {row: scaled(known, min(drift, 1.0)) for row, known in table.items()} if drift < 1 else dict(table)
    known = {} if REFERENCE in table and drift >= 1 else {REFERENCE: Latency(yardstick * min(drift, 1.0))}
    return LatencyTable({**before, **known, kernel: scaled(latency, 1 / max(drift, 1.0))})


def scaled(latency: Latency, factor: float) -> Latency:
    """`latency` times `factor`, its spread too."""
    if factor == 1.0:
        return latency
    spread = None if latency.spread_us is None else latency.spread_us * factor
    return Latency(latency.latency_us * factor, spread, latency.repeats)
