"""Files that are there whole or not at all."""

from pathlib import Path


def write_whole(path: Path, data: bytes) -> int:
    """Write `data` to `path`; returns its size in bytes. What was at `path` stays if it cannot be written whole."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(path)
    return path.stat().st_size
