"""What the frozen base is known by, so that trained tensors are never put on another one.

All tensors' names, types and shapes count, and of each a few blocks of bytes: any training changes every one of them,
and a 13B model is known after reading some megabytes. How the tensors are spread over files does not count.
"""

import hashlib
import json
from pathlib import Path

from dsmemvp.models.safetensors_file import read_header
from dsmemvp.recipe import Recipe

BLOCK, BLOCKS = 4096, 4
"""Bytes in a block; blocks of each tensor, the first and the last among them."""


def base_fingerprint(recipe: Recipe) -> dict[str, str]:
    """Digests by the recipe's keys; the vision tower counts where the method looks at images. Raises FileNotFoundError
    or ValueError for folders that cannot be read."""
    model = recipe.model
    found = {"model.language_model": _folder(model.language_model, "model.language_model")}
    if recipe.method.name != "none":
        found["model.vision_tower"] = _folder(model.vision_tower, "model.vision_tower")
    tokenizer = Path(model.tokenizer)
    if not tokenizer.is_file():
        raise FileNotFoundError(f"model.tokenizer: {tokenizer} does not exist")
    return {**found, "model.tokenizer": hashlib.sha256(tokenizer.read_bytes()).hexdigest()}


def _folder(folder: str, key: str) -> str:
    files = sorted(Path(folder).glob("*.safetensors")) if folder else []
    if not files:
        raise FileNotFoundError(f"{key}: {folder or 'no folder'} holds no safetensors files")
    tensors: dict[str, str] = {}
    for path in files:
        tensors |= _tensors(path, key)
    return hashlib.sha256(json.dumps(sorted(tensors.items())).encode()).hexdigest()


def _tensors(path: Path, key: str) -> dict[str, str]:
    """name -> digest, for one file."""
    digests = {}
    tensors = read_header(path, key)
    with path.open("rb") as file:
        for name, tensor in tensors.items():
            size = tensor.stop - tensor.start
            digest = hashlib.sha256(json.dumps([tensor.dtype, tensor.shape]).encode())
            for i in range(BLOCKS):
                file.seek(tensor.start + max(0, size - BLOCK) * i // (BLOCKS - 1))
                digest.update(file.read(min(BLOCK, size)))
            digests[name] = digest.hexdigest()
    return digests
