"""What all commands that take a recipe share."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def recipe_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], about: str
) -> argparse.ArgumentParser:
    """A command `name RECIPE [key=value ...]`, which calls `run`."""
    command = commands.add_parser(name, help=about, description=about)
    command.add_argument("recipe", type=Path, help="YAML file")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="settings instead of the recipe's")
    command.set_defaults(run=run)
    return command
