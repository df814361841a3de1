"""What a test needs of the machine that it runs on. Where that is missing the test is skipped; in CI it fails."""

import importlib
import os
import shutil
from types import ModuleType
from typing import NoReturn

import pytest


def needs(module: str) -> ModuleType:
    """The module, imported. At the top of a file it stands for all tests in it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing(f"needs the package of {module}: pip install -e '.[dev,imagenet,npu]' ({error})")


def needs_tool(name: str, package: str) -> str:
    """Path of a program. package: Debian's, for whoever lacks it."""
    # Debian keeps servers out of the PATH of those who are not root.
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    return path if path is not None else missing(f"needs {name}: apt-get install {package}")


def missing(reason: str) -> NoReturn:
    """Skip what is running, or fail it where CI promises (`CI` in the environment) that nothing is missing."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; .ci/run has to install it", pytrace=False)
    pytest.skip(reason, allow_module_level=True)
