"""count, plan, submit, doctor: before a run."""

import argparse
from pathlib import Path
from typing import Any

from dsmemvp.cli.allocation import allocation_options, asked_of_slurm
from dsmemvp.cli.recipe_command import given_recipe, recipe_command, recipe_to_run
from dsmemvp.config.stages import check_stage, stage_recipe
from dsmemvp.errors import UserError


def add(commands: Any) -> None:
    recipe_command(commands, "count", _count, "count parameters from the recipe's shapes, without weights")
    command = recipe_command(commands, "plan", _plan, "memory, traffic and time of every sharding on a cluster")
    command.add_argument("--gpus", required=True, help="number of GPUs, or several to compare: 8,16,64")
    command.add_argument("--gpus-per-node", type=int, default=8, help="GPUs of a node (default: 8)")
    command.add_argument("--gpu-memory", default="80GiB", help="memory of a GPU (default: 80GiB)")
    command.add_argument(
        "--interconnect", default="400Gb", help="between nodes, per node and second: 400Gb (default), 50GB"
    )
    command.add_argument(
        "--intra", default="450GB", help="inside a node, per GPU and second (default: 450GB, NVLink 4)"
    )
    command.add_argument("--gpu-flops", default="989T", help="16-bit FLOP/s of a GPU (default: 989T, H100)")
    command.add_argument("--tokens", type=int, default=200, help="text tokens per sample (default: 200)")

    command = recipe_command(commands, "submit", _submit, "submit slurm/train.sbatch with its #SBATCH lines filled in")
    allocation_options(command)
    what = command.add_mutually_exclusive_group()
    what.add_argument(
        "--evaluate-only",
        action="store_true",
        help="evaluate a checkpoint, with slurm/evaluate.sbatch, and do not train",
    )
    what.add_argument(
        "--search",
        action="store_true",
        help="search for the method's setting, with slurm/search.sbatch, and train nothing",
    )
    what.add_argument(
        "--stage", default="", metavar="NAME", help="train this one of the method's stages alone, and do not evaluate"
    )
    about = "check this node, or under srun every node: versions, devices, links, limits, disks, files"
    command = commands.add_parser("doctor", help=about, description=about)
    command.set_defaults(run=_doctor)
    command.add_argument("recipe", type=Path, nargs="?", help="YAML file; without it, only the machine is checked")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="settings instead of the recipe's")


def _count(given: argparse.Namespace) -> None:
    recipe = given_recipe(given)

    from dsmemvp.backbones.weights import configs_of_shapes, read_configs
    from dsmemvp.stages import count, stage_counts

    named = recipe.model.language_shape and recipe.model.vision_shape
    configs = configs_of_shapes(recipe) if named else read_configs(recipe)
    trainable, frozen = count(recipe, configs)
    print(f"{trainable:,} trainable parameters\n{frozen:,} frozen parameters in the language model")
    of_stages = stage_counts(recipe, configs)
    for name, trained in of_stages.items() if len(of_stages) > 1 else ():
        print(f"{trained:,} trained in stage {name}")


def _plan(given: argparse.Namespace) -> None:
    from dsmemvp.planning.cluster import clusters

    recipe = recipe_to_run(given)
    sizes = (given.gpu_memory, given.interconnect, given.intra, given.gpu_flops)
    planned = clusters(given.gpus, given.gpus_per_node, *sizes)

    from dsmemvp.planning.plan import compare
    from dsmemvp.planning.table import lines

    plans = compare(recipe, planned, given.tokens)
    print(*lines(plans, given.tokens), sep="\n")


def _submit(given: argparse.Namespace) -> None:
    from dsmemvp.planning.deepspeed_settings import deepspeed_settings
    from dsmemvp.submit import sbatch_text, submit

    recipe = recipe_to_run(given)
    check_stage(recipe, given.stage)
    asked = asked_of_slurm(given)
    if given.search:
        from dsmemvp.training.search_check import check_search

        check_search(recipe)
    if not given.evaluate_only:
        for name in [given.stage] if given.stage else recipe.method.stage_names():
            deepspeed_settings(stage_recipe(recipe, name), asked.ranks)  # refused now, not after waiting in a queue
    start_file = "evaluate.sbatch" if given.evaluate_only else "search.sbatch" if given.search else "train.sbatch"
    arguments = [str(given.recipe), *given.overrides, *(["--stage", given.stage] if given.stage else [])]
    text = sbatch_text(recipe.name, arguments, asked, start_file)
    print(text if given.print else submit(text), end="" if given.print else "\n")


def _doctor(given: argparse.Namespace) -> None:
    recipe = given_recipe(given) if given.recipe else None

    from dsmemvp.doctor.report import check_node

    failures = check_node(recipe)
    if failures:
        raise UserError(f"a run would fail here: {', '.join(failures)}")
