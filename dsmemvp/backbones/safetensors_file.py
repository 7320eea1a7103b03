"""What a folder of safetensors files holds: its tensors' names, types, shapes and places in the files.

A file is 8 bytes of length, a JSON header of that length, and the tensors without gaps (safetensors' README). Only
headers are read and made here, and what does not add up is refused: a truncated file is found before anything is
loaded.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from dsmemvp.dtypes import STORED_AS
from dsmemvp.errors import UserError
from dsmemvp.json_text import parse_json, read_json

INDEX = "model.safetensors.index.json"
LONGEST_HEADER = 16 << 20
"""Bytes, about 100 for a tensor. Parsed it takes some thirty times as much memory at worst."""
MOST_DIMENSIONS, MOST_ELEMENTS = 64, 1 << 62
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64}
BITS |= {"F16": 16, "BF16": 16, "F32": 32, "F64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
"""Per element. Types that are not named here (newer ones) are not measured."""


@dataclass(frozen=True)
class StoredTensor:
    path: Path
    dtype: str
    """As safetensors names it: "BF16", "F32", ..."""
    shape: tuple[int, ...]
    start: int
    stop: int
    """Bytes of the file: [start, stop)."""


def read_header(path: Path, key: str) -> dict[str, StoredTensor]:
    """name -> where it is, in the header's order. Raises UserError that begins with `key` and names the file."""
    try:
        with _opened(path) as file:
            whole = path.stat().st_size
            header, size = _header(file, whole)
        tensors = {
            name: _stored(path, name, about, 8 + size) for name, about in header.items() if name != "__metadata__"
        }
        end = 8 + size
        for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
            if tensor.start != end:
                raise UserError(f"{name} begins at byte {tensor.start}, the one before it ends at {end}")
            end = tensor.stop
        if end != whole:
            raise UserError(f"its tensors end at byte {end}, the file at {whole}")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{key}: {path} is not a readable safetensors file ({error})") from None
    return tensors


def read_metadata(path: Path, key: str) -> dict[str, str]:
    """What a file says of itself beside its tensors. Raises as `read_header`."""
    try:
        with _opened(path) as file:
            about = _header(file, path.stat().st_size)[0].get("__metadata__", {})
        if not isinstance(about, dict) or not all(isinstance(text, str) for text in about.values()):
            raise UserError("its __metadata__ is not of texts")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{key}: {path} is not a readable safetensors file ({error})") from None
    return about


def make_header(tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """What a file begins with that holds tensors of these names, types and shapes in this order."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": STORED_AS[dtype], "shape": list(shape), "data_offsets": [start, end]}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)  # tensors begin at a multiple of 8, as safetensors itself does it
    return len(content).to_bytes(8, "little") + content


def _opened(path: Path) -> BinaryIO:
    if path.exists() and not path.is_file():
        raise UserError("it is not a regular file")
    return path.open("rb")


def _header(file: BinaryIO, whole: int) -> tuple[dict[str, Any], int]:
    """The header of a file of `whole` bytes, and its length. Raises UserError."""
    size = int.from_bytes(file.read(8), "little")
    if size > whole - 8:
        raise UserError("its header is longer than the file")
    if size > LONGEST_HEADER:
        raise UserError(f"its header has {size} bytes, at most {LONGEST_HEADER} are read")
    header = parse_json(file.read(size), "its header", _without_repetition)
    if not isinstance(header, dict):
        raise UserError("its header is not an object")
    return header, size


def folder_tensors(folder: Path, key: str) -> dict[str, StoredTensor]:
    """All tensors of model.safetensors or, if there is none, of the files that the folder's index names, as
    transformers takes them. Raises UserError that begins with `key`."""
    whole = folder / "model.safetensors"
    if whole.is_file():
        return read_header(whole, key)
    if not (folder / INDEX).is_file():
        has_bin_files = any(folder.glob("pytorch_model*.bin"))
        remedy = f"; its pytorch_model files become safetensors with: dsmemvp convert {folder} --out FOLDER"
        raise UserError(f"{key}: {folder} has neither model.safetensors nor {INDEX}{remedy if has_bin_files else ''}")
    files = _index(folder / INDEX, key)
    absent = sorted({name for name in files.values() if not (folder / name).is_file()})
    if absent:
        raise UserError(
            f"{key}: {some([str(folder / name) for name in absent])} named in {INDEX} but not there;"
            " download the folder again"
        )
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(files.values())):
        tensors |= read_header(folder / file, key)
    wrong = sorted(name for name, file in files.items() if name not in tensors or tensors[name].path != folder / file)
    if wrong:
        raise UserError(f"{key}: {folder / INDEX} does not fit its files; not where it says: {some(wrong)}")
    return tensors


def some(names: list[str]) -> str:
    """The first of them, for messages."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"


def _index(path: Path, key: str) -> dict[str, str]:
    try:
        files = read_json(path)["weight_map"]
        if not all(isinstance(name, str) and name and Path(name).name == name for name in files.values()):
            raise UserError("its weight_map names something else than files beside it")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{key}: {path} is not a readable index ({error})") from None
    return files


def _stored(path: Path, name: str, about: dict[str, Any], base: int) -> StoredTensor:
    (start, stop), shape = about["data_offsets"], tuple(about["shape"])
    numbers = (start, stop, *shape)
    if len(shape) > MOST_DIMENSIONS or not all(type(n) is int and 0 <= n <= MOST_ELEMENTS for n in numbers):
        raise UserError(f"the shape or the place of {name} is not of whole numbers")
    if not isinstance(about["dtype"], str):
        raise UserError(f"the type of {name} is not a text")
    bits = BITS.get(about["dtype"])
    if bits and math.prod(shape) * bits != 8 * (stop - start):
        raise UserError(f"{name}, {about['dtype']} {list(shape)}, has {stop - start} bytes")
    return StoredTensor(path, about["dtype"], shape, base + start, base + stop)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UserError("a name stands in its header twice")
    return found
