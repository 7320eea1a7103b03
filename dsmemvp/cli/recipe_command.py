"""What all commands that take a recipe share."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsmemvp.config.reading import read_recipe
from dsmemvp.config.recipe import Recipe
from dsmemvp.planning.deepspeed_file import read_settings


def recipe_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], about: str
) -> argparse.ArgumentParser:
    """A command `name RECIPE [key=value ...]`, which calls `run`."""
    command = commands.add_parser(name, help=about, description=about)
    command.add_argument("recipe", type=Path, help="YAML file")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="settings instead of the recipe's")
    command.set_defaults(run=run)
    return command


def given_recipe(given: argparse.Namespace) -> Recipe:
    """The recipe of a command line, before anything that takes long is imported. Raises OSError or UserError."""
    return read_recipe(given.recipe, given.overrides)


def recipe_to_run(given: argparse.Namespace) -> Recipe:
    """As `given_recipe`, its DeepSpeed file looked at as well."""
    recipe = given_recipe(given)
    read_settings(Path(recipe.training.deepspeed))
    return recipe
