"""The journal of a run: every outcome, written the moment it is known, in one SQLite file."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autocomp.errors import UserError
from autocomp.outcome import Outcome, Status
from autocomp.policy import Policy

FILE_NAME = "journal.sqlite"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS outcomes (
    id INTEGER PRIMARY KEY,
    genes TEXT NOT NULL,
    policy TEXT NOT NULL,
    status TEXT NOT NULL,
    accuracy REAL,
    size_bytes INTEGER,
    latency_ms REAL,
    latency_low_ms REAL,
    latency_high_ms REAL,
    reason TEXT NOT NULL DEFAULT '',
    seconds REAL NOT NULL DEFAULT 0,
    details TEXT NOT NULL DEFAULT '{}',
    finished_at TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class Entry:
    """One finished trial.

    latency_low_ms, latency_high_ms: the table's band. seconds: wall time of the trial. details: what else the trial
    measured, by name (simulated_accuracy, executed precision per layer, …); plain JSON values only.
    """

    id: int
    genes: tuple[int, ...]
    policy: Policy
    outcome: Outcome
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)
    finished_at: str = ""


class Journal:
    """Append-only record of a run's outcomes. Safe against `kill -9`: each entry is its own transaction."""

    def __init__(self, run: Path, *, read_only: bool = False) -> None:
        self.path = run / FILE_NAME
        if read_only and not self.path.is_file():
            raise UserError(f"{run} is not a run directory: it has no {FILE_NAME}")
        # A writer that was killed within a transaction leaves a rollback journal, which only a writer can play back.
        killed = self.path.with_name(f"{FILE_NAME}-journal").exists()
        mode = ("rw" if killed else "ro") if read_only else "rwc"
        try:
            self._db = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode={mode}", uri=True, timeout=30)
            if read_only:
                self._db.execute("PRAGMA query_only=ON")
            else:
                # One file that survives a kill and can be copied on its own: no WAL side files.
                self._db.execute("PRAGMA journal_mode=DELETE")
                self._db.executescript(_SCHEMA)
            self._db.execute("SELECT id FROM outcomes LIMIT 1")
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.path} is not a journal of autocomp: {error}") from None

    def append(self, entry: Entry) -> None:
        """Write one entry; ValueError if its id is there already."""
        o = entry.outcome
        row = (
            entry.id, json.dumps(list(entry.genes)), entry.policy.to_json(), str(o.status), o.accuracy, o.size_bytes,
            o.latency_ms, entry.latency_low_ms, entry.latency_high_ms, o.reason, entry.seconds,
            json.dumps(entry.details), entry.finished_at or datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        try:
            with self._db:
                self._db.execute(f"INSERT INTO outcomes VALUES ({','.join('?' * len(row))})", row)
        except sqlite3.IntegrityError:
            raise ValueError(f"candidate {entry.id} already has an outcome in {self.path}") from None

    def __iter__(self) -> Iterator[Entry]:
        """Entries in the order of candidate ids."""
        with closing(self._db.execute("SELECT * FROM outcomes ORDER BY id")) as cursor:
            for row in cursor.fetchall():
                (id, genes, policy, status, accuracy, size, latency, low, high, reason, seconds, details, when) = row
                yield Entry(
                    id, tuple(json.loads(genes)), Policy.from_json(policy, f"candidate {id}"),
                    Outcome(Status(status), accuracy, size, latency, reason), low, high, seconds,
                    json.loads(details), when,
                )  # fmt: skip

    def __len__(self) -> int:
        return int(self._db.execute("SELECT COUNT(*) FROM outcomes").fetchone()[0])

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
