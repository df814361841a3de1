"""What every test shares."""

import pytest
from exporter import make_registry_once


@pytest.fixture(scope="session", autouse=True)
def _exporters_registry_is_made_once() -> None:
    make_registry_once()
