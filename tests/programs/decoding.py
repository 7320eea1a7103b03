"""On every rank: answers of a partitioned model to prompts of this rank's own, with other lengths than the others'.

Arguments: a recipe, a folder of trained tensors by method, a DeepSpeed configuration, where to write what was said.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import small
import torch

from dsmemvp.backbones.weights import read_configs
from dsmemvp.checkpoints.checkpoint import Checkpoint
from dsmemvp.config.reading import read_recipe
from dsmemvp.data.batch import Item
from dsmemvp.data.layout import Reserved
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.distributed.ranks import join_ranks, leave_ranks
from dsmemvp.generation.decoder import build_decoder
from dsmemvp.generation.generate import Sampling, generate
from dsmemvp.training.inference import open_for_inference

ROUNDS = {
    "memvp": [((2,), (0, 1, 3)), ((), (0, 1, 2, 3))],
    "input_space": [((0, 2), (1, 3))],
    "dvp": [((1,), (0, 2, 3))],
}
"""For each round, the prompts of both ranks."""
SETTINGS = {"dvp": ["method.layer=1", "method.adapter_ratio=8"]}


def main(recipe_path: str, trained: str, settings: str, out: str) -> None:
    ranks = join_ranks(seconds=600)
    said = {}
    for method, rounds in ROUNDS.items():
        recipe = read_recipe(
            recipe_path, [f"method.name={method}", *SETTINGS.get(method, ()), f"training.deepspeed={settings}"]
        )
        configs = read_configs(recipe)
        checkpoint = Checkpoint(Path(trained) / f"{method}.safetensors")
        opened = open_for_inference(recipe, ranks, checkpoint)
        model, forward = opened.model, opened.forward
        decoder = build_decoder(model, forward, ranks, small.EOS)
        for number, shares in enumerate(rounds):
            own = shares[ranks.rank]
            answers = generate(decoder, prompts(own, configs.resolution, model.method.reserved()), Sampling(5), done)
            rows = [json.dumps([sample, tokens]) for sample, tokens in zip(own, answers, strict=True)]
            said[f"{method}, round {number}"] = sorted(map(json.loads, ranks.gather(rows)))
        said[f"{method}, in step"] = decoder.in_step
    if ranks.first:
        Path(out).write_text(json.dumps(said))
    leave_ranks()
    os._exit(0)  # as dsmemvp/__main__.py does, and why


def done(b: int, tokens: list[int]) -> bool:
    """Samples end at different times, and on different ranks."""
    return sum(tokens) % 3 == 0 and len(tokens) > 2


def prompts(samples: tuple[int, ...], resolution: int, reserved: Sequence[Reserved]):
    generator = torch.Generator().manual_seed(5)
    drawn = torch.randint(256, (4, 3, resolution, resolution), generator=generator).to(torch.uint8)
    texts = {i: EncodedText(small.TEXTS[i], len(small.TEXTS[i]), False) for i in samples}
    items = [Item(i, texts[i], drawn[i] if small.PICTURES[i] else None) for i in samples]
    return make_batch(items, resolution, reserved, last_only=True)


if __name__ == "__main__":
    main(*[argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")])
