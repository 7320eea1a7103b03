"""One trainer in a process of its own: how far each tensor moves in two steps, and what a name of no tensor is told."""

import json
import sys
from pathlib import Path

import small
import torch

from dsmemvp.backbones.partitioned import fill_randomly
from dsmemvp.config.recipe import Recipe
from dsmemvp.distributed.ranks import join_ranks, leave_ranks
from dsmemvp.errors import UserError
from dsmemvp.stages import check_scaled, stages_of
from dsmemvp.training.engine import build_trainer

STARTS = ["method.projector.fc1.", "vision.layers.0."]
RATES = (1e-2, 1e-3)


def recipe(starts: list[str]) -> Recipe:
    made = small.recipe("memvp")
    made.model.dtype, made.training.weight_decay = "fp32", 0.0
    made.training.deepspeed = str(Path(__file__).parents[2] / "ds_configs" / "zero3.json")
    made.training.scaled_tensors, made.training.scaled_rate = starts, 0.5
    return made


def main(out: Path) -> None:
    ranks = join_ranks(seconds=60)
    refused = ""
    try:
        wrong = recipe(["method.nothing"])
        check_scaled(wrong, small.configs(), stages_of(wrong, small.configs()))
    except UserError as error:
        refused = str(error)
    trainer = build_trainer(recipe(STARTS), small.configs(), ranks, load=fill_randomly)
    # other values may make a gradient change its sign in the second step, which then is a short one
    torch.manual_seed(0)
    trainer.set({name: torch.randn(shape) for name, shape in trainer.shapes().items()})
    batch, moved = small.prompts(trainer.model).batch, []
    for rate in RATES:
        before = trainer.values()
        trainer.accumulate([batch], 1.0)
        trainer.update(rate)
        moved.append({name: (value - before[name]).abs().max().item() for name, value in trainer.values().items()})
    out.write_text(json.dumps({"refused": refused, "moved": moved}))
    leave_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
