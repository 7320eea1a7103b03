"""List the tensors of a file: safetensors, torch's .pth and .pt, TorchScript archives. Nothing in a file is run, and no
tensor is read before it is asked for."""

from functools import partial
from pathlib import Path
from typing import Any

from dsmemvp.backbones.safetensors_file import read_header
from dsmemvp.convert.lazy import Tensors, lazy_tensor
from dsmemvp.convert.torch_file import TorchFile
from dsmemvp.dtypes import STORED
from dsmemvp.errors import UserError


def tensors_in(path: Path) -> Tensors:
    """All tensors of a file by their names in it. Raises UserError."""
    return open_weights(path)[0]


def open_weights(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """All tensors of a file, and the options of its command line if it is a published checkpoint that has them.
    Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    if path.suffix == ".safetensors":
        return _safetensors(path), {}
    file = TorchFile(path)
    return file.tensors, file.command_line


def _safetensors(path: Path) -> Tensors:
    try:
        return {
            name: lazy_tensor(partial(_bytes, path), stored.start, STORED[stored.dtype], stored.shape)
            for name, stored in read_header(path, "source").items()
        }
    except LookupError as error:
        raise UserError(f"{path} holds tensors of the type {error.args[0]}, which is not read") from None


def _bytes(path: Path, start: int, size: int) -> bytearray:
    content = bytearray(size)
    with path.open("rb") as file:
        file.seek(start)
        if file.readinto(content) != size:
            raise UserError(f"{path} ends within its tensors; get the file again")
    return content
