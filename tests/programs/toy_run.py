"""On every rank: train recipes with the method methods/toy.py. Arguments: a JSON file with [recipe, overrides] of each
run; they are trained one after another. Of [recipe, overrides, stage] only that stage is trained (empty: all)."""

import json
import os
import sys
from pathlib import Path

import dsmemvp.prompts
from dsmemvp.config.reading import read_recipe
from dsmemvp.distributed.ranks import join_ranks, leave_ranks
from dsmemvp.distributed.stopping import Stop
from dsmemvp.fault_tolerance.heartbeat import Heartbeat
from dsmemvp.training.context import RunContext
from dsmemvp.training.loop import train

dsmemvp.prompts.__path__.append(str(Path(__file__).parent / "methods"))


def main(runs: str) -> None:
    stop = Stop()
    ranks = join_ranks(seconds=600, stop=stop)
    with Heartbeat(ranks, 60, 600, stop, Path(runs).parent) as heartbeat:
        for recipe, overrides, *only in json.loads(Path(runs).read_text()):
            train(RunContext(read_recipe(recipe, overrides), ranks, stop, heartbeat), only="".join(only))
    leave_ranks()
    os._exit(0)  # as dsmemvp/__main__.py does, and why


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
