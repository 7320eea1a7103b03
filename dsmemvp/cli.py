"""The commands; each is a few lines that call one function elsewhere. `dsmemvp COMMAND --help` explains each."""

import argparse
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from dsmemvp.launchers import own_rank
from dsmemvp.stopping import DONE, REQUEUE, UNEXPECTED, USER_ERROR, Stop, Stopped, exit_code, leave_word, listening

if TYPE_CHECKING:  # the commands import what they need, which for training takes seconds
    from dsmemvp.recipe import Recipe
    from dsmemvp.training.ranks import Ranks
    from dsmemvp.training.watch import Watch


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Errors that a user can mend end in one line on stderr and exit code 1; with DSMEMVP_TRACEBACK
    set, in their traceback. The other exit codes: stopping.py."""
    given = _parsed(arguments)
    try:
        given.run(given)
    except Stopped:
        return REQUEUE
    except (ValueError, OSError, FloatingPointError) as error:
        if exit_code(error) == USER_ERROR:
            leave_word(str(error))
        if os.environ.get("DSMEMVP_TRACEBACK"):
            raise
        if own_rank(os.environ):
            # where all ranks met the same error the first one says it, and the launcher ends the others meanwhile;
            # a rank that is alone with its error must not stay silent
            time.sleep(3)
        print(f"dsmemvp {_name(given)}: error: {error}", file=sys.stderr, flush=True)
        return exit_code(error)
    except Exception:
        traceback.print_exc()
        return UNEXPECTED
    return DONE


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    """argparse takes the overrides before an option only; those behind one are found among what it leaves over."""
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)
    wrong = [text for text in rest if text.startswith("-") or "overrides" not in given]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if rest:
        given.overrides = [*given.overrides, *rest]
    return given


def _name(given: argparse.Namespace) -> str:
    return f"{given.command} {given.look}" if given.command == "data" else given.command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dsmemvp", description="Memory-space visual prompting on DeepSpeed ZeRO-3.")
    # the deepspeed launcher puts this in front of the program's own arguments
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)

    command = _recipe_command(commands, "train", _train, "train a recipe, going on where its run folder stops")
    command = _recipe_command(commands, "evaluate", _evaluate, "score a run's newest checkpoint on data.test")
    command.add_argument("--blind", action="store_true", help="replace every image by none")
    command.add_argument(
        "--checkpoint", type=Path, help="a checkpoint's folder, or a file of trained tensors, instead of the newest"
    )
    _recipe_command(commands, "count", _count, "count parameters from the recipe's shapes, without weights")

    command = _recipe_command(commands, "plan", _plan, "memory, traffic and time of every sharding on a cluster")
    command.add_argument("--gpus", required=True, help="number of GPUs, or several to compare: 8,16,64")
    command.add_argument("--gpus-per-node", type=int, default=8)
    command.add_argument("--gpu-memory", default="80GiB")
    command.add_argument("--interconnect", default="400Gb", help="between nodes, per node and second: 400Gb, 50GB")
    command.add_argument("--intra", default="450GB", help="inside a node, per GPU and second (default: NVLink 4)")
    command.add_argument("--gpu-flops", default="989T", help="16-bit products per second of a GPU (default: H100)")
    command.add_argument("--tokens", type=int, default=200, help="text tokens per sample (default: 200)")

    command = commands.add_parser("index", help="make or check the manifest of a folder of WebDataset shards")
    command.set_defaults(run=_index)
    command.add_argument("folder", type=Path, help="folder of .tar shards, of any origin")
    command.add_argument("--check", action="store_true", help="read everything again and compare; write nothing")
    command.add_argument("--split", default="", help="name of the split (default: the folder's name)")
    command.add_argument("--processes", type=int, default=0, help="how many shards at a time (default: one per core)")

    data = commands.add_parser("data", help="look at a recipe's data: show, check")
    looks = data.add_subparsers(dest="look", required=True)
    look = _recipe_command(looks, "show", _show, "print a few samples as the model will see them")
    look.add_argument("--samples", type=int, default=8, help="the first so many that a run will see")
    look.add_argument("--numbers", type=int, nargs="+", default=[], help="these running numbers instead")
    look.add_argument("--test", action="store_true", help="of data.test")
    look.add_argument("--sheet", type=Path, default=Path("samples.png"), help="file for their pictures")
    look = _recipe_command(looks, "check", _check, "decode and tokenise every sample of every shard")
    look.add_argument("--ranks", type=int, default=1, help="number of ranks to work out the balance for")
    look.add_argument("--processes", type=int, default=0, help="how many shards at a time (default: one per core)")

    command = commands.add_parser("import", help="convert published LLaMA, CLIP and MemVP weights")
    command.set_defaults(run=_import)
    command.add_argument("source", type=Path, help="a .safetensors or .pth file")
    command.add_argument("--out", type=Path, required=True, help="folder to write to")
    command.add_argument("--language-heads", type=int, default=32, help="attention heads of the language model")
    command.add_argument("--vision-heads", type=int, default=16, help="attention heads of the vision tower")
    command.add_argument("--norm-eps", type=float, default=1e-6, help="epsilon of the language model's norms")

    command = _recipe_command(commands, "submit", _submit, "submit slurm/train.sbatch with its #SBATCH lines filled in")
    _allocation_options(command)
    command = commands.add_parser("doctor", help="what a run would find on this node, or under srun on every node")
    command.set_defaults(run=_doctor)
    command.add_argument("recipe", type=Path, nargs="?", help="YAML file; without it, the machine alone is looked at")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="settings instead of the recipe's")
    return parser


def _allocation_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--nodes", type=int, default=1)
    command.add_argument("--gpus-per-node", type=int, default=0, help="one rank for each")
    command.add_argument("--cpu-ranks-per-node", type=int, default=0, help="instead, for nodes without GPUs")
    command.add_argument("--cpus-per-gpu", type=int, metavar="N", help="CPU cores of every rank (default: the file's)")
    command.add_argument("--time", help="limit, as in 12:00:00 or 1-00:00:00 (default: the start file's)")
    command.add_argument("--partition")
    command.add_argument("--account")
    command.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="another option: --sbatch=--mail-type=END"
    )
    command.add_argument("--evaluate-only", action="store_true", help="slurm/evaluate.sbatch instead")
    command.add_argument("--print", action="store_true", help="print the text and submit nothing")


def _recipe_command(commands, name: str, run, about: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=about, description=about)
    command.add_argument("recipe", type=Path, help="YAML file")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="settings instead of the recipe's")
    command.set_defaults(run=run)
    return command


def _train(given: argparse.Namespace) -> None:
    with listening() as stop:
        from dsmemvp.recipe_file import read_recipe
        from dsmemvp.training.loop import train
        from dsmemvp.training.ranks import leave_ranks

        recipe = read_recipe(given.recipe, given.overrides)
        ranks, watched = _join(recipe, stop)
        with watched as watch:
            train(recipe, ranks, stop, watch)
        leave_ranks()


def _evaluate(given: argparse.Namespace) -> None:
    with listening() as stop:
        from dsmemvp.evaluation.run import evaluate
        from dsmemvp.recipe_file import read_recipe
        from dsmemvp.training.ranks import leave_ranks

        recipe = read_recipe(given.recipe, given.overrides)
        ranks, watched = _join(recipe, stop)
        with watched as watch:
            evaluate(recipe, ranks, stop, watch, blind=given.blind, checkpoint=given.checkpoint)
        leave_ranks()


def _join(recipe: "Recipe", stop: Stop) -> "tuple[Ranks, Watch]":
    from dsmemvp.training.ranks import join_ranks
    from dsmemvp.training.watch import Watch

    silence, standstill = recipe.training.silence_timeout, recipe.training.standstill_timeout
    try:
        ranks = join_ranks(standstill)
        return ranks, Watch(ranks, silence, standstill)
    except Exception as error:
        if not stop.asked:
            raise
        # the signal has also ended another rank, or a compiler that DeepSpeed had started
        raise Stopped(f"while ranks joined: {error}") from None


def _count(given: argparse.Namespace) -> None:
    from dsmemvp.models.joined import count
    from dsmemvp.models.weights import configs_of_shapes
    from dsmemvp.recipe_file import read_recipe

    recipe = read_recipe(given.recipe, given.overrides)
    trainable, frozen = count(recipe, configs_of_shapes(recipe))
    print(f"{trainable:,} trainable parameters\n{frozen:,} frozen parameters in the language model")


def _plan(given: argparse.Namespace) -> None:
    from dsmemvp.planning.cluster import clusters
    from dsmemvp.planning.plan import compare
    from dsmemvp.planning.table import lines
    from dsmemvp.recipe_file import read_recipe

    sizes = (given.gpu_memory, given.interconnect, given.intra, given.gpu_flops)
    recipe = read_recipe(given.recipe, given.overrides)
    plans = compare(recipe, clusters(given.gpus, given.gpus_per_node, *sizes), given.tokens)
    print(*lines(plans, given.tokens), sep="\n")


def _index(given: argparse.Namespace) -> None:
    from dsmemvp.data_tools.index_folder import check_folder, index_folder

    if given.check:
        lines = check_folder(given.folder, given.processes)
    else:
        lines = index_folder(given.folder, given.split, given.processes)
    print(*lines, sep="\n")


def _show(given: argparse.Namespace) -> None:
    from dsmemvp.data_tools.show import show
    from dsmemvp.recipe_file import read_recipe

    recipe = read_recipe(given.recipe, given.overrides)
    print(*show(recipe, given.samples, given.numbers, given.test, given.sheet), sep="\n")


def _check(given: argparse.Namespace) -> None:
    from dsmemvp.data_tools.check import check
    from dsmemvp.recipe_file import read_recipe

    recipe = read_recipe(given.recipe, given.overrides)
    lines, bad = check(recipe, given.ranks, given.processes)
    print(*lines, sep="\n", flush=True)
    if bad and recipe.data.on_bad_sample == "fail":
        raise ValueError(f"{bad} samples cannot be used; mend them, or leave them out with data.on_bad_sample=skip")


def _import(given: argparse.Namespace) -> None:
    from dsmemvp.models.published import import_published

    for line in import_published(given.source, given.out, given.language_heads, given.vision_heads, given.norm_eps):
        print(line)


def _submit(given: argparse.Namespace) -> None:
    from dsmemvp.recipe_file import read_recipe
    from dsmemvp.submit import Allocation, sbatch_text, submit

    recipe = read_recipe(given.recipe, given.overrides)
    asked = Allocation(
        given.nodes,
        given.gpus_per_node,
        given.cpu_ranks_per_node,
        given.cpus_per_gpu,
        given.time,
        given.partition,
        given.account,
        given.sbatch,
    )
    asked.check()
    if not given.evaluate_only:
        recipe.training.micro_steps(asked.ranks)
    text = sbatch_text(recipe.name, [str(given.recipe), *given.overrides], asked, given.evaluate_only)
    print(text if given.print else submit(text), end="" if given.print else "\n")


def _doctor(given: argparse.Namespace) -> None:
    from dsmemvp.doctor.report import examine
    from dsmemvp.recipe_file import read_recipe

    recipe = read_recipe(given.recipe, given.overrides) if given.recipe else None
    failures = examine(recipe)
    if failures:
        raise ValueError(f"a run would fail here: {', '.join(failures)}")
