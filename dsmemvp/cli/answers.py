"""generate: what a trained model answers."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsmemvp.cli.runs import join
from dsmemvp.config.reading import check_overrides
from dsmemvp.distributed.launchers import launched
from dsmemvp.distributed.orphans import ended_with_launcher
from dsmemvp.distributed.stopping import listening, release_signals

if TYPE_CHECKING:
    from dsmemvp.checkpoints.loading import LoadedRun
    from dsmemvp.generation.answers import Answerer


def add(commands: Any) -> None:
    command = commands.add_parser(
        "generate",
        help="answer questions about a picture with a trained model",
        description="Answer questions about a picture, or without one. One process holds the whole model; started by a"
        " launcher, it is cut over the ranks as the recipe's training.deepspeed says.",
    )
    command.set_defaults(run=_generate, listens=True)
    command.add_argument("questions", nargs="+", metavar="question", help="one or more, each in quotes")
    command.add_argument("--run", type=Path, required=True, dest="folder", help="the run's folder, such as runs/demo")
    command.add_argument(
        "--checkpoint", type=Path, help="a checkpoint's folder, or a file of trained tensors, instead of the newest"
    )
    command.add_argument("--image", type=Path, help="the picture that all questions are about")
    command.add_argument("--context", default="", help="a hint that is given with every question")
    command.add_argument(
        "--choice", action="append", default=[], metavar="TEXT", help="an answer to choose from; give it several times"
    )
    command.add_argument(
        "--free",
        action="store_true",
        help='answer in a text of its own, as captions and conversations are, instead of after "The answer is"',
    )
    command.add_argument("--max-new-tokens", type=int, help="most tokens of an answer (default: 64; of a choice 4)")
    command.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0 takes the most likely token (default); above 0 tokens are drawn",
    )
    command.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="draw among the likeliest tokens that have this probability together (default: 1.0)",
    )
    command.add_argument("--seed", type=int, default=0, help="seed of the draws (default: 0)")
    command.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="another value of a recipe's key; repeatable"
    )


def _generate(given: argparse.Namespace) -> None:
    check_overrides(given.set)
    if "RANK" in os.environ or launched(os.environ)[1] > 1:
        _generate_on_ranks(given)
        return
    release_signals()
    from dsmemvp.generation.answers import Answerer

    print(*_answers(Answerer(_opened(given)), given), sep="\n")


def _generate_on_ranks(given: argparse.Namespace) -> None:
    with listening() as stop, ended_with_launcher(stop):
        from dsmemvp.checkpoints.loading import check_same
        from dsmemvp.distributed.ranks import leave_ranks
        from dsmemvp.generation.answers import Answerer

        run = _opened(given)
        ranks, watched = join(run.recipe, stop)
        with watched as heartbeat:
            check_same(run.checkpoint, ranks)
            heartbeat.at("generating", run.checkpoint.state.step)
            answers = _answers(Answerer(run, ranks), given)
            if ranks.first:
                print(*answers, sep="\n", flush=True)
        leave_ranks()


def _opened(given: argparse.Namespace) -> "LoadedRun":
    """What to answer with; what is asked is looked at before a model is loaded."""
    from dsmemvp.checkpoints.loading import load_run
    from dsmemvp.data.images import decoded
    from dsmemvp.generation.answers import check_asked, encoded

    run = load_run(given.folder, given.set, given.checkpoint)
    check_asked(given.questions, given.choice, given.context, given.free, **_sampling(given))
    if given.image:
        decoded(encoded(given.image), str(given.image), run.recipe.vision.max_pixels)
    return run


def _answers(answerer: "Answerer", given: argparse.Namespace) -> list[str]:
    picture = answerer.see(given.image) if given.image else None
    asked = {"choices": given.choice, "context": given.context, "free": given.free}
    answers = answerer.answer(given.questions, picture, **asked, **_sampling(given))
    for question, answer in zip(given.questions, answers, strict=True):
        if not answer and given.choice:
            print(f"dsmemvp: the answer to {question!r} names none of the choices", file=sys.stderr, flush=True)
    return answers


def _sampling(given: argparse.Namespace) -> dict[str, Any]:
    sampling = {"temperature": given.temperature, "top_p": given.top_p, "seed": given.seed}
    return sampling if given.max_new_tokens is None else {**sampling, "max_new_tokens": given.max_new_tokens}
