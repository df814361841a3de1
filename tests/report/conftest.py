import pytest
from fabricated import fabricate


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A made-up run. Tests read it; whoever writes into it copies it first."""
    return fabricate(tmp_path_factory.mktemp("runs") / "run")
