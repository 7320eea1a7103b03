"""On every rank: opens a base as a run does, builds and loads the model, and counts what this process opens and reads.

Arguments: the recipe, where to write the findings.
"""

import json
import os
import socket
import sys
from collections import Counter
from pathlib import Path

opened: Counter[str] = Counter()


def _count(event: str, arguments: tuple) -> None:
    if event == "open" and isinstance(arguments[0], str | Path):
        opened[str(arguments[0])] += 1


def main(given: str, out: str) -> None:
    from dsmemvp.backbones.fingerprint import fingerprint
    from dsmemvp.backbones.weights import Base
    from dsmemvp.config.reading import read_recipe
    from dsmemvp.distributed.ranks import join_ranks, leave_ranks
    from dsmemvp.planning.deepspeed_settings import deepspeed_settings
    from dsmemvp.training.model_loading import build_model

    ranks, recipe = join_ranks(seconds=600), read_recipe(given)
    sys.addaudithook(_count)
    base, before = Base(recipe), _read()
    configs = base.configs
    headers = len(base.language_tensors) + len(base.vision_tensors)
    of_headers, before = _read() - before, _read()
    known = ranks.once_per_node(lambda: fingerprint(base))
    of_fingerprint = _read() - before
    loaded = []

    def load(model, recipe) -> None:
        loaded.append(base.load(model))

    build_model(recipe, configs, deepspeed_settings(recipe, ranks.world), ranks, load)
    counts = dict(opened)
    found = {"opened": counts, "of_headers": of_headers, "of_fingerprint": of_fingerprint, "loaded": loaded[0]}
    found |= {"known": known, "same": known == fingerprint(Base(recipe)), "tensors": headers}
    found["nodes"] = _of_two_nodes(ranks)
    everyone = ranks.gather([json.dumps(found)])
    if ranks.first:
        Path(out).write_text(json.dumps([json.loads(row) for row in everyone]))
    leave_ranks()
    os._exit(0)  # as dsmemvp/__main__.py does, and why


def _of_two_nodes(ranks) -> list:
    """As on two nodes with the ranks assigned to them in turn: [what this rank got, whether it did the task itself]."""
    node, local = ranks.rank % 2, ranks.rank // 2
    socket.gethostname = lambda: f"node{node}"
    os.environ["LOCAL_RANK"] = str(local)
    calls = []

    def task() -> dict:
        calls.append(1)
        return {"by": ranks.rank}

    return [ranks.once_per_node(task), len(calls)]


def _read() -> int:
    """Bytes that this process has asked the system for."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
