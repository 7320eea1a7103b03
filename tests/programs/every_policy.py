"""On every rank: the same steps under every policy of gradient checkpointing and every way of sharding, with dropout.

Argument: where to write {sharding: {policy: losses}}."""

import json
import os
import random
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import torch
from small import RESOLUTION, VOCABULARY, configs, pictures, recipe

from dsmemvp.backbones.partitioned import held_pieces, whole_shape
from dsmemvp.backbones.recompute import KEPT
from dsmemvp.data.batch import Batch, Item
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.distributed.ranks import Ranks, join_ranks, leave_ranks
from dsmemvp.dropout import step_seed
from dsmemvp.errors import UserError
from dsmemvp.training.engine import Trainer, build_trainer

DS_CONFIGS = Path(__file__).parents[2] / "ds_configs"
MIXED, BY_RANK = "qkv of the first layer, full", "full on the first rank, elementwise on the second"
POLICIES, SHARDINGS = ("none", *KEPT, MIXED, BY_RANK), ("replicated", "zero3", "zero3_hpz")
STEPS, SAMPLES, LAYERS = 20, 4, 3
"""Samples of a rank's micro-batch."""


def main(out: str) -> None:
    ranks = join_ranks(seconds=600)
    findings = {sharding: losses_of(ranks, sharding) for sharding in SHARDINGS}
    findings |= {f"separable, {name}": losses_of(ranks, name, "separable") for name in SHARDINGS[:2]}
    findings["auto"] = refusal(ranks)
    if ranks.first:
        Path(out).write_text(json.dumps(findings))
    leave_ranks()
    os._exit(0)  # as dsmemvp/__main__.py does, and why


def losses_of(ranks: Ranks, sharding: str, method: str = "memvp") -> dict[str, list[float]]:
    made = recipe(method)
    made.model.dtype, made.method.output_scale, made.vision.adapter_dropout = "fp32", 1.0, 0.2
    if method == "memvp":
        made.method.dropout = 0.2
    made.training.deepspeed = str(DS_CONFIGS / f"{sharding}.json")
    made.training.global_batch, made.training.micro_batch = ranks.world * SAMPLES, SAMPLES
    trainer = build_trainer(made, configs(), ranks, load=lambda model, _: fill_alike(model))
    trainer.model.train()
    batches = [batch_of(trainer, ranks, number) for number in range(5)]
    first, losses = trainer.values(), {}
    for policy in POLICIES if method == "memvp" else ("elementwise", "full"):
        if policy == BY_RANK and sharding == "replicated":
            continue  # nothing is gathered
        if sharding != "replicated":
            trainer.engine.empty_partition_cache()  # what stays whole would keep the values of the policy before
        trainer.set(first)
        trainer.master_weights.set_moments({}, updates=0)
        by_rank = "full" if ranks.first else "elementwise"  # as recompute=auto may
        decoder = {MIXED: ["qkv", *["full"] * (LAYERS - 1)], BY_RANK: by_rank}.get(policy, policy)
        trainer.model.set_recompute(decoder, "full" if policy == "full" else "none")
        losses[policy] = [train_step(trainer, ranks, batches, step) for step in range(STEPS)]
    trainer.engine.destroy()
    return losses


def refusal(ranks: Ranks) -> str:
    """Of recompute=auto where ZeRO-3 gathers parts of the decoder's layers."""
    made = recipe("input_space")
    made.training.deepspeed, made.training.recompute = str(DS_CONFIGS / "zero3.json"), "auto"
    made.training.activation_budget = 1.0
    try:
        build_trainer(made, configs(), ranks, load=lambda model, _: fill_alike(model))
    except UserError as error:
        return str(error)
    return "none"


def train_step(trainer: Trainer, ranks: Ranks, batches: list[Batch], step: int) -> float:
    """Every fifth step has two micro-steps."""
    chosen = [batches[(step + i) % len(batches)] for i in range(1 + (step % 5 == 4))]
    own = [replace(batch, dropout_seed=step_seed(7, step)) for batch in chosen]
    supervised = ranks.sums(sum(batch.targets.numel() for batch in own))[0]
    loss = ranks.sums(trainer.accumulate(own, 1 / supervised)["language"])[0] / supervised
    trainer.update(3e-3)
    return loss


def batch_of(trainer: Trainer, ranks: Ranks, number: int) -> Batch:
    """Texts of several lengths, every third without a picture; each rank has its own."""
    rng, items = random.Random(number * ranks.world + ranks.rank), []
    images = pictures(SAMPLES)
    for i in range(SAMPLES):
        tokens = [rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(6, 14))]
        identity = (number * ranks.world + ranks.rank) * SAMPLES + i
        items.append(Item(identity, EncodedText(tokens, len(tokens) - 3, False), images[i] if i % 3 else None))
    return make_batch(items, RESOLUTION, trainer.model.method.reserved()).batch


def fill_alike(model: torch.nn.Module) -> None:
    """The same values however they are cut."""
    for name, parameter in model.named_parameters():
        shape = whole_shape(parameter)
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))).flatten()
        values = drawn * 2 / shape[-1] ** 0.5 if len(shape) > 1 else 1 + drawn / 10
        for start, piece in held_pieces(parameter):
            piece.copy_(values[start : start + piece.numel()])


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
