"""GGUF files (llama.cpp's): what they say of a model, and their tensors, dequantised when they are read.

Layout (ggml's docs/gguf.md, versions 2 and 3, little-endian): magic, version, number of tensors, number of keys; keys
with typed values; of every tensor its name, shape (fastest dimension first), type and place; then the tensors. It is
read here within its bounds, so that a damaged file is an error and never a long loop; the package `gguf` knows the
block formats.
"""

import math
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsmemvp.convert.lazy import LazyTensor, Tensors, lazy_tensor
from dsmemvp.errors import UserError

MAGIC = b"GGUF"
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Formats of struct by the number of a value's type."""
TEXT, ARRAY = 8, 9
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
ALIGNMENT = 32
MOST_DIMENSIONS = 4
MOST_HEADER = 256 << 20
"""Bytes before the tensors; a vocabulary of 256,000 pieces with its merges takes 10 million."""


class Gguf:
    def __init__(self, path: Path):
        """Raises UserError for what is no whole GGUF file of types that are read, OSError."""
        _package()
        self.path = path
        with path.open("rb") as file:
            header = _Header(file.read(MOST_HEADER), path)
        if header.take(len(MAGIC)) != MAGIC:
            raise UserError(f"{path} is not a GGUF file")
        version = header.number("<I")
        if version not in (2, 3):
            raise UserError(f"{path} is of GGUF's version {version}; 2 and 3 are read, little-endian")
        tensors, keys = header.number("<Q"), header.number("<Q")
        self.settings: dict[str, Any] = {}
        for _ in range(keys):
            name = header.text()
            self.settings[name] = header.value(header.number("<I"))
        listed = [_listed(header) for _ in range(tensors)]
        alignment = self.settings.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= MOST_HEADER:
            raise UserError(f"{path} is damaged: an alignment of {alignment!r:.40}")
        start, end = -(-header.at // alignment) * alignment, path.stat().st_size
        self.tensors: Tensors = {}
        """Of a block format as float32, all others as they are stored."""
        for name, shape, number, offset in listed:
            if name in self.tensors:
                raise UserError(f"{path} is damaged: {name} stands in it twice")
            self.tensors[name] = self._tensor(name, shape, number, start + offset, end)

    def _tensor(self, name: str, shape: tuple[int, ...], number: int, start: int, end: int) -> LazyTensor:
        gguf = _package()
        try:
            kind = gguf.GGMLQuantizationType(number)
            block, size = gguf.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise UserError(f"{self.path}: {name} is of a type that is not read (number {number})") from None
        if shape[-1] % block:
            raise UserError(f"{self.path} is damaged: {name} of shape {shape} is no whole number of {kind.name} blocks")
        size *= math.prod(shape) // block
        if start + size > end:
            raise UserError(f"{self.path} ends within its tensors ({name}); get the file again")
        if kind.name in PLAIN:
            return lazy_tensor(self._read, start, PLAIN[kind.name], shape)
        return LazyTensor(shape, torch.float32, partial(self._dequantised, name, kind, shape, start, size))

    def _read(self, start: int, size: int) -> bytearray:
        content = bytearray(size)
        with self.path.open("rb") as file:
            file.seek(start)
            if file.readinto(content) != size:
                raise UserError(f"{self.path} ends within its tensors; get the file again")
        return content

    def _dequantised(self, name: str, kind: Any, shape: tuple[int, ...], start: int, size: int) -> torch.Tensor:
        rows = np.frombuffer(self._read(start, size), dtype=np.uint8).reshape(math.prod(shape[:-1]), -1)
        try:
            values = _package().dequantize(rows, kind)
        except NotImplementedError:
            raise UserError(f"{self.path}: {name} is of the type {kind.name}, which is not read") from None
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).view(shape)


def _package() -> Any:
    """Raises UserError if it is not installed."""
    try:
        import gguf
    except ModuleNotFoundError:
        raise UserError("source: a GGUF file needs the package gguf; pip install gguf") from None
    return gguf


class _Header:
    """The bytes before the tensors, read from front to end. All raises UserError where they end too early."""

    def __init__(self, content: bytes, path: Path):
        self._content, self._path, self.at = content, path, 0

    def take(self, size: int) -> bytes:
        if size > len(self._content) - self.at:
            raise UserError(f"{self._path} is cut off or damaged: its header ends too early; get the file again")
        self.at += size
        return self._content[self.at - size : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        content = self.take(self.number("<Q"))
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{self._path} is damaged: a text in its header is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            inner, count = self.number("<I"), self.number("<Q")
            if inner == TEXT:
                return [self.text() for _ in range(count)]
            form = self._form(inner)
            content = self.take(count * struct.calcsize(form))
            return [number for (number,) in struct.iter_unpack(form, content)]
        return self.number(self._form(kind))

    def _form(self, kind: int) -> str:
        if kind not in SCALARS:
            raise UserError(f"{self._path} is damaged: its header has a value of the unknown type {kind}")
        return SCALARS[kind]


def _listed(header: _Header) -> tuple[str, tuple[int, ...], int, int]:
    """(name, shape, number of the type, byte from the first tensor's on)"""
    name, dimensions = header.text(), header.number("<I")
    if not 0 < dimensions <= MOST_DIMENSIONS:
        raise UserError(f"{header._path} is damaged: {name!r:.60} has {dimensions} dimensions")
    shape = tuple(header.number("<Q") for _ in range(dimensions))[::-1]
    return name, shape, header.number("<I"), header.number("<Q")
