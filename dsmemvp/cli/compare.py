"""compare: methods beside each other on one base, by a study file or by recipes."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from dsmemvp.cli.allocation import allocation_options, asked_of_slurm
from dsmemvp.distributed.orphans import ended_with_launcher
from dsmemvp.distributed.stopping import listening
from dsmemvp.errors import UserError


def add(commands: Any) -> None:
    about = "train and score several methods with all else equal, and say which differences are real"
    command = commands.add_parser("compare", help=about, description=about)
    command.add_argument("files", nargs="+", type=Path, metavar="STUDY", help="a study (YAML), or two or more recipes")
    command.add_argument("--out", type=Path, required=True, help="folder for runs and report; the same one resumes")
    command.add_argument(
        "--seeds", type=int, default=3, help="seeds 0, 1, ... of recipes (default: 3); a study has its own"
    )
    command.add_argument("--set", action="append", default=[], metavar="key=value", help="a setting of all contenders")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="check and measure, say how long it takes, and train nothing")
    what.add_argument("--report", action="store_true", help="write the report of finished runs again")
    what.add_argument("--submit", action="store_true", help="as a Slurm array, a task for each contender")
    what.add_argument("--task", type=int, metavar="N", help="contender N alone, from 0, as a task of a Slurm array")
    allocation_options(command.add_argument_group("with --submit"))
    command.set_defaults(run=_compare, listens=True)


def _compare(given: argparse.Namespace) -> None:
    if given.submit:
        _submit(given)
        return
    with listening() as stop, ended_with_launcher(stop):
        from dsmemvp.cli.runs import join
        from dsmemvp.comparison.budget import with_budget
        from dsmemvp.comparison.guards import Checked, check_study
        from dsmemvp.comparison.plan import check_measured, planned, with_known_budget
        from dsmemvp.comparison.report import write_report
        from dsmemvp.comparison.running import check_data, check_written, is_finished, run_study, write_study
        from dsmemvp.comparison.study import pinned_study
        from dsmemvp.distributed.ranks import leave_ranks
        from dsmemvp.training.context import RunContext

        study = pinned_study(_study(given))
        if given.task is not None and not 0 <= given.task < len(study.contenders):
            raise UserError(f"--task: there are contenders 0 to {len(study.contenders) - 1}, not {given.task}")
        if study.settings.budget.seconds and given.task is not None:
            check_measured(study, given.out)
        ranks, watched = join(study.contenders[0].recipe, stop)
        with watched as heartbeat:
            contexts = partial(RunContext, ranks=ranks, stop=stop, heartbeat=heartbeat)
            study = ranks.together(lambda: with_budget(study))
            given_study, nothing, task = study, Checked([], 0.0, {}), given.task or 0
            poll = partial(heartbeat.at, "checking the data", 0)
            ranks.together(lambda: check_written(study, given.out) if ranks.first else None)
            checked = ranks.together(lambda: check_study(study, given.out, task, poll) if ranks.first else nothing)
            ranks.together(lambda: check_data(checked.data, given.out) if ranks.first else None)
            if given.report:
                study = ranks.together(lambda: with_known_budget(study, given.out))
            else:
                study = planned(study, given.out, ranks, contexts, given.task)
            if not given.report and not given.plan:
                ranks.together(lambda: write_study(given_study, given.out, checked.data) if ranks.first else None)
                run_study(study, given.out, ranks, contexts, given.task)
            last = not given.plan and (given.task is None or is_finished(study))
            text = ranks.together(lambda: write_report(study, given.out, checked) if ranks.first and last else "")
        if ranks.first:
            print(text, end="", flush=True)
        leave_ranks()


def _study(given: argparse.Namespace) -> Any:
    from dsmemvp.comparison.study import read_study, study_of_recipes
    from dsmemvp.comparison.study_file import is_study

    if given.out.exists() and not given.out.is_dir():
        raise UserError(f"--out: {given.out} is a file; name a folder")
    if len(given.files) == 1:
        if not is_study(given.files[0]):
            raise UserError(f"{given.files[0]} has no `contenders`; give a study, or two or more recipes")
        return read_study(given.files[0], given.out, given.set)
    if given.seeds < 1:
        raise UserError(f"--seeds: must be at least 1, is {given.seeds}")
    return study_of_recipes(given.files, given.seeds, given.out, given.set)


def _submit(given: argparse.Namespace) -> None:
    from dsmemvp.comparison.study import errors_of
    from dsmemvp.config.stages import stage_recipe
    from dsmemvp.planning.deepspeed_settings import deepspeed_settings
    from dsmemvp.submit import sbatch_text, submit

    study, asked = _study(given), asked_of_slurm(given)
    if study.settings.budget.seconds:
        from dsmemvp.comparison.plan import check_measured

        check_measured(study, given.out)
    for contender in study.contenders:
        with errors_of(contender.name):
            for name in contender.recipe.method.stage_names() if contender.trains else ():
                deepspeed_settings(stage_recipe(contender.recipe, name), asked.ranks)  # not after waiting in a queue
    asked.more.append(f"--array=0-{len(study.contenders) - 1}")
    arguments = [*map(str, given.files), "--out", str(given.out), "--seeds", str(given.seeds)]
    arguments += [part for setting in given.set for part in ("--set", setting)]
    text = sbatch_text(study.name, arguments, asked, "compare.sbatch")
    print(text if given.print else submit(text), end="" if given.print else "\n")
