"""What a test needs of the machine: skipped without it by hand, failed in CI, which installs all of it."""

import os
import shutil

import pytest


def needs_tool(command: str, package: str) -> None:
    """Skip the test where `command`, of the Debian package `package`, is missing; in CI, fail it."""
    if shutil.which(command, path=os.environ.get("PATH", "") + ":/usr/sbin") is None:
        reason = f"needs {command} (Debian's {package})"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
