"""What the documentation names is there: files, folders and modules of the repository."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
ROOMS = re.compile(r"\| (?:\d )?(?:values|files|cost|deciding|changing networks|running|showing) \|")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_of_the_repository_exist(document):
    text = document.read_text()
    named = re.findall(r"(?<![\w/])(?:tests|autocomp|docs|experiments|hw_profiles|search_spaces)/[\w./-]*\w", text)
    here = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    missing = [path for path in named if not (REPOSITORY / path).exists()]
    missing += [path for path in here if not (document.parent / path).exists()]
    assert not missing


@pytest.mark.parametrize("document", [REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "docs/architecture.md"])
def test_the_tables_of_rooms_name_modules(document):
    rows = [line for line in document.read_text().splitlines() if ROOMS.match(line)]
    assert len(rows) >= 6
    named = {name for row in rows for name in re.findall(r"`(\w+/?)`", row)} - {"ask", "tell"}
    modules = {path.name.removesuffix(".py") + "/" * path.is_dir() for path in (REPOSITORY / "autocomp").iterdir()}
    assert len(named) > 40
    assert named <= modules
