"""Check that the paths in a recipe exist, before ranks join and before torch is imported, in the time of a typing
error. What is in the files is looked at later, by what reads them."""

from collections.abc import Iterable
from pathlib import Path

from dsmemvp.config.recipe import Recipe
from dsmemvp.data.location import is_remote
from dsmemvp.errors import UserError


def check_paths(recipe: Recipe, data: Iterable[str]) -> None:
    """Looks for the base and for `data`, which are locations of shards; remote ones are left to their readers. Raises
    UserError."""
    from dsmemvp.data.manifest import FILE  # imports numpy

    for key in ("language_model", "vision_tower"):
        if folder := getattr(recipe.model, key):
            _check_model(Path(folder), f"model.{key}")
    if recipe.model.tokenizer:
        _check_tokenizer(Path(recipe.model.tokenizer))
    for location in data:
        manifest = Path(location) / FILE
        if location and not is_remote(location) and not manifest.exists():
            raise UserError(f"{manifest} does not exist; `dsmemvp index {location}` makes one for a folder of shards")


def _check_model(folder: Path, key: str) -> None:
    path = folder / "config.json"
    if not path.is_file():
        missing = path if folder.is_dir() else f"folder {folder}"
        raise UserError(f"{key}: {missing} does not exist{'' if folder.is_absolute() else f' in {Path.cwd()}'}")


def _check_tokenizer(path: Path) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"model.tokenizer: {path} {what}; give a sentencepiece model or a tokenizer.json")
