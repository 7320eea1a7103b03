"""Files that are either whole or not there: written under another name, flushed to the disk, then renamed."""

import os
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write `path` so that a reader, or a machine that loses power, sees the old file or the new one. Raises
    OSError."""
    partial = path.with_name(f"partial-{path.name}")
    try:
        partial.write_bytes(content)
        flush(partial)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
