"""The journal: what is written is read back, also after the writer was killed."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from autocomp.errors import UserError
from autocomp.journal import FILE_NAME, Entry, Journal
from autocomp.outcome import Outcome, Status
from autocomp.policy import INT8, LayerPolicy, Policy

ENTRIES = [
    Entry(
        0, (1, 2), Policy({"conv": INT8}, {"g": 8}), Outcome(Status.COMPLETE, 0.1 + 0.2, 1234, 1 / 3), 0.3, 0.4, 1.5,
        {"executed": {"conv": "int8"}}, "2026-11-24T00:00:00+00:00",
    ),
    Entry(
        1, (0, 0), Policy({"conv": LayerPolicy(2, "float", 0.9)}), Outcome(Status.INFEASIBLE, None, 9, 9.0, "too large")
    ),
    Entry(2, (0, 1), Policy(), Outcome(Status.FAILED, reason="Überlauf\nin conv1"), finished_at="then"),
]  # fmt: skip


def test_round_trip_in_order_of_ids(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for entry in reversed(ENTRIES):
            journal.append(entry)
    with Journal(tmp_path, read_only=True) as journal:
        read = list(journal)
        assert len(journal) == 3
    assert read[0] == ENTRIES[0]
    assert read[2] == ENTRIES[2]
    assert read[1].outcome == ENTRIES[1].outcome
    assert read[1].policy == ENTRIES[1].policy
    assert read[1].finished_at


def test_an_id_is_written_once(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append(ENTRIES[0])
        with pytest.raises(ValueError, match="candidate 0 already has an outcome"):
            journal.append(ENTRIES[0])
        assert len(journal) == 1


def test_what_is_no_journal_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        Journal(tmp_path, read_only=True)
    (tmp_path / FILE_NAME).write_bytes(b"not a database at all" * 100)
    for read_only in (True, False):
        with pytest.raises(UserError, match="not a journal"):
            Journal(tmp_path, read_only=read_only)


# Dies by SIGKILL within a transaction, with the pages of the second entry already in the file: a cache of one page
# spills at once. That is the worst moment: the file is inconsistent until its rollback journal was played back.
WRITER = """
import os, signal, sys
from pathlib import Path
from autocomp.journal import Entry, Journal
from autocomp.outcome import Outcome, Status
from autocomp.policy import Policy
journal = Journal(Path(sys.argv[1]))
journal.append(Entry(0, (1,), Policy(), Outcome(Status.FAILED, reason="first")))
if sys.argv[2] == "within":
    journal._db.execute("PRAGMA cache_size=1")
    journal._db.execute("BEGIN")
    for id in range(1, 40):
        row = (id, "[1]", Policy().to_json(), "failed", None, None, None, None, None, "x" * 5000, 0, "{}", "then")
        journal._db.execute(f"INSERT INTO outcomes VALUES ({','.join('?' * len(row))})", row)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["between", "within"])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_killed_writer_leaves_what_it_had_finished(tmp_path: Path, moment: str, read_only: bool) -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path), moment], check=False)
    assert done.returncode == -9
    assert (tmp_path / f"{FILE_NAME}-journal").exists() == (moment == "within")
    with Journal(tmp_path, read_only=read_only) as journal:
        assert [entry.outcome.reason for entry in journal] == ["first"]
    with Journal(tmp_path) as journal:
        journal.append(Entry(1, (0,), Policy(), Outcome(Status.FAILED, reason="second")))
        assert len(journal) == 2
