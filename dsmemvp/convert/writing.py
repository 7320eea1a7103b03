"""Hugging Face folders, written one tensor at a time: safetensors files of a given size, their index, config.json.

All is written in OUT/partial-conversion and moved when it is whole, config.json last: a conversion that was cut off
leaves nothing that looks like a model, and the same command begins it again.
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from transformers import PretrainedConfig

from dsmemvp.atomic_files import flush
from dsmemvp.backbones.safetensors_file import INDEX, make_header
from dsmemvp.convert.lazy import Tensors
from dsmemvp.errors import UserError
from dsmemvp.json_text import read_json
from dsmemvp.progress import Progress

PARTIAL = "partial-conversion"


def write_model(
    out: Path,
    tensors: Tensors,
    config: PretrainedConfig,
    shard_bytes: int,
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """A folder that transformers and a recipe can name; files `beside` lie in it, too. What an earlier conversion has
    left in `out` is replaced. Raises OSError, and UserError if the source ends early."""
    partial = out / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_shards(partial, tensors, shard_bytes, out.name)
        sizes: Counter[torch.dtype] = Counter()
        for tensor in tensors.values():
            sizes[tensor.dtype] += tensor.nbytes
        config.dtype = str(sizes.most_common(1)[0][0]).removeprefix("torch.")
        config.save_pretrained(partial)
        for name, content in beside.items():
            (partial / name).write_bytes(content)
        for path in partial.iterdir():
            flush(path)
        _move(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_folder(out: Path, config: PretrainedConfig) -> None:
    """Only an earlier conversion of the same model is replaced. Raises UserError if another one is there."""
    try:
        there = read_json(out / "config.json")
    except (OSError, ValueError):
        return
    for name in ("model_type", "hidden_size", "num_hidden_layers"):
        if isinstance(there, dict) and there.get(name) != getattr(config, name):
            raise UserError(f"{out} holds another model ({name} {there.get(name)}); give another folder in --out")


def _write_shards(folder: Path, tensors: Tensors, shard_bytes: int, title: str) -> None:
    shards = _shards(tensors, shard_bytes)
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    total = sum(tensor.nbytes for tensor in tensors.values())
    with Progress(title, total, "B") as progress:
        for name, shard in zip(names, shards, strict=True):
            write_safetensors(folder / name, shard, progress)
    if len(shards) > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _shards(tensors: Tensors, shard_bytes: int) -> list[Tensors]:
    """In the order of `tensors`, each as full as fits; a larger tensor has a file of its own."""
    shards: list[Tensors] = [{}]
    held = 0
    for name, tensor in tensors.items():
        if held and held + tensor.nbytes > shard_bytes:
            shards.append({})
            held = 0
        shards[-1][name] = tensor
        held += tensor.nbytes
    return shards


def write_safetensors(path: Path, tensors: Tensors, progress: Progress) -> None:
    """One file of `tensors`, in their order, read one at a time. Raises OSError, and UserError if one is not what was
    announced."""
    about = ((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items())
    with path.open("wb") as file:
        file.write(make_header(about, {"format": "pt"}))
        for name, tensor in tensors.items():
            values = tensor.read()
            if values.dtype != tensor.dtype or tuple(values.shape) != tensor.shape:
                raise UserError(f"{name} became {values.dtype} {tuple(values.shape)}, announced as {tensor.shape}")
            file.write(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            progress.advance(tensor.nbytes)


def _move(partial: Path, out: Path) -> None:
    """config.json goes first and comes last."""
    for old in ("config.json", INDEX, "model.safetensors"):
        (out / old).unlink(missing_ok=True)
    for path in out.glob("model-*-of-*.safetensors"):
        path.unlink()
    for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
        path.replace(out / path.name)
    flush(out)
