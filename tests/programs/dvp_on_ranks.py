"""On every rank: DVP's loss and gradients of packed samples of other lengths than the other rank's, one without an
image; then those of samples without any image; under each DeepSpeed configuration.

Arguments: a recipe, where to write the findings, DeepSpeed configurations.
"""

import os
import sys

import small
import torch
from deepspeed.utils import safe_get_full_grad

from dsmemvp.backbones.weights import read_configs
from dsmemvp.config.reading import read_recipe
from dsmemvp.data.batch import Batch, Item
from dsmemvp.data.layout import Reserved
from dsmemvp.data.packing import by_image, make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.distributed.ranks import join_ranks, leave_ranks
from dsmemvp.training.engine import build_trainer

SETTINGS = [
    *("method.name=dvp", "method.layer=1", "method.adapter_ratio=8", "method.train_norms=true", "method.dropout=0.0"),
    *("vision.adapter_dropout=0.0", "training.global_batch=4", "training.micro_batch=2"),
]
SHARES = ((1, 3), (0, 2))
"""Samples of both ranks; sample 1 has no image."""
POLICIES = ("none", "elementwise", "full")


def batch(samples: tuple[int, ...], resolution: int, reserved: tuple[Reserved, ...], images: bool = True) -> Batch:
    drawn = torch.randint(256, (4, 3, resolution, resolution), generator=torch.Generator().manual_seed(5))
    items = []
    for i in samples:
        text = small.TEXTS[i] + [7, 3 + i]
        image = drawn[i].to(torch.uint8) if images and small.PICTURES[i] else None
        items.append(Item(i, EncodedText(text, len(text) - 2, False), image))
    return make_batch(by_image(items), resolution, reserved).batch


def main(recipe_path: str, out: str, *settings: str) -> None:
    ranks = join_ranks(seconds=600)
    findings = {}
    for path in settings:
        recipe = read_recipe(recipe_path, [*SETTINGS, f"training.deepspeed={path}"])
        configs = read_configs(recipe)
        trainer = build_trainer(recipe, configs, ranks)
        reserved = tuple(trainer.model.method.reserved())
        for policy in POLICIES:
            trainer.model.set_recompute(policy, "full" if policy == "full" else "none")
            own = batch(SHARES[ranks.rank], configs.resolution, reserved)
            findings[f"{path} {policy}"] = _step(trainer, ranks, own)
        own = batch(SHARES[ranks.rank], configs.resolution, reserved, images=False)
        findings[f"{path} without images"] = _step(trainer, ranks, own)
        trainer.engine.destroy()
    if ranks.first:
        torch.save(findings, out)
    leave_ranks()
    os._exit(0)  # as dsmemvp/__main__.py does, and why


def _step(trainer, ranks, own: Batch) -> dict:
    loss = ranks.sums(trainer.accumulate([own], 1.0)["language"])[0]
    gradients = {n: safe_get_full_grad(p).clone() for n, p in trainer.model.trainables().items()}
    trainer.update(0.0)
    return {"loss": loss, **gradients}


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
