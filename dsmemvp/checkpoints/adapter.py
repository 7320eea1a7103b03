"""An adapter: what a run has trained, as a small folder to hand on, that any copy of the base takes.

    FOLDER/trained.safetensors   the trained tensors
           adapter.json          how they were trained and what they need, the tensors' checksum; no paths
           README.md             the same for people

It is read like a checkpoint (checkpoint.py): other methods and bases are refused, damaged files too.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from dsmemvp import __version__
from dsmemvp.checkpoints.checkpoint import ADAPTER, ADAPTER_FORMATS, Checkpoint, State, check_sums, read_checkpoint
from dsmemvp.checkpoints.state_file import own_sum, sum_of
from dsmemvp.config.reading import recipe_of
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.text import PROMPT_FORMAT
from dsmemvp.errors import UserError

TRAINED = "trained.safetensors"
PARTS = ("name", "seed", "model", "vision", "method", "data", "training", "evaluation", "stages")
KEPT = {
    "model": ("dtype", "quantize", "nf4_scales", "language_shape", "vision_shape"),
    "data": ("captions", "max_length"),
}
"""Keys of a recipe, and of these groups, that an exported folder holds."""


def write_adapter(
    folder: Path, state: State, trained: dict[str, torch.Tensor], about: dict[str, Any]
) -> dict[str, Any]:
    """Write tensors and adapter.json, and return what stands in it; `about` is written beside the state. Raises
    OSError."""
    (folder / TRAINED).write_bytes(save({name: t.contiguous() for name, t in trained.items()}))
    handed_on = replace(state, recipe=portable(state.recipe), order={}, callbacks=[])
    content: dict[str, Any] = {"format": ADAPTER_FORMATS[-1], "dsmemvp": __version__, "prompt_format": PROMPT_FORMAT}
    content |= {"parameters": sum(t.numel() for t in trained.values()), **about, **asdict(handed_on)}
    if not state.stage:
        del content["stage"]
    content["files"] = {TRAINED: sum_of(folder / TRAINED)}
    content["crc32"] = own_sum(content)
    (folder / ADAPTER).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def portable(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe as plain dictionaries, without places on one machine, which are texts with a slash."""
    kept: dict[str, Any] = {}
    for part in (part for part in PARTS if part in recipe):
        value = recipe[part]
        if part == "stages":
            kept[part] = {name: portable({"training": own.get("training", {})}) for name, own in value.items()}
        elif isinstance(value, dict):
            names = KEPT.get(part, tuple(value))
            kept[part] = {n: value[n] for n in names if n in value and "/" not in str(value[n])}
        else:
            kept[part] = value
    return kept


def open_adapter(folder: Path, overrides: Sequence[str]) -> tuple[Recipe, Checkpoint]:
    """An exported folder -> the recipe it was trained with, and its checkpoint. `overrides` say where copies of its
    base are: "model.language_model=...", "model.vision_tower=...", "model.tokenizer=...". Raises FileNotFoundError, and
    UserError for a damaged folder, one of another version, and a base that is not named."""
    checkpoint = read_checkpoint(folder)
    check_sums(folder)
    # how it was trained does not count here, and may be by rules of another version
    values = {part: value for part, value in checkpoint.state.recipe.items() if part not in ("training", "stages")}
    recipe = recipe_of(values, str(folder / ADAPTER), overrides)
    for key in ("language_model", "vision_tower", "tokenizer"):
        if not getattr(recipe.model, key):
            raise UserError(f"model.{key}: {folder} goes with a copy of its base, which has to be named")
    return recipe, checkpoint
