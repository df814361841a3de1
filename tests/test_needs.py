"""What CI must have fails there where it is missing; elsewhere the test is skipped, with what to install."""

import re
import sys
from pathlib import Path

import pytest
from needs import needs, needs_tool

TESTS = Path(__file__).parent


@pytest.fixture(
    params=[lambda: needs("no_such_module.below"), lambda: needs_tool("no-such-program", "no-such-package")]
)
def lacking(request):
    return request.param


def test_elsewhere_it_is_skipped(lacking, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="install"):
        lacking()


def test_in_ci_it_fails(lacking, monkeypatch):
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="install"):
        lacking()


def test_what_is_there_is_given(monkeypatch, tmp_path):
    monkeypatch.setenv("CI", "1")
    assert needs("xml.dom") is sys.modules["xml.dom"]
    program = tmp_path / "program"
    program.write_text("")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert needs_tool("program", "package") == str(program)


def test_no_test_has_its_own_way_to_be_skipped_for_want_of_a_package():
    own = re.compile(r"importorskip|skipif\(.*which\(|find_spec\(.*skip")
    found = [str(path.relative_to(TESTS)) for path in TESTS.rglob("*.py") if own.search(path.read_text())]
    assert found == [Path(__file__).name]
