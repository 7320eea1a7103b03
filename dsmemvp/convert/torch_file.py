"""Tensors in files of torch's: what torch.save writes (.pth, .pt, .bin) and TorchScript archives, as which OpenAI
publishes CLIP. Nothing in them is run.

Both are zip files (archive.py) with a pickle, data.pkl (pickled.py), that says which tensor lies where in which record.
"""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dsmemvp.convert.archive import Archive, Record
from dsmemvp.convert.lazy import LazyTensor, Tensors, lazy_tensor, span
from dsmemvp.convert.pickled import MOST, Made, Object, PickleError, unpickled
from dsmemvp.errors import UserError

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
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
WRAPPERS = ("model", "state_dict")
"""Keys under which checkpoints hold their tensors."""
MOST_DIMENSIONS = 64
MOST_SHARED = 4
"""A file's tensors may share storages, and together be so many times the file: more claims what it does not hold."""
DEEPEST, MOST_ATTRIBUTES = 100, 1_000_000
"""Modules in modules, and attributes, of a TorchScript archive."""
LONGEST_NAME = 1000


def _first(value: Any = None, *_: Any) -> Any:
    return value


def _empty() -> dict[Any, Any]:
    return {}


KNOWN = {
    "argparse.Namespace": Made(Object),
    "collections.OrderedDict": Made(_empty),
    "collections.Counter": Made(_first),
    "torch._utils._rebuild_parameter": Made(_first),
    "torch.Size": Made(_first),
    "torch.device": Made(_first),
    "_codecs.encode": Made(_first),
}
"""What may be named beside tensors and storages, and what it becomes; nothing is copied."""


class TorchFile:
    def __init__(self, path: Path):
        """Raises UserError for what is no such file, is damaged or names other things than tensors, OSError."""
        self._path = path
        self._archive = Archive(path)
        records = self._archive.records
        pickles = [name for name in records if name.split("/", 1)[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise UserError(f"{path} cannot be read as weights: it holds {len(pickles)} records named data.pkl")
        self._folder = pickles[0].removesuffix("data.pkl")
        self._is_script = f"{self._folder}constants.pkl" in records
        order = records.get(f"{self._folder}byteorder")
        if order and (order.size != 6 or self._archive.read(order) != b"little"):
            raise UserError(f"{path} was written on a machine of another byte order; save it again on this one")
        try:
            record = records[pickles[0]]
            if record.size > MOST:
                raise PickleError(f"its list of tensors has {record.size} bytes, at most {MOST} are read")
            self._content = unpickled(bytes(self._archive.read(record)), self._named, self._stored)
        except PickleError as error:
            raise UserError(f"{path} is refused: {error}") from None

    @property
    def tensors(self) -> Tensors:
        """By their names: dotted in a TorchScript archive; of a checkpoint, those of its state dictionary. Raises
        ValueError."""
        found = dict(_attributes(self._content, self._path)) if self._is_script else self._named_tensors()
        claimed = sum(tensor.nbytes for tensor in found.values())
        whole = self._path.stat().st_size
        if claimed > MOST_SHARED * whole:
            raise UserError(f"{self._path} claims tensors of {claimed} bytes, and has {whole}")
        return found

    @property
    def command_line(self) -> dict[str, Any]:
        """The options that a published checkpoint was trained with; empty if it says nothing."""
        options = self._content.get("args") if isinstance(self._content, dict) else None
        return options.attributes if isinstance(options, Object) else {}

    def _named_tensors(self) -> Tensors:
        content = self._content
        for wrapper in WRAPPERS:
            if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
                content = content[wrapper]
        if not isinstance(content, dict):
            raise UserError(f"{self._path} holds a {type(content).__name__} instead of named tensors")
        return {str(name): tensor for name, tensor in content.items() if isinstance(tensor, LazyTensor)}

    def _named(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if full == "torch._utils._rebuild_tensor_v2":
            return Made(self._tensor)
        if full in KNOWN:
            return KNOWN[full]
        if self._is_script and module.split(".")[0] == "__torch__":
            return Made(Object)
        if self._is_script and module == "torch.jit._pickle":  # lists of numbers and the like
            return Made(_first)
        raise PickleError(f"it holds more than tensors, {full[:200]!r}")

    def _stored(self, pid: Any) -> tuple[Record, torch.dtype]:
        kind, dtype, key, _, count, *_ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str or type(count) is not int:
            raise PickleError("it refers to what is no storage")
        record = self._archive.records.get(f"{self._folder}data/{key}")
        if record is None or record.size != count * dtype.itemsize or not record.plain:
            raise PickleError(f"a storage of {count} elements of {dtype} is not where it says")
        return record, dtype

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> LazyTensor:
        """Raises PickleError for a tensor that is not within its storage."""
        record, dtype = storage
        stored = record.size // dtype.itemsize
        numbers = (offset, *shape, *stride)
        if len(shape) != len(stride) or len(shape) > MOST_DIMENSIONS or not all(type(n) is int for n in numbers):
            raise PickleError("a tensor's shape is not of whole numbers")
        # a tensor may be a part of its storage or transposed, and not larger, as an expanded one is
        fits = min(numbers) >= 0 and math.prod(shape) <= stored and offset + span(shape, stride) <= stored
        if not fits:
            raise PickleError(f"a tensor of shape {shape} is not within its storage of {stored} elements"[:200])
        read = partial(self._archive.read, record)
        return lazy_tensor(read, offset * dtype.itemsize, dtype, shape, stride)


def _attributes(root: Any, path: Path) -> Iterator[tuple[str, LazyTensor]]:
    """Tensors of modules in modules, by dotted names. Raises UserError."""
    waiting, seen = [(root, "", 0)], 0
    while waiting:
        value, name, depth = waiting.pop()
        seen += 1
        if depth > DEEPEST or seen + len(waiting) > MOST_ATTRIBUTES or len(name) > LONGEST_NAME:
            raise UserError(f"{path} holds modules that are nested without an end")
        if isinstance(value, LazyTensor):
            yield name, value
        elif isinstance(value, Object):
            children = [(child, f"{name}.{key}" if name else key, depth + 1) for key, child in value.attributes.items()]
            waiting += children[::-1]
