"""Check that the paths in a recipe exist, before ranks join and before torch is imported, in the time of a typing
error. What is in the files is looked at later, by what reads them."""

from collections.abc import Iterable
from pathlib import Path

from dsmemvp.config.hub import local
from dsmemvp.config.paths import check_tokenizer_file, model_config_file
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.location import is_remote


def check_paths(recipe: Recipe, data: Iterable[str]) -> None:
    """Looks for the base and for `data`, which are locations of shards; remote ones are left to their readers. Raises
    UserError."""
    from dsmemvp.data.manifest import manifest_file  # imports numpy

    for key in ("language_model", "vision_tower"):
        if folder := getattr(recipe.model, key):
            model_config_file(Path(local(folder, f"model.{key}")), f"model.{key}")
    if recipe.model.tokenizer:
        check_tokenizer_file(Path(local(recipe.model.tokenizer, "model.tokenizer")))
    for location in data:
        if location and not is_remote(location):
            manifest_file(Path(location))
