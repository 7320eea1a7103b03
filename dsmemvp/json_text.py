"""JSON that others may have written: every fault in it is a ValueError of one line, and its size is bounded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsmemvp.errors import UserError

MOST = 64 << 20
"""Bytes of a JSON file, unless the caller says otherwise: parsed it takes some ten times as much memory."""


def parse_json(content: bytes | str, where: str, object_pairs_hook: Callable[[list], Any] | None = None) -> Any:
    """The value that `content` is; the hook is json.loads'. Raises UserError naming `where` if it is not JSON, not
    UTF-8, or nested deeper than Python's stack."""
    try:
        return json.loads(content, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        raise UserError(f"{where} is not usable JSON: it is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}") from None


def read_json(path: Path, most: int = MOST, object_pairs_hook: Callable[[list], Any] | None = None) -> Any:
    """The value in a file of at most `most` bytes, as parse_json gives it. Raises FileNotFoundError, OSError,
    or UserError naming the file."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file")
    if path.stat().st_size > most:
        raise UserError(f"{path} has {path.stat().st_size} bytes, at most {most} are read")
    return parse_json(path.read_bytes(), str(path), object_pairs_hook)
