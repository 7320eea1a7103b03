"""A folder with what was trained -> its recipe and its trained tensors, to use them and not to resume training."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dsmemvp.backbones.fingerprint import fingerprint
from dsmemvp.backbones.weights import Base
from dsmemvp.checkpoints.adapter import open_adapter
from dsmemvp.checkpoints.checkpoint import ADAPTER, Checkpoint, named_checkpoint
from dsmemvp.checkpoints.choosing import newest_checkpoint
from dsmemvp.config.hub import pinned
from dsmemvp.config.reading import as_dict, read_recipe
from dsmemvp.config.recipe import Recipe
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.errors import UserError


class LoadedRun(NamedTuple):
    recipe: Recipe
    checkpoint: Checkpoint
    base: Base
    """The recipe's, as far as it was read."""


def load_run(folder: str | Path, overrides: Sequence[str] = (), checkpoint: str | Path | None = None) -> LoadedRun:
    """The recipe in a run's folder, with overrides such as "model.language_model=/elsewhere", and its newest intact
    checkpoint or the given one; or those of a folder that `dsmemvp export` has written. Checked against the recipe's
    method and base. Raises UserError."""
    folder = Path(folder)
    if (folder / ADAPTER).is_file() and not checkpoint:
        recipe, found = open_adapter(folder, overrides)
    else:
        recipe, found = _of_run(folder, overrides, checkpoint)
    recipe = pinned(recipe)
    found.check_method(as_dict(recipe))
    base = Base(recipe)
    found.check_base(fingerprint(base))
    found.check_quantized(as_dict(recipe))
    return LoadedRun(recipe, found, base)


def check_same(found: Checkpoint, ranks: Ranks) -> None:
    """Each rank has opened the folder by itself. Raises UserError if a run that still trains has saved meanwhile."""
    if len(set(ranks.gather([str(found.trained)]))) > 1:
        raise UserError(
            "the ranks found different checkpoints, since the run is still training; name one with --checkpoint"
        )


def _of_run(folder: Path, overrides: Sequence[str], checkpoint: str | Path | None) -> tuple[Recipe, Checkpoint]:
    if not (folder / "recipe.json").is_file():
        what = "has no recipe.json" if folder.is_dir() else "is a file" if folder.is_file() else "does not exist"
        raise UserError(
            f"run {folder} {what}; give the folder that a training run has written, such as runs/demo, or one that"
            " `dsmemvp export` has"
        )
    recipe = read_recipe(folder / "recipe.json", overrides)  # JSON is YAML, too
    found, complaints = (named_checkpoint(Path(checkpoint)), []) if checkpoint else newest_checkpoint(folder)
    if found is None:
        why = "".join(f" ({text})" for text in complaints[:1])
        raise UserError(f"{folder / 'checkpoints'} holds no intact checkpoint{why}; train first, or name another")
    for text in complaints:
        warnings.warn(text, stacklevel=2)
    return recipe, found
