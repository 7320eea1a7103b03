"""`dsmemvp export`: a run's checkpoint -> a folder to hand on (training/adapter.py), a file in the published layout, or
both. Neither GPU nor weights of the base are needed: what the base is known by stands in the checkpoint."""

import io
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dsmemvp.convert.memvp import published_names
from dsmemvp.data.durable import flush, replace_file
from dsmemvp.export.card import model_card
from dsmemvp.models.weights import configs_of_shapes, read_configs
from dsmemvp.recipe import Recipe
from dsmemvp.recipe_file import recipe_of
from dsmemvp.training.adapter import write_adapter
from dsmemvp.training.checkpoint import ADAPTER, Checkpoint, State, check_sums, newest_checkpoint, read_checkpoint

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LANGUAGE_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
VISION_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "patch_size",
    "image_size",
)
PUBLISHED = {"method.name": "memvp", "method.visual_scale": 0.01, "vision.adapter_scale": 0.1}
"""What stands in the published code and cannot be set there."""


def export(
    run: Path, out: Path | None, published: Path | None = None, checkpoint: Path | None = None, dtype: str = "fp32"
) -> list[str]:
    """Write the newest intact checkpoint of a run's folder, or the given one, and return a line about each thing
    written. `dtype` (one of DTYPES) is that of the folder's tensors. Raises FileNotFoundError or ValueError for what
    cannot be exported, OSError where it cannot be written."""
    if out is None and published is None:
        raise ValueError("give --out, --published or both")
    found, said = _checkpoint(run, checkpoint)
    trained = {name: t.float() for name, t in load_file(found.trained).items()}
    recipe = recipe_of(found.state.recipe, str(found.trained.parent))
    if published is not None:
        said.append(_write_published(published, found.state, recipe, trained))
    if out is not None:
        tensors = {name: t.to(DTYPES[dtype]) for name, t in trained.items()}
        said.append(_write_folder(out.resolve(), run, found.state, recipe, tensors))
    return said


def _checkpoint(run: Path, given: Path | None) -> tuple[Checkpoint, list[str]]:
    if given is None:
        found, complaints = newest_checkpoint(run)
        if found is None:
            raise FileNotFoundError("; ".join([f"{run / 'checkpoints'} holds no intact checkpoint", *complaints]))
        return found, complaints
    found = read_checkpoint(given)
    if not found.state.recipe:
        raise ValueError(f"{given} does not say how and on what base it was trained; give a checkpoint's folder")
    check_sums(given)
    return found, []


def _write_folder(out: Path, run: Path, state: State, recipe: Recipe, trained: dict[str, torch.Tensor]) -> str:
    """Under another name first; an earlier export is replaced, anything else is not."""
    if out.exists() and not (out / ADAPTER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already and is no exported folder; give another one in --out")
    partial, old = (out.with_name(f"{word}-{out.name}") for word in ("partial", "old"))
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        content = write_adapter(partial, state, trained, _needs(recipe))
        (partial / "README.md").write_text(model_card(content, recipe, run), encoding="utf-8")
        for path in partial.iterdir():
            flush(path)
        if out.exists():
            out.rename(old)
        partial.rename(out)
        flush(out.parent)
    finally:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)
    return f"step {state.step}, {content['parameters']:,} trained parameters -> {out}"


def _needs(recipe: Recipe) -> dict[str, Any]:
    """The base's sizes, as far as config.json files or the names of shapes in the recipe tell them here."""
    configs = None
    for read in (read_configs, configs_of_shapes):
        try:
            configs = read(recipe)
            break
        except (ValueError, OSError):
            continue
    if configs is None:
        return {"resolution": None, "base_shapes": {}}
    shapes = {
        "language": {key: getattr(configs.language, key) for key in LANGUAGE_KEYS},
        "vision": {key: getattr(configs.vision, key) for key in VISION_KEYS},
    }
    return {"resolution": configs.resolution, "base_shapes": shapes}


def _write_published(path: Path, state: State, recipe: Recipe, trained: dict[str, torch.Tensor]) -> str:
    """The file that the published code's evaluation reads: "model" and "epoch", counted from 0. The optimizer's state
    is not in it. Raises ValueError where that code would compute something else from it."""
    for key, wanted in PUBLISHED.items():
        group, name = key.split(".")
        if (value := getattr(getattr(recipe, group), name)) != wanted:
            raise ValueError(f"{key}: is {value}, but {wanted} stands in the published code; only --out can be written")
    buffer = io.BytesIO()
    torch.save({"model": published_names(trained), "epoch": max(0, state.epoch - 1)}, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, buffer.getvalue())
    method, vision = recipe.method, recipe.vision
    return (
        f"published layout -> {path}; the published code needs emb {method.slots}, hidden_proj {method.hidden},"
        f" adapter_scale {method.output_scale} and vision adapters of width {vision.adapter_dim} for it"
    )
