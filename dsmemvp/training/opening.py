"""A folder with what was trained -> its recipe and its trained tensors, to use them and not to go on training.

Here other kinds of folders than a run's join, too: what takes a folder calls this one function.
"""

from pathlib import Path

from dsmemvp.models.fingerprint import base_fingerprint
from dsmemvp.recipe import Recipe
from dsmemvp.recipe_file import as_dict, read_recipe
from dsmemvp.training.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint


def open_run(
    folder: str | Path, overrides: list[str] | tuple[str, ...] = (), checkpoint: str | Path | None = None
) -> tuple[Recipe, Checkpoint]:
    """The recipe in a run's folder, with overrides such as "model.language_model=/elsewhere", and its newest intact
    checkpoint or the given one, checked against the recipe's method and base. Raises FileNotFoundError or
    ValueError."""
    folder = Path(folder)
    if not (folder / "recipe.json").is_file():
        what = "has no recipe.json" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"run {folder} {what}; give the folder that a training run has written, such as runs/demo"
        )
    recipe = read_recipe(folder / "recipe.json", overrides)  # JSON is YAML, too
    found = read_checkpoint(Path(checkpoint)) if checkpoint else newest_checkpoint(folder)[0]
    if found is None:
        raise FileNotFoundError(f"{folder / 'checkpoints'} holds no intact checkpoint; train first, or give another")
    found.check_method(as_dict(recipe))
    found.check_base(base_fingerprint(recipe))
    return recipe, found
