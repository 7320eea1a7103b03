"""What tensors a file holds and where: safetensors, torch's .pth and .pt, TorchScript archives. Nothing in a file is
run, and no tensor is read before it is asked for.

A .pth file is read in torch's weights-only mode, which makes tensors and plain values and refuses everything else.
"""

import argparse
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from dsmemvp.convert.lazy import Tensors, in_file
from dsmemvp.convert.torchscript import is_torchscript, torchscript_tensors
from dsmemvp.models.safetensors_file import read_header

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names of types."""


def tensors_in(path: Path) -> Tensors:
    """All tensors of a file by their names in it. Raises FileNotFoundError or ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} cannot be read as weights: it is cut off, or not a file that torch (1.6 or later) has written"
        )
    return torchscript_tensors(path) if is_torchscript(path) else _torch(path)


def _safetensors(path: Path) -> Tensors:
    try:
        return {
            name: in_file(path, stored.start, DTYPES[stored.dtype], stored.shape)
            for name, stored in read_header(path, "source").items()
        }
    except LookupError as error:
        raise ValueError(f"{path} holds tensors of the type {error.args[0]}, which is not read") from None


def command_line(path: Path) -> dict[str, Any]:
    """What a published checkpoint says of how it was trained: the options of its command line; empty where it says
    nothing. Raises ValueError."""
    given = {} if path.suffix == ".safetensors" or is_torchscript(path) else _content(path)
    options = given.get("args") if isinstance(given, dict) else None
    return vars(options) if isinstance(options, argparse.Namespace) else {}


def _content(path: Path) -> Any:
    try:
        # published checkpoints hold their command line beside the tensors
        with torch.serialization.safe_globals([argparse.Namespace]):
            # on the meta device nothing but the list of tensors is read; each storage knows where in the file it is
            return torch.load(path, map_location="meta", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and is refused ({_first_line(error)})") from None
    except (RuntimeError, AttributeError, LookupError, TypeError, EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as weights ({_first_line(error)})") from None


def _torch(path: Path) -> Tensors:
    content = _content(path)
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} instead of named tensors")
    return {str(name): _where(path, t) for name, t in content.items() if isinstance(t, torch.Tensor)}


def _where(path: Path, tensor: torch.Tensor):
    storage: Any = tensor.untyped_storage()
    start = storage._checkpoint_offset + tensor.storage_offset() * tensor.element_size()
    return in_file(path, start, tensor.dtype, tensor.shape, tensor.stride())


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else repr(error)
