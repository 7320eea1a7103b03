"""train, search, evaluate: what all ranks of a launch run together; score: an evaluation's predictions once more."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsmemvp.cli.paths import check_paths
from dsmemvp.cli.recipe_command import recipe_command, recipe_to_run
from dsmemvp.config.hub import pinned
from dsmemvp.config.stages import stage_recipe
from dsmemvp.distributed.orphans import ended_with_launcher
from dsmemvp.distributed.stopping import Stop, Stopped, listening

if TYPE_CHECKING:
    from dsmemvp.config.recipe import Recipe
    from dsmemvp.distributed.ranks import Ranks
    from dsmemvp.fault_tolerance.heartbeat import Heartbeat


def add(commands: Any) -> None:
    command = recipe_command(
        commands, "train", _train, "train a recipe; resume from the newest checkpoint if its run has one"
    )
    command.set_defaults(listens=True)
    command.add_argument("--stage", default="", metavar="NAME", help="train this one of the method's stages alone")
    about = "search for a method's setting, such as the layer of DVP's prompt, scoring on data.search"
    recipe_command(commands, "search", _search, about).set_defaults(listens=True)
    command = recipe_command(commands, "evaluate", _evaluate, "score a run's checkpoint on data.test")
    command.set_defaults(listens=True)
    command.add_argument("--blind", action="store_true", help="take every image away, to see what the text alone gives")
    command.add_argument("--split", choices=["test", "validation"], default="test", help="data.test or data.validation")
    which = command.add_mutually_exclusive_group()
    which.add_argument("--best", action="store_true", help="the best checkpoint (training.best_by), not the newest")
    which.add_argument(
        "--checkpoint", type=Path, help="a checkpoint's folder, or a file of trained tensors, instead of the newest"
    )
    about = "the table again from predictions, without a model or a GPU"
    command = commands.add_parser("score", help=about, description=about)
    command.add_argument("files", nargs="+", type=Path, metavar="FILE", help="predictions.jsonl of an evaluation")
    command.set_defaults(run=_score)


def _train(given: argparse.Namespace) -> None:
    with listening() as stop, ended_with_launcher(stop):
        recipe = pinned(recipe_to_run(given))
        of_stages = [stage_recipe(recipe, name).data for name in recipe.stages]
        check_paths(recipe, [place for data in (recipe.data, *of_stages) for place in (*data.train, data.validation)])

        from dsmemvp.distributed.ranks import leave_ranks
        from dsmemvp.evaluation.evaluate import look_and_score
        from dsmemvp.training.context import RunContext
        from dsmemvp.training.loop import train

        ranks, watched = join(recipe, stop)
        with watched as heartbeat:
            train(RunContext(recipe, ranks, stop, heartbeat), look_and_score, only=given.stage)
        leave_ranks()


def _search(given: argparse.Namespace) -> None:
    with listening() as stop, ended_with_launcher(stop):
        recipe = pinned(recipe_to_run(given))
        check_paths(recipe, [*recipe.data.train, recipe.data.search])

        from dsmemvp.distributed.ranks import leave_ranks
        from dsmemvp.training.context import RunContext
        from dsmemvp.training.search import search, searching
        from dsmemvp.training.search_check import check_search

        check_search(recipe)
        ranks, watched = join(recipe, stop)
        with watched as heartbeat:
            search(RunContext(searching(recipe), ranks, stop, heartbeat), recipe)
        leave_ranks()


def _evaluate(given: argparse.Namespace) -> None:
    with listening() as stop, ended_with_launcher(stop):
        recipe = pinned(recipe_to_run(given))
        check_paths(recipe, [recipe.data.test if given.split == "test" else recipe.data.validation])

        from dsmemvp.distributed.ranks import leave_ranks
        from dsmemvp.evaluation.evaluate import evaluate
        from dsmemvp.training.context import RunContext

        ranks, watched = join(recipe, stop)
        with watched as heartbeat:
            context = RunContext(recipe, ranks, stop, heartbeat)
            evaluate(context, given.blind, given.split, given.checkpoint, given.best)
        leave_ranks()


def _score(given: argparse.Namespace) -> None:
    from dsmemvp.evaluation.rescore import rescore

    print(rescore(given.files))


def join(recipe: "Recipe", stop: Stop) -> "tuple[Ranks, Heartbeat]":
    """This process among its ranks, watched. Raises Stopped if a signal came meanwhile."""
    from dsmemvp.distributed.ranks import join_ranks
    from dsmemvp.fault_tolerance.heartbeat import Heartbeat

    silence, standstill = recipe.training.silence_timeout, recipe.training.standstill_timeout
    try:
        ranks = join_ranks(standstill, stop)
        collectives = Path(recipe.output) / recipe.name / "collectives"
        return ranks, Heartbeat(ranks, silence, standstill, stop, collectives)
    except Exception as error:
        if not stop.asked:
            raise
        # the signal has also ended another rank
        raise Stopped(f"while ranks joined: {error}") from None
