"""On two ranks: the second never calls the collective that the first one waits in. Argument: a folder."""

import os
import sys
import time
from pathlib import Path

import torch

from dsmemvp.distributed.ranks import join_ranks
from dsmemvp.distributed.stopping import Stop
from dsmemvp.fault_tolerance.heartbeat import Heartbeat

SILENCE, STANDSTILL = 20.0, 3.0


def main(folder: str) -> None:
    stop = Stop()
    ranks = join_ranks(seconds=60, stop=stop)
    with Heartbeat(ranks, SILENCE, STANDSTILL, stop, Path(folder) / "collectives") as heartbeat:
        torch.distributed.all_reduce(torch.ones(3))
        heartbeat.at("update", 1)
        if ranks.first:
            torch.distributed.all_reduce(torch.ones(5, 2))
        time.sleep(60)
    os._exit(0)


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
