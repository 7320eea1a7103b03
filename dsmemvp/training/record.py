"""A run's files of JSON lines, which may have grown for months: wound back and gone through without holding them.

Every line of ours begins with {"step": N, and steps do not fall from line to line, so a place is found by the heads of
lines, from the end backwards. What others have left in such a file stays if it stands before the place, and is passed
over in reading.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsmemvp.errors import UserError

BLOCK = 1 << 18
"""Bytes looked through at a time."""
HEAD = re.compile(rb'\{"step": (\d{1,18})[,}]')
HEAD_BYTES = 32
LONGEST = 16 << 20
"""Bytes of a line of ours, at most."""


def wind_back(path: Path, last_step: int) -> None:
    """Remove the lines of later steps than `last_step` from a file's end, and half a line that a killed run has left;
    flush. Only what goes is read. Raises OSError, or UserError if it is no file of lines at all."""
    if not path.exists():
        return
    if not path.is_file():
        raise UserError(f"{path} is not a regular file; the run writes its record there, move it away")
    with path.open("r+b", buffering=0) as file:
        size = end = file.seek(0, os.SEEK_END)
        for start, head in _lines_backwards(file.fileno(), size):
            if head is None:
                end = start
            elif found := HEAD.match(head):
                if int(found[1]) <= last_step:
                    break
                end = start
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, one at a time; lines that are not ours are passed over."""
    for line in _own_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        yield row


def count_rows(path: Path) -> int:
    """How many lines of ours there are; they are not taken apart."""
    return sum(1 for _ in _own_lines(path))


def _own_lines(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb", buffering=BLOCK) as file:
            while line := file.readline(LONGEST):
                if line.endswith(b"}\n") and HEAD.match(line):
                    yield line


def _lines_backwards(descriptor: int, size: int) -> Iterator[tuple[int, bytes | None]]:
    """(where it begins, its head) of each line, the last one first; of half a line at the end, None for the head."""
    line_end, block_end = size, size
    while block_end:
        block_start = max(0, block_end - BLOCK)
        block = os.pread(descriptor, block_end - block_start + HEAD_BYTES, block_start)
        at = block_end - block_start
        while at >= 0:
            # an end of line before `at`, or the beginning of the file, begins a line
            at = block.rfind(b"\n", 0, at)
            start = block_start + at + 1
            if (at >= 0 or block_start == 0) and start < line_end:
                half = line_end == size and os.pread(descriptor, 1, size - 1) != b"\n"
                yield start, None if half else block[at + 1 : at + 1 + HEAD_BYTES]
                line_end = start
        block_end = block_start
