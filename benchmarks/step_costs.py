"""How evenly the ranks are loaded: what the slowest rank computes in a step over what an even share would be, with the
project's own balancing, for global batches drawn from the lengths of ScienceQA's questions.

    python benchmarks/step_costs.py

A LLaMA-13B with CLIP ViT-L/14: an image costs as much as some tokens, and attention grows with the square of a length.
The lengths are those in DSMEMVP_SHARED/data/scienceqa_lengths; a distribution fitted to them stands in if there are
none.
"""

import argparse
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

from dsmemvp.backbones.costs import cost_model
from dsmemvp.backbones.shapes import language_config, vision_config
from dsmemvp.data.balancing import CostModel, Weight, balance, imbalance

SETTINGS = ((8, 32), (8, 64), (16, 64), (8, 128), (1, 32))
"""(ranks, global batch)"""
AT_MOST = (1.10, 1.05, 1.10, 1.03, 1.00)
"""The bounds that tests/test_benchmarks.py holds the table to."""
STEPS = 400
IMAGE_TOKENS = 256
"""That input_space puts into the sequence of a sample with an image."""


def lengths() -> list[tuple[int, bool]]:
    """(tokens, whether there is an image) of every question."""
    path = Path(os.environ.get("DSMEMVP_SHARED", "")) / "data" / "scienceqa_lengths" / "test.json"
    if os.environ.get("DSMEMVP_SHARED") and path.is_file():
        return [(tokens, bool(image)) for tokens, _, _, image in json.loads(path.read_text())]
    return fitted()


def fitted(number: int = 4241) -> list[tuple[int, bool]]:
    """Mean 84 tokens, median 67, p90 142, p99 about 260; 48 % with an image."""
    rng = random.Random("scienceqa")
    return [(max(35, min(400, round(30 + rng.lognormvariate(3.61, 0.8)))), rng.random() < 0.476) for _ in range(number)]


def shares(
    known: list[tuple[int, bool]], costs: CostModel, ranks: int, global_batch: int, reserved: int = 0
) -> Iterator[float]:
    """Of the slowest rank, for STEPS global batches in one micro-step."""
    rng = random.Random(f"{ranks} {global_batch}")
    for _ in range(STEPS):
        weights = [Weight(tokens + reserved * image, image) for tokens, image in rng.sample(known, global_batch)]
        parts = balance(weights, costs, ranks, -(-global_batch // ranks))
        yield imbalance([[sum(costs(weights[i]) for i in part) for part in rank] for rank in parts])


def table(known: list[tuple[int, bool]]) -> list[tuple[int, int, float, float, float]]:
    """Of each setting: ranks, global batch, the slowest rank's share by tokens alone, with images weighed in (memvp),
    and with 256 more places for each image (input_space)."""
    costs = cost_model(language_config("llama-13b"), vision_config("clip-vit-l-14"))
    rows = []
    for ranks, global_batch in SETTINGS:
        kinds = ((CostModel(), 0), (costs, 0), (costs, IMAGE_TOKENS))
        tokens, memvp, input_space = (
            sum(shares(known, model, ranks, global_batch, reserved)) / STEPS for model, reserved in kinds
        )
        rows.append((ranks, global_batch, tokens, memvp, input_space))
    return rows


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    costs = cost_model(language_config("llama-13b"), vision_config("clip-vit-l-14"))
    print(f"an image costs {costs.per_image:.1f} tokens; attention {100 * costs.per_token_squared * 100:.2f} % at 100")
    print("| ranks | global batch | tokens alone | memvp, images weighed in | input_space | at most |")
    print("|---|---|---|---|---|---|")
    for (ranks, batch, tokens, memvp, input_space), most in zip(table(lengths()), AT_MOST, strict=True):
        print(f"| {ranks} | {batch} | {tokens:.3f} | {memvp:.3f} | {input_space:.3f} | {most:.2f} |")


if __name__ == "__main__":
    main()
