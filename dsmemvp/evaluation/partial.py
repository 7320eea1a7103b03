"""Answers of an evaluation that is under way, so that an interrupted one resumes.

A file of JSON lines: the first one says what the answers belong to, each other one is a whole batch. It is written by
the first rank, as the batches come.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from dsmemvp.atomic_files import replace_file
from dsmemvp.json_text import parse_json


class Partial:
    def __init__(self, path: Path, belongs: dict[str, Any]):
        """Take up what is there of the same evaluation, throw away what is of another, and half a line that a killed
        run has left. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        head = json.dumps(belongs, sort_keys=True)
        self.lines = _lines_of(path, head)
        """One for each batch that was there already."""
        replace_file(path, "".join(f"{line}\n" for line in [head, *self.lines]).encode())
        self._file = path.open("ab", buffering=0)

    def add(self, lines: list[str]) -> None:
        """Raises OSError; what it leaves then is as good as what a killed run leaves."""
        rest = "".join(f"{line}\n" for line in lines).encode()
        while rest:
            rest = rest[self._file.write(rest) :]

    def remove(self) -> None:
        """Once the whole evaluation is written elsewhere."""
        self._file.close()
        self._path.unlink(missing_ok=True)
        with suppress(OSError):  # another evaluation's answers are there, or it has removed the folder
            self._path.parent.rmdir()


def _lines_of(path: Path, head: str) -> list[str]:
    """The whole lines after a first one that is `head`."""
    if not path.exists():
        return []
    lines = path.read_bytes().decode("utf-8", "replace").split("\n")[:-1]  # what follows the last end of line is half
    if not lines or lines[0] != head:
        return []
    return [line for line in lines[1:] if _is_batch(line)]


def _is_batch(line: str) -> bool:
    try:
        return isinstance(parse_json(line, "a line")["batch"], int)
    except (ValueError, LookupError, TypeError):
        return False
