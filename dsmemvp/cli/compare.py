"""compare: methods beside each other on one base, by a study file or by recipes."""

import argparse
from pathlib import Path
from typing import Any

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
    command.add_argument("--report", action="store_true", help="write the report of finished runs again")
    command.set_defaults(run=_compare, listens=True)


def _compare(given: argparse.Namespace) -> None:
    with listening() as stop, ended_with_launcher(stop):
        from dsmemvp.cli.runs import join
        from dsmemvp.comparison.guards import check_study
        from dsmemvp.comparison.report import write_report
        from dsmemvp.comparison.running import run_study
        from dsmemvp.distributed.ranks import leave_ranks
        from dsmemvp.training.context import RunContext

        study = _study(given)
        ranks, watched = join(study.contenders[0].recipe, stop)
        with watched as heartbeat:
            remarks = ranks.together(lambda: check_study(study) if ranks.first else [])
            if not given.report:
                run_study(study, given.out, ranks, lambda recipe: RunContext(recipe, ranks, stop, heartbeat))
            text = ranks.together(lambda: write_report(study, given.out, remarks) if ranks.first else "")
        if ranks.first:
            print(text, end="", flush=True)
        leave_ranks()


def _study(given: argparse.Namespace) -> Any:
    from dsmemvp.comparison.study import is_study, read_study, study_of_recipes

    if len(given.files) == 1:
        if not is_study(given.files[0]):
            raise UserError(f"{given.files[0]} has no `contenders`; give a study, or two or more recipes")
        return read_study(given.files[0], given.out, given.set)
    if given.seeds < 1:
        raise UserError(f"--seeds: must be at least 1, is {given.seeds}")
    return study_of_recipes(given.files, given.seeds, given.out, given.set)
