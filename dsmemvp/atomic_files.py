"""Files that are either whole or not there: written under another name, flushed to the disk, then renamed."""

import os
import uuid
from pathlib import Path


def replace_file(path: Path, content: bytes, shared: bool = False) -> None:
    """Write `path` so that a reader, or a machine that loses power, sees the old file or the new one. `shared`: other
    processes may write it at the same time; the last one's stays. Raises OSError."""
    partial = path.with_name(f"partial-{uuid.uuid4().hex + '-' if shared else ''}{path.name}")
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
