"""recipe: a recipe with all its keys, or what a recipe may hold."""

import argparse
import json
from pathlib import Path
from typing import Any

from dsmemvp.cli.recipe_command import given_recipe
from dsmemvp.config.reading import as_yaml
from dsmemvp.errors import UserError


def add(commands: Any) -> None:
    about = "print a recipe with all its keys, defaults and overrides filled in, or the JSON Schema of recipes"
    command = commands.add_parser("recipe", help=about, description=about)
    command.set_defaults(run=_recipe)
    command.add_argument("recipe", type=Path, nargs="?", help="YAML file, or the recipe.json of a run")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="settings instead of the recipe's")
    command.add_argument("--schema", action="store_true", help="JSON Schema of recipes, for editors")


def _recipe(given: argparse.Namespace) -> None:
    if given.schema == (given.recipe is not None):
        raise UserError("give either a recipe's file or --schema")
    if given.schema:
        from dsmemvp.config.json_schema import recipe_schema

        print(json.dumps(recipe_schema(), indent=1, ensure_ascii=False))
    else:
        print(as_yaml(given_recipe(given)), end="")
