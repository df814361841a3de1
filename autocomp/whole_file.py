"""Files that are there whole or not at all."""

from pathlib import Path


def write_whole(path: Path, content: bytes) -> int:
    """Write a file; returns its size in bytes. What was at `path` stays if it cannot be written whole."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
    return path.stat().st_size
