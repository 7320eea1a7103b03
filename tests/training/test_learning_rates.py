"""Tensors with a learning rate of their own, in a trainer: Adam's first step moves every element by the rate."""

import small
import torch

from dsmemvp.backbones.partitioned import fill_randomly
from dsmemvp.distributed.ranks import join_ranks, leave_ranks
from dsmemvp.errors import UserError
from dsmemvp.training.engine import build_trainer

STARTS = ["method.projector.fc1.", "vision.layers.0."]


def _recipe(repository, starts):
    recipe = small.recipe("memvp")
    recipe.model.dtype, recipe.training.weight_decay = "fp32", 0.0
    recipe.training.deepspeed = str(repository / "ds_configs" / "zero3.json")
    recipe.training.scaled_tensors, recipe.training.scaled_rate = starts, 0.5
    return recipe


def test_scaled_tensors_move_by_their_own_rate(repository):
    ranks = join_ranks(seconds=60)
    try:
        trainer = build_trainer(_recipe(repository, STARTS), small.configs(), ranks, load=fill_randomly)
        values = {name: torch.randn(shape) for name, shape in trainer.shapes().items()}
        trainer.set(values)
        batch = small.prompts(trainer.model).batch
        for rate in (1e-2, 1e-3):
            before = trainer.values()
            trainer.accumulate([batch], 1.0)
            trainer.update(rate)
            moved = {name: (value - before[name]).abs().max().item() for name, value in trainer.values().items()}
            wanted = {name: rate * (0.5 if name.startswith(tuple(STARTS)) else 1.0) for name in moved}
            assert all(0.9 * wanted[name] < moved[name] < 1.1 * wanted[name] for name in moved), (moved, wanted)
    finally:
        leave_ranks()


def test_a_name_that_no_tensor_has_is_refused(repository):
    ranks = join_ranks(seconds=60)
    try:
        build_trainer(_recipe(repository, ["method.nothing"]), small.configs(), ranks, load=fill_randomly)
    except UserError as error:
        assert "training.scaled_tensors: no trained tensor's name begins with 'method.nothing'" in str(error)
    else:
        raise AssertionError("taken")
    finally:
        leave_ranks()
