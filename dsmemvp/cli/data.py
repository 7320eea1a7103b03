"""index, data show, data check: looking at shards and making them usable."""

import argparse
from pathlib import Path
from typing import Any

from dsmemvp.cli.recipe_command import given_recipe, recipe_command
from dsmemvp.counting import counted
from dsmemvp.errors import UserError


def add(commands: Any) -> None:
    about = "make or check the manifest and the indexes of a folder of WebDataset shards"
    command = commands.add_parser("index", help=about, description=about)
    command.set_defaults(run=_index)
    command.add_argument("folder", type=Path, help="folder of .tar shards, of any origin")
    command.add_argument("--check", action="store_true", help="read everything again and compare; write nothing")
    command.add_argument("--split", default="", help="name of the split (default: the folder's name)")
    command.add_argument("--processes", type=int, default=0, help="how many shards at a time (default: one per core)")

    data = commands.add_parser("data", help="look at a recipe's data: show, check")
    looks = data.add_subparsers(dest="look", required=True)
    look = recipe_command(looks, "show", _show, "print a few samples as the model will see them")
    look.add_argument("--samples", type=int, default=8, help="show the first so many that a run will see (default: 8)")
    look.add_argument(
        "--numbers", type=int, nargs="+", default=[], help="instead: samples by their running numbers, from 0"
    )
    look.add_argument("--test", action="store_true", help="samples of data.test, not of data.train")
    look.add_argument(
        "--sheet", type=Path, default=Path("samples.png"), help="file for their pictures (default: samples.png)"
    )
    look.add_argument("--stage", default="", metavar="NAME", help="as this one of the method's stages sees them")
    look = recipe_command(looks, "check", _check, "decode and tokenise every sample of every shard")
    look.add_argument("--stage", default="", metavar="NAME", help="the data of this one of the method's stages")
    look.add_argument("--ranks", type=int, default=1, help="number of ranks to share samples between (default: 1)")
    look.add_argument("--processes", type=int, default=0, help="how many shards at a time (default: one per core)")


def _index(given: argparse.Namespace) -> None:
    from dsmemvp.data_tools.index_folder import check_folder, index_folder

    if given.check:
        lines = check_folder(given.folder, given.processes)
    else:
        lines = index_folder(given.folder, given.split, given.processes)
    print(*lines, sep="\n")


def _show(given: argparse.Namespace) -> None:
    recipe = given_recipe(given)

    from dsmemvp.data_tools.show import show

    print(*show(recipe, given.samples, given.numbers, given.test, given.sheet, given.stage), sep="\n")


def _check(given: argparse.Namespace) -> None:
    recipe = given_recipe(given)

    from dsmemvp.data_tools.check import check

    lines, bad = check(recipe, given.ranks, given.processes, given.stage)
    print(*lines, sep="\n", flush=True)
    if bad and recipe.data.on_bad_sample == "fail":
        raise UserError(
            f"{counted(bad, 'sample')} cannot be used; mend them, or leave them out with data.on_bad_sample=skip"
        )
