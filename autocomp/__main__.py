"""`python -m autocomp`."""

from autocomp.cli import run

if __name__ == "__main__":
    run()
