"""Training on pictures against training on features that the vision tower has made once (vision.cache_features):

    python benchmarks/cached_features.py recipes/photos.yaml --steps 12

A trainer of either kind in one process, on the same global batches in turns, so that what else the machine does falls
on both; reading and decoding count. The features are computed before: run the recipe for a step
(training.stop_at_step=1). Printed are the medians of all steps but the first, by the clock and in CPU seconds, and how
far the losses lie apart; with model.dtype=fp32 they are to be the same.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dsmemvp.backbones.fingerprint import fingerprint
from dsmemvp.backbones.weights import VISION_KEY
from dsmemvp.config.reading import read_recipe
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import MicroBatch
from dsmemvp.data.datasets import open_training_data
from dsmemvp.data.feature_cache import CachedFeatures
from dsmemvp.data.images import ImageTransform
from dsmemvp.data.loader import Share, training_steps
from dsmemvp.distributed.ranks import Ranks, join_ranks, leave_ranks
from dsmemvp.inputs import open_inputs
from dsmemvp.training.engine import LANGUAGE, Trainer, build_trainer
from dsmemvp.training.features import feature_settings
from dsmemvp.training.model_loading import load_base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_args()
    cached, ranks = read_recipe(given.recipe, given.overrides), join_ranks(seconds=1800)
    pixels = replace(cached, vision=replace(cached.vision, cache_features=""))
    contenders = {"pictures": opened(pixels, ranks, given.steps), "features": opened(cached, ranks, given.steps)}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    """By the clock, and of all threads of the process."""
    losses: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(given.steps):
        for name, (trainer, batches) in contenders.items():
            start, used = time.perf_counter(), time.process_time()
            losses[name].append(step(trainer, next(batches)))
            seconds[name].append((time.perf_counter() - start, time.process_time() - used))
    samples = cached.training.global_batch
    rates = {
        name: [samples / statistics.median(column) for column in zip(*found[1:], strict=True)]
        for name, found in seconds.items()
    }
    print(f"{given.steps} steps of {samples} samples, {cached.model.dtype}\n")
    print("| training on | samples/s | ratio | samples per CPU second | ratio |\n|---|---:|---:|---:|---:|")
    for name, (rate, own) in rates.items():
        first, first_own = rates["pictures"]
        print(f"| {name} | {rate:.2f} | {rate / first:.2f} | {own:.2f} | {own / first_own:.2f} |")
    apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    print(f"\nlosses from {losses['pictures'][0]:.4f} to {losses['pictures'][-1]:.4f}, at most {apart:.2g} apart")
    leave_ranks()


def opened(recipe: Recipe, ranks: Ranks, steps: int) -> tuple[Trainer, Iterator[list[MicroBatch]]]:
    inputs, data = open_inputs(recipe), open_training_data(recipe)
    collator = inputs.collator
    if recipe.vision.cache_features:
        settings = feature_settings(inputs.base, fingerprint(inputs.base)[VISION_KEY])
        assert isinstance(collator.image, ImageTransform)
        images = CachedFeatures(collator.image, settings, recipe.vision.cache_features, data.manifests)
        collator = replace(collator, image=images)
    trainer = build_trainer(recipe, inputs.configs, ranks, load_base(inputs.base, ranks))
    share = Share(ranks.rank, ranks.world, recipe.training.micro_batch, recipe.training.micro_tokens)
    return trainer, training_steps(data.manifests, data.order, collator, share, range(steps), workers=0)


def step(trainer: Trainer, batches: list[MicroBatch]) -> float:
    """The loss per supervised token."""
    tokens = sum(micro.batch.targets.numel() for micro in batches)
    sums = trainer.accumulate([micro.batch for micro in batches], 1 / tokens)
    trainer.update(trainer.recipe.training.learning_rate / 10)
    return sums[LANGUAGE] / tokens


if __name__ == "__main__":
    main()
