"""`dsmemvp data check RECIPE`: every sample of every shard read, decoded and tokenised, as a run would do it."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dsmemvp.config.recipe import Recipe
from dsmemvp.config.stages import stage_recipe
from dsmemvp.counting import counted
from dsmemvp.data.balancing import CostModel, balance, imbalance
from dsmemvp.data.collator import Collator
from dsmemvp.data.datasets import (
    TrainingData,
    data_of,
    open_search_data,
    open_test_data,
    open_training_data,
    open_validation_data,
)
from dsmemvp.data.loader import weigh
from dsmemvp.data.manifest import Manifest, check_files
from dsmemvp.data.order import Order
from dsmemvp.data.stream import Reader
from dsmemvp.data_tools.survey import survey
from dsmemvp.errors import UserError
from dsmemvp.inputs import open_inputs, stage_folders

LISTED = 20
"""Bad samples listed; the others are counted."""
BATCHES = 100
"""Global batches of the first epoch from which the balance over ranks is worked out."""


def check(recipe: Recipe, ranks: int, processes: int = 0, stage: str = "") -> tuple[list[str], int]:
    """What is to be said, line by line, and how many samples cannot be used, in a stage of the method (empty: the
    last). Raises UserError if the data as a whole cannot be."""
    if ranks < 1:
        raise UserError(f"--ranks: must be at least 1, is {ranks}")
    recipe = stage_recipe(recipe, stage)
    inputs = open_inputs(recipe, stage=stage)
    collator = replace(inputs.collator, skip_bad=True)
    lines: list[str] = []
    bad: list[str] = []
    data = None
    if any(recipe.data.train):
        data = data_of(open_training_data(recipe), recipe, stage_folders(recipe, inputs.stage))
        check_files(*data.manifests)
        # Worked out first: what it refuses is refused before hours of reading.
        about_epoch = list(_epoch(recipe, data.order, data.manifests, collator, ranks))
        said, bad, unusable = _training(recipe, data, collator, processes)
        lines += said
        if unusable and recipe.data.on_bad_sample == "skip":
            about_epoch.insert(1, _skipped(data.order, unusable))
        lines += about_epoch
    validation = open_validation_data(recipe)
    others = [(validation, "validation", collator)] if validation else []
    if recipe.data.test:
        others.append((open_test_data(recipe), "test", replace(collator, answers=True)))
    if recipe.data.search:
        scored = [*(data.manifests if data else ()), *(manifest for manifest, _, _ in others)]
        others.append((open_search_data(recipe, scored)[0], "search", collator))
    for manifest, about, own in others:
        check_files(manifest)
        found = survey(manifest, own, about, processes)
        lines += found.lines(recipe.evaluation)
        bad += found.bad
    if bad:
        lines.append(f"{counted(len(bad), 'sample')} cannot be used:")
        lines += [f"  {message}" for message in bad[:LISTED]]
        lines += [f"  and {len(bad) - LISTED} more"] if len(bad) > LISTED else []
    return lines, len(bad)


def _training(
    recipe: Recipe, data: TrainingData, collator: Collator, processes: int
) -> tuple[list[str], list[str], list[int]]:
    """Lines about every data set, messages of the samples that cannot be used, and their number in each."""
    lines: list[str] = []
    bad: list[str] = []
    unusable: list[int] = []
    for manifest, source in zip(data.manifests, data.order.sources, strict=True):
        found = survey(manifest, collator, "train", processes)
        lines += found.lines(recipe.evaluation)
        if len(data.manifests) > 1:
            share = source.per_epoch / data.order.samples
            lines.append(
                f"  {counted(source.per_epoch, 'sample')} of it in an epoch ({source.passes} passes), {share:.1%}"
            )
        bad += found.bad
        unusable.append(len(found.bad))
    return lines, bad, unusable if any(unusable) else []


def _skipped(order: Order, unusable: Sequence[int]) -> str:
    """What is left out of an epoch. Exact if every data set is gone through a whole number of times."""
    exact = all(source.passes == int(source.passes) for source in order.sources)
    number = sum(source.passes * bad for source, bad in zip(order.sources, unusable, strict=True))
    return (
        f"  {'' if exact else 'about '}{number:g} of these samples cannot be used and are skipped, which leaves"
        f" {order.samples - number:g}; a skipped sample keeps its place in the order, so its global batch is smaller"
    )


def _epoch(
    recipe: Recipe, order: Order, manifests: Sequence[Manifest], collator: Collator, ranks: int
) -> Iterable[str]:
    """What an epoch is made of, and how evenly its batches can be assigned."""
    rest = order.samples - order.steps * order.global_batch
    last = (
        f"{counted(order.repeats, 'sample is', 'samples are')} repeated to complete the last one"
        if order.repeats
        else f"{rest} left out"
    )
    yield (
        f"epoch: {counted(order.samples, 'sample')}, {counted(order.steps, 'global batch', 'global batches')} of"
        f" {order.global_batch}; {last}"
    )
    training = recipe.training
    training.micro_steps(ranks)  # refuses more ranks than samples
    reader = Reader(manifests, order.near_shards)
    costs, steps = CostModel(), range(min(BATCHES, order.steps))
    uneven, micro_steps = [], []
    for step in steps:
        weights = [weigh(reader, place, collator) for place in order.batch(step)]
        shares = balance(weights, costs, ranks, training.micro_batch, training.micro_tokens)
        uneven.append(imbalance([[sum(costs(weights[i]) for i in part) for part in rank] for rank in shares]))
        micro_steps.append(len(shares[0]))
    if uneven:
        least, most = min(micro_steps), max(micro_steps)
        in_steps = counted(most, "micro-step") if least == most else f"{least} to {most} micro-steps"
        yield (
            f"  balanced over {counted(ranks, 'rank')} in {in_steps}: the slowest rank computes"
            f" {sum(uneven) / len(uneven):.2f} x its fair share of tokens (estimated from the characters of the first"
            f" {counted(len(steps), 'global batch', 'global batches')})"
        )
