"""Both readers meet thousands of damaged files: each is read, or refused in one line. No other error, no endless read.

Nothing is timed: a file is refused by its size before it is parsed, and a parser's work is linear in the size.
"""

from pathlib import Path

import pytest
from damage import damaged

from autocomp.errors import UserError
from autocomp.hardware.profile import HardwareProfile
from autocomp.hardware.table import LatencyTable
from autocomp.resources import data_folder

FILES_EACH = 1_200
PROFILE = (data_folder("hw_profiles") / "host_cpu.yaml").read_bytes()
TABLE = b"\n".join((data_folder("hw_profiles") / "mobile_arm.csv").read_bytes().splitlines()[:40]) + b"\n"


def read_profile(path: Path) -> None:
    profile = HardwareProfile.read(path)
    # What was accepted can be shown and hashed.
    profile.provenance_note.encode()
    profile.description.encode()
    HardwareProfile.model_validate_json(profile.model_dump_json(), strict=False)


def read_table(path: Path) -> None:
    table = LatencyTable.read(path)
    assert dict(LatencyTable.parse(table.to_csv())) == dict(table)


READERS = {"profile": (PROFILE, read_profile), "table": (TABLE, read_table)}


@pytest.mark.parametrize("kind", READERS)
def test_the_undamaged_file_is_read(kind: str, tmp_path: Path) -> None:
    content, read = READERS[kind]
    path = tmp_path / "file"
    path.write_bytes(content)
    read(path)


@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_is_read_or_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    content, read = READERS[kind]
    path = tmp_path / "file"
    refused = 0
    for seed in range(FILES_EACH):
        path.write_bytes(damaged(content, seed))
        try:
            read(path)
        except UserError as error:
            refused += 1
            said = str(error).replace(str(tmp_path), "")
            assert len(said) < 700, (seed, said)
            assert all(character.isprintable() for character in said), (seed, said)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    # Some damage does no harm (a comment, a swap of two rows); most is noticed.
    assert FILES_EACH / 2 < refused < FILES_EACH
