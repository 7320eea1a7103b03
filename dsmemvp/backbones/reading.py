"""Reading runs of elements out of safetensors files, straight into the memory where they stay.

Bytes are read by their place in the file, without mapping it: a process that reads a part of a model never has more
than that part, and a mapped file would count as its memory. If the type or the device differs, they pass through a
buffer of a few megabytes.
"""

import math
from collections.abc import Iterable
from io import FileIO
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import torch

from dsmemvp.backbones.safetensors_file import StoredTensor
from dsmemvp.dtypes import WEIGHTS
from dsmemvp.errors import UserError
from dsmemvp.progress import Progress

BUFFER = 16 << 20
"""Bytes that are read at once."""
BLOCK, BLOCKS = 2048, 4
"""Elements in a block of a sample; blocks of each tensor, the first and the last elements among them."""


def sampled(tensors: Iterable[StoredTensor], key: str) -> list[bytes]:
    """Of each a few blocks of its values as float32, which holds 16-bit ones exactly: any training changes some of
    them. Each file is opened once. Raises UserError that begins with `key` for a type that is not read, OSError."""
    tensors = list(tensors)
    for stored in tensors:
        if stored.dtype not in WEIGHTS:
            raise UserError(f"{key}: {stored.path} holds tensors of the type {stored.dtype}, which is not read")
    found: dict[int, bytes] = {}
    in_files = sorted(range(len(tensors)), key=lambda i: (tensors[i].path, tensors[i].start))
    for path, numbers in groupby(in_files, key=lambda i: tensors[i].path):
        with path.open("rb") as file:
            found |= {i: _blocks(file, tensors[i]) for i in numbers}
    return [found[i] for i in range(len(tensors))]


def _blocks(file: BinaryIO, stored: StoredTensor) -> bytes:
    kind, count = WEIGHTS[stored.dtype], math.prod(stored.shape)
    values = bytearray(min(BLOCK, count) * kind.itemsize)
    found = b""
    for i in range(BLOCKS if count else 0):
        file.seek(stored.start + max(0, count - BLOCK) * i // (BLOCKS - 1) * kind.itemsize)
        file.readinto(values)  # type: ignore[attr-defined]
        found += torch.frombuffer(values, dtype=kind).float().numpy().tobytes()
    return found


class Reader:
    """Reads and counts the bytes. Used as a context manager, by one thread."""

    def __init__(self, total: int, tell: bool):
        """`total` is the bytes that will be read; `tell`: show the progress."""
        self._progress = Progress("weights of this rank", total, "B", active=tell)
        self._path: Path | None = None
        self._file: FileIO | None = None
        self._buffer: torch.Tensor | None = None

    @property
    def count(self) -> int:
        return self._progress.done

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close(total=True)
        if self._file is not None:
            self._file.close()

    def read(self, stored: StoredTensor, first: int, into: torch.Tensor) -> None:
        """The elements of the flattened tensor from `first` on, as many as flat `into` has. Raises OSError, or
        UserError if the file has become shorter."""
        kind = WEIGHTS[stored.dtype]
        offset = stored.start + first * kind.itemsize
        if into.dtype == kind and into.device.type == "cpu":
            memory = into.view(torch.uint8)
            for start in range(0, len(memory), BUFFER):
                self._bytes(stored.path, offset + start, memory[start : start + BUFFER])
            return
        if self._buffer is None:
            self._buffer = torch.empty(BUFFER, dtype=torch.uint8, pin_memory=into.device.type == "cuda")
        for part in into.split(BUFFER // kind.itemsize):
            memory = self._buffer[: part.numel() * kind.itemsize]
            self._bytes(stored.path, offset, memory)
            part.copy_(memory.view(kind))
            offset += len(memory)

    def _bytes(self, path: Path, offset: int, into: torch.Tensor) -> None:
        file, rest = self._opened(path), memoryview(into.numpy().data)
        try:
            file.seek(offset)
            while rest:
                read = file.readinto(rest)
                if not read:
                    raise UserError(f"{path} ended while it was read; is it being written?")
                rest = rest[read:]
        except OSError as error:
            error.filename = str(path)  # which a failing read does not say
            raise
        self._progress.advance(len(into))

    def _opened(self, path: Path) -> FileIO:
        if self._file is None or path != self._path:
            if self._file is not None:
                self._file.close()
            self._path, self._file = path, FileIO(path)
        return self._file
