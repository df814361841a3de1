"""A module imports only from rooms above its own; deciding needs no torch. The levels stand in pyproject.toml."""

import pkgutil
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def test_import_levels_are_kept():
    lint = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([lint, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 kept, 0 broken" in result.stdout


def test_every_module_is_in_a_level():
    """One that is in none may import what it likes, and be imported by all."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    (levels,) = (c for c in settings["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    listed = Counter(name for level in levels["layers"] for name in re.findall(r"\w+", level))
    there = {module.name for module in pkgutil.iter_modules([str(REPOSITORY / "autocomp")])}
    assert set(listed) == there
    assert set(listed.values()) == {1}
    assert levels["exhaustive"]  # then lint-imports says so too, by the name of the module
