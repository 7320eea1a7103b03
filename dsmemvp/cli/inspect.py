"""inspect: which patches of a picture the feed-forward memory fires on or the question looks at, or how alike the
prompts of two towers are."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsmemvp.config.reading import check_overrides
from dsmemvp.distributed.orphans import ended_with_launcher
from dsmemvp.distributed.stopping import listening
from dsmemvp.errors import UserError

if TYPE_CHECKING:
    from dsmemvp.checkpoints.loading import LoadedRun
    from dsmemvp.inspection.look import Question


def add(commands: Any) -> None:
    about = (
        "heat maps of what the feed-forward memory fires on in a picture, and its weight layer by layer; of DVP where"
        " the question looks, head by head; of MITP the similarity of the two towers' prompts, hub by hub"
    )
    command = commands.add_parser("inspect", help=about, description=about)
    command.set_defaults(run=_inspect, listens=True)
    command.add_argument(
        "--run", type=Path, required=True, dest="folder", metavar="RUN", help="the run's folder, such as runs/demo"
    )
    command.add_argument(
        "--checkpoint", type=Path, help="a checkpoint's folder, or a file of trained tensors, instead of the newest"
    )
    command.add_argument("question", nargs="?", help="the question about --image")
    command.add_argument("--image", type=Path, help="the picture that the question is about")
    command.add_argument(
        "--choice", action="append", default=[], metavar="TEXT", help="an answer to choose from; give it several times"
    )
    command.add_argument("--context", default="", help="a hint that is given with the question")
    command.add_argument(
        "--sample", type=int, metavar="N", help="instead of an image and a question: sample N of data.train, from 0"
    )
    command.add_argument("--test", action="store_true", help="with --sample: sample N of data.test")
    command.add_argument(
        "--words", nargs="+", default=[], help="words of the prompt to draw maps for (default: those of the question)"
    )
    command.add_argument(
        "--layers", nargs="+", type=int, default=[], help="layers to draw, from 0 (default: five, evenly spaced)"
    )
    command.add_argument(
        "--what",
        choices=["change", "activation", "contribution"],
        help="what to draw of each patch's slot: the change of what it writes from --against (change, the default), how"
        " strongly it fires (activation), or its share of the memory's output (contribution)",
    )
    command.add_argument(
        "--against",
        choices=["average", "none"],
        help="what a change is measured against: the mean memory of the first 64 pictures of data.test (average, the"
        " default), or no picture",
    )
    command.add_argument(
        "--out",
        type=Path,
        help="folder for heat-map.png, attention.png or similarity.png (default: RUN/inspect; of an exported folder"
        " inspect)",
    )
    command.add_argument(
        "--set", action="append", default=[], metavar="key=value", help="another value of a recipe's key; repeatable"
    )


def _inspect(given: argparse.Namespace) -> None:
    with listening() as stop, ended_with_launcher(stop):
        check_overrides(given.set)

        from dsmemvp.checkpoints.loading import check_same, load_run
        from dsmemvp.cli.runs import join
        from dsmemvp.distributed.ranks import leave_ranks
        from dsmemvp.inspection.look import open_model

        run = load_run(given.folder, given.set, given.checkpoint)
        asked = _checked(given, run)
        ranks, watched = join(run.recipe, stop)
        with watched as heartbeat:
            heartbeat.at("loading", 0)
            check_same(run.checkpoint, ranks)
            opened = open_model(run, ranks)
            heartbeat.at("inspecting", 0)
            sample = asked or opened.sample(given.sample, given.test)
            found, draw, name = _looked(given, opened, sample)
            if ranks.first:
                out = given.out or (given.folder if (given.folder / "recipe.json").is_file() else Path()) / "inspect"
                out.mkdir(parents=True, exist_ok=True)
                draw().save(out / name)
                print(*found.table(), "", found.asked, f"-> {out / name}", sep="\n")
        leave_ranks()


def _looked(given: argparse.Namespace, opened: Any, sample: Any) -> tuple[Any, Any, str]:
    """What was found, what draws it, and the picture's file name."""
    from dsmemvp.inspection.attended import looks
    from dsmemvp.inspection.probe import has_memory

    if looks(type(opened.model.method)):
        attended = opened.attend(sample)
        return attended, attended.sheet, "attention.png"
    if not has_memory(type(opened.model.method)):
        compared = opened.compare(sample)
        return compared, compared.sheet, "similarity.png"
    what = given.what or "change"
    against = opened.average() if what == "change" and given.against != "none" else None
    look = opened.look(sample, given.words, against)
    return look, lambda: look.sheet(what, given.layers), "heat-map.png"


def _checked(given: argparse.Namespace, run: "LoadedRun") -> "Question | None":
    """What is asked about --image, before the model is loaded; None for a sample of the data. Raises UserError or
    OSError."""
    from dsmemvp.data.images import decoded
    from dsmemvp.inspection.look import Question, check_layers, check_method
    from dsmemvp.inspection.probe import has_memory
    from dsmemvp.prompts import method_class

    recipe = run.recipe
    check_method(recipe)
    check_layers(given.layers, run.base.configs.language.num_hidden_layers)
    options = {"words": given.words, "layers": given.layers, "what": given.what, "against": given.against}
    named = [f"--{name}" for name, value in options.items() if value]
    if named and not has_memory(method_class(recipe.method.name)):
        raise UserError(f"{named[0]}: is for a feed-forward memory, which {recipe.method.name} has not")
    if (given.sample is None) == (given.image is None) or (given.image is None) != (given.question is None):
        raise UserError("give --image and a question about it, or --sample N")
    if given.image is None:
        return None
    if recipe.method.classifies():
        raise UserError(f"--image: {recipe.method.name} classifies samples of the data; give --sample N instead")
    asked = Question(given.question, given.image, tuple(given.choice), given.context)
    sample = asked.sample()
    assert sample.image is not None
    decoded(sample.image, sample.where, recipe.vision.max_pixels)
    return asked
