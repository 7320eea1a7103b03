"""On every rank: train recipes with the method methods/toy.py. Arguments: a JSON file with [recipe, overrides] of each
run; they are trained one after another. Of [recipe, overrides, stage, step] only that stage (empty: all) is trained,
and the process kills itself after that step (0: never)."""

import json
import os
import signal
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


class Kill:
    """A callback that ends this process as the kernel would."""

    def __init__(self, step: int):
        self.step = step

    def after_step(self, step: int, method) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def main(runs: str) -> None:
    stop = Stop()
    ranks = join_ranks(seconds=600, stop=stop)
    with Heartbeat(ranks, 60, 600, stop, Path(runs).parent) as heartbeat:
        for recipe, overrides, *how in json.loads(Path(runs).read_text()):
            context = RunContext(read_recipe(recipe, overrides), ranks, stop, heartbeat)
            only, kill = how or ("", None)
            train(context, more=None if kill is None else lambda *_, at=kill: Kill(at), only=only)
    leave_ranks()
    os._exit(0)  # as dsmemvp/__main__.py does, and why


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
