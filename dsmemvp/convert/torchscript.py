"""Tensors of a TorchScript archive (OpenAI publishes CLIP as such) without its code.

The archive is a zip file: code in code/, the module's attributes as a pickle in data.pkl, the storages in data/, not
compressed. Torch refuses it in weights-only mode and its own loader compiles the code, so data.pkl is read here with
an unpickler that knows a tensor's place and attributes, and nothing else.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from dsmemvp.convert.lazy import LazyTensor, Tensors, in_file

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
LOCAL_HEADER = 30
"""Bytes of a zip entry's own header, before its name (PKWARE's APPNOTE, 4.3.7)."""


def is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/", 1)[-1] == "constants.pkl" for name in archive.namelist())


def torchscript_tensors(path: Path) -> Tensors:
    """Parameters and buffers by their dotted names. Raises ValueError."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            pickled = next(name for name in archive.namelist() if name.split("/", 1)[-1] == "data.pkl")
            starts = {
                info.filename.removeprefix(pickled.removesuffix("data.pkl") + "data/"): _start(file, info)
                for info in archive.infolist()
                if info.compress_type == zipfile.ZIP_STORED
            }
            with archive.open(pickled) as stream:
                root = _Attributes(stream, path, starts).load()
    except (zipfile.BadZipFile, StopIteration, pickle.UnpicklingError, LookupError, TypeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a TorchScript archive ({error})") from None
    found: Tensors = {}
    _collect(root, "", found)
    return found


def _start(file: Any, info: zipfile.ZipInfo) -> int:
    """Where an entry's content begins: after its local header, whose name and extra field may be of other lengths than
    the directory's."""
    file.seek(info.header_offset)
    header = file.read(LOCAL_HEADER)
    return info.header_offset + LOCAL_HEADER + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))


class _Module:
    """Stands for any class of the archive's code; unpickling gives it attributes."""


class _Attributes(pickle.Unpickler):
    def __init__(self, stream: Any, path: Path, starts: dict[str, int]):
        super().__init__(stream)
        self._path, self._starts = path, starts

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":  # lists of numbers and the like, restored as they are
            return _as_it_is
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, str]:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it refers to {kind!r}")
        return dtype, key

    def _tensor(self, storage: tuple[torch.dtype, str], offset: int, shape, stride, *_: Any) -> LazyTensor:
        dtype, key = storage
        return in_file(self._path, self._starts[key] + offset * dtype.itemsize, dtype, shape, stride)


def _as_it_is(value: Any, *_: Any) -> Any:
    return value


def _collect(value: Any, name: str, into: Tensors) -> None:
    if isinstance(value, LazyTensor):
        into[name] = value
    elif isinstance(value, _Module):
        for attribute, child in vars(value).items():
            _collect(child, f"{name}.{attribute}" if name else attribute, into)
