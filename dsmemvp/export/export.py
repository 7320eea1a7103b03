"""`dsmemvp export`: a run's checkpoint -> a folder to hand on (checkpoints/adapter.py), a file in the published
layout, or both. Neither GPU nor weights of the base are needed: what the base is known by stands in the checkpoint."""

import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dsmemvp.atomic_files import flush, replace_file
from dsmemvp.backbones.fingerprint import fingerprint
from dsmemvp.backbones.weights import Base, configs_of_shapes, read_configs
from dsmemvp.checkpoints.adapter import TRAINED, write_adapter
from dsmemvp.checkpoints.checkpoint import ADAPTER, Checkpoint, State, check_sums, read_checkpoint
from dsmemvp.checkpoints.choosing import newest_checkpoint
from dsmemvp.config.reading import as_dict, recipe_of
from dsmemvp.config.recipe import Recipe
from dsmemvp.dtypes import NAMED
from dsmemvp.errors import UserError
from dsmemvp.export.card import model_card
from dsmemvp.export.peft_adapter import write_peft
from dsmemvp.prompts import method_class
from dsmemvp.stages import stages_of, trainable_shapes

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
CARD = "README.md"


def export(
    run: Path,
    out: Path | None,
    published: Path | None = None,
    checkpoint: Path | None = None,
    dtype: str = "fp32",
    peft: Path | None = None,
) -> list[str]:
    """Write the newest intact checkpoint of a run's folder, or the given one, and return a line about each thing
    written. `dtype` (one of NAMED) is that of the folders' tensors. Raises UserError for what cannot be exported,
    OSError if it cannot be written."""
    if out is None and published is None and peft is None:
        raise UserError("give --out, --published or --peft, or several of them")
    found, said = _checkpoint(run, checkpoint)
    trained = {name: t.float() for name, t in load_file(found.trained).items()}
    recipe = recipe_of(found.state.recipe, str(found.trained.parent))
    if published is not None:
        said.append(_write_published(published, found.state, recipe, trained))
    tensors = {name: t.to(NAMED[dtype]) for name, t in trained.items()}
    if peft is not None:
        said.append(write_peft(peft, recipe, tensors))
    if out is not None:
        said.append(_write_folder(out, found.state, recipe, tensors, run, found.digest()))
    return said


def export_file(recipe: Recipe, trained: Path, out: Path, dtype: str = "fp32") -> str:
    """Write a folder as `export` does, for a file of trained tensors from elsewhere, such as `dsmemvp convert` makes of
    a published checkpoint; it is taken to belong to the recipe's base and method. Returns a line about it. Raises
    UserError if the file does not fit the recipe, OSError."""
    if not trained.is_file():
        raise UserError(f"--checkpoint: {trained} is no file of trained tensors")
    found = read_checkpoint(trained)
    found.check_method(as_dict(recipe))
    base = Base(recipe)
    last = stages_of(recipe, base.configs)[-1]
    values = found.values(trainable_shapes(recipe, base.configs, last))
    state = State(recipe=as_dict(recipe), base=fingerprint(base))
    return _write_folder(out, state, recipe, {name: t.to(NAMED[dtype]) for name, t in values.items()})


def _checkpoint(run: Path, given: Path | None) -> tuple[Checkpoint, list[str]]:
    if given is None and (run / ADAPTER).is_file():
        given = run  # exported before
    if given is None:
        if not run.is_dir():
            raise UserError(f"--run: {run} does not exist; give the folder that a training run has written")
        found, complaints = newest_checkpoint(run)
        if found is None:
            raise UserError("; ".join([f"{run / 'checkpoints'} holds no intact checkpoint", *complaints]))
        return found, complaints
    found = read_checkpoint(given)
    if not found.state.recipe:
        raise UserError(f"{given} does not say how and on what base it was trained; give a checkpoint's folder")
    check_sums(given)
    return found, []


def _write_folder(
    out: Path, state: State, recipe: Recipe, trained: dict[str, torch.Tensor], run: Path | None = None, digest: str = ""
) -> str:
    """Whole or not at all; an earlier export is replaced, anything else is not. The card has the scores that `run` has
    of the checkpoint of this digest."""
    out = out.resolve()
    if out.exists():
        there = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
        if there and (ADAPTER not in there or there - {ADAPTER, TRAINED, CARD}):
            raise UserError(f"{out} is there already and holds other things than an export; give another one in --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))  # a name that is nobody's
    try:
        partial = beside / "partial"
        partial.mkdir()
        content = write_adapter(partial, state, trained, _needs(recipe))
        (partial / CARD).write_text(model_card(content, recipe, run, digest), encoding="utf-8")
        for path in partial.iterdir():
            flush(path)
        if out.exists():
            out.rename(beside / "old")
        partial.rename(out)
        flush(out.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    step = f" of step {state.step}" * bool(state.step)
    unknown = "" if content["base_shapes"] else "; without the base's sizes, since it is not at hand"
    return f"{content['parameters']:,} trained parameters{step} -> {out}{unknown}"


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
        "language": {key: getattr(configs.language, key) for key in LANGUAGE_KEYS if hasattr(configs.language, key)},
        "vision": {key: getattr(configs.vision, key) for key in VISION_KEYS},
    }
    return {"resolution": configs.resolution, "base_shapes": shapes}


def _write_published(path: Path, state: State, recipe: Recipe, trained: dict[str, torch.Tensor]) -> str:
    """The file that the published code's evaluation reads: "model" and "epoch", counted from 0. The optimizer's state
    is not in it. Raises UserError if that code would compute something else from it."""
    layout = method_class(recipe.method.name).published
    if layout is None:
        raise UserError(f"method.name: {recipe.method.name!r} has no published layout; only --out can be written")
    for key, wanted in layout.fixed.items():
        group, name = key.split(".")
        if (value := getattr(getattr(recipe, group), name)) != wanted:
            raise UserError(f"{key}: is {value}, but {wanted} stands in the published code; only --out can be written")
    if path.is_dir():
        raise UserError(f"--published: {path} is a folder; give the name of a file, such as checkpoint-19.pth")
    buffer = io.BytesIO()
    torch.save({"model": layout.published_names(trained), "epoch": max(0, state.epoch - 1)}, buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, buffer.getvalue())
    return f"published layout -> {path}; the published code needs {layout.needs(recipe)} for it"
