"""What the frozen base is known by, so that trained tensors are never put on another one.

All tensors' names, types and shapes count, and of each a few blocks of bytes: any training changes every one of them,
and a 13B model is known after reading some megabytes. How the tensors are spread over files does not count.
"""

import hashlib
import json
from pathlib import Path

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
    """name -> digest, for one file: 8 bytes of length, a JSON header of that length, the tensors (safetensors'
    README)."""
    digests = {}
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            end = 8 + size + max((about["data_offsets"][1] for about in header.values()), default=0)
            if end != path.stat().st_size:
                raise ValueError(f"its tensors end at byte {end}, the file at {path.stat().st_size}")
            for name, about in header.items():
                start, stop = about["data_offsets"]
                digest = hashlib.sha256(json.dumps([about["dtype"], about["shape"]]).encode())
                for i in range(BLOCKS):
                    file.seek(8 + size + start + max(0, stop - start - BLOCK) * i // (BLOCKS - 1))
                    digest.update(file.read(min(BLOCK, stop - start)))
                digests[name] = digest.hexdigest()
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{key}: {path} is not a readable safetensors file ({error})") from None
    return digests
