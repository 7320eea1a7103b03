"""A few steps of a random model; the first rank of each node says what its node has sent over its interface in each.

Arguments: a JSON file with the recipe's and the configurations' values.
"""

import itertools
import json
import os
import sys
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.partitioned import fill_randomly
from dsmemvp.config.reading import read_recipe
from dsmemvp.distributed.ranks import join_ranks, leave_ranks
from dsmemvp.planning.trace import example_batch
from dsmemvp.training.engine import build_trainer

STEPS = 4


def main(given: str) -> None:
    wanted, ranks = json.loads(Path(given).read_text()), join_ranks(seconds=600)
    recipe = read_recipe(wanted["recipe"], wanted["overrides"])
    configs = Configs(LlamaConfig(**wanted["language"]), CLIPVisionConfig(**wanted["vision"]))
    torch.manual_seed(0)
    trainer = build_trainer(recipe, configs, ranks, load=fill_randomly)
    batch = example_batch(recipe, configs, trainer.model.method.reserved(), wanted["tokens"])
    counts = []
    for _ in range(STEPS):
        counts.append(_sent_by_all())
        trainer.accumulate([batch] * recipe.training.micro_steps(ranks.world), 1.0)
        trainer.update(1e-4)
    counts.append(_sent_by_all())
    if os.environ["LOCAL_RANK"] == "0":
        print(json.dumps([after - before for before, after in itertools.pairwise(counts)]), flush=True)
    leave_ranks()
    os._exit(0)  # as dsmemvp/__main__.py does, and why


def _sent_by_all() -> int:
    """Bytes that have left this node before a moment in which no rank sends."""
    torch.distributed.barrier()
    sent = _sent()
    torch.distributed.barrier()  # else another rank of the node would begin the next step before this one has looked
    return sent


def _sent() -> int:
    """Bytes that have left this node."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("eth0:"))


if __name__ == "__main__":
    main(sys.argv[1])
