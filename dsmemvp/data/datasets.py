"""The data sets that a recipe names, and the order of its run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsmemvp.config.recipe import Recipe
from dsmemvp.counting import counted
from dsmemvp.data.cache import Cache
from dsmemvp.data.location import is_remote, masked
from dsmemvp.data.manifest import Manifest, open_manifest
from dsmemvp.data.order import Order, Source
from dsmemvp.errors import UserError

MOST_IN_BLOCK = 10_000_000
"""Samples: ten seconds of shuffling."""


@dataclass(frozen=True)
class TrainingData:
    manifests: tuple[Manifest, ...]
    order: Order
    identity: dict[str, Any]
    """All that the order follows from, by the recipe's keys: a run can only resume in the same one."""


def open_training_data(recipe: Recipe) -> TrainingData:
    """Raises UserError or OSError with what to do."""
    data, training = recipe.data, recipe.training
    if not any(data.train):
        raise UserError("data.train: name the folder of shards to train on, or several")
    manifests = tuple(open_manifest(location, _cache(recipe, location)) for location in data.train)
    passes = data.passes or [1.0] * len(manifests)
    sources = [Source(manifest.counts, often) for manifest, often in zip(manifests, passes, strict=True)]
    for manifest, source in zip(manifests, sources, strict=True):
        if source.per_epoch == 0:
            raise UserError(
                f"data.passes: {source.passes} of the {counted(source.samples, 'sample')} of"
                f" {manifest.location} is not one sample"
            )
    _check_cache(manifests, data.block_shards)
    _check_blocks(manifests, data.block_shards)
    order = _order(recipe, manifests, sources)
    identity = {
        "seed": recipe.seed,
        "training.global_batch": training.global_batch,
        "data.block_shards": data.block_shards,
        "data.last_batch": data.last_batch,
        "data.passes": passes,
        "data.train": [manifest.fingerprint for manifest in manifests],
    }
    return TrainingData(manifests, order, identity)


def data_of(data: TrainingData, recipe: Recipe, locations: Sequence[str]) -> TrainingData:
    """The part of a run's data that lies at these of data.train (none: all), in an order of its own. Raises UserError
    for a location that data.train does not name."""
    if not locations:
        return data
    for location in locations:
        if location not in recipe.data.train:
            raise UserError(f"data.train: a stage of method {recipe.method.name} reads {location}; name it there, too")
    passes = recipe.data.passes or [1.0] * len(data.manifests)
    chosen = [
        (manifest, often)
        for location, manifest, often in zip(recipe.data.train, data.manifests, passes, strict=True)
        if location in locations
    ]
    manifests = tuple(manifest for manifest, _ in chosen)
    order = _order(recipe, manifests, [Source(manifest.counts, often) for manifest, often in chosen])
    return TrainingData(manifests, order, data.identity)


def _order(recipe: Recipe, manifests: Sequence[Manifest], sources: list[Source]) -> Order:
    data, training = recipe.data, recipe.training
    order = Order(sources, recipe.seed, data.block_shards, training.global_batch, data.last_batch)
    if order.steps == 0:
        raise UserError(
            f"training.global_batch: {training.global_batch} is more than the"
            f" {counted(order.samples, 'sample')} of an epoch of"
            f" {', '.join(manifest.location for manifest in manifests)}; take a smaller one, or data.last_batch=repeat"
        )
    return order


def open_test_data(recipe: Recipe) -> Manifest:
    """Raises UserError or OSError with what to do."""
    if not recipe.data.test:
        raise UserError("data.test: give the folder of shards to evaluate on")
    return _open_in_file_order(recipe, recipe.data.test)


def open_validation_data(recipe: Recipe) -> Manifest | None:
    """None if the recipe has none; raises as above."""
    return _open_in_file_order(recipe, recipe.data.validation) if recipe.data.validation else None


def open_search_data(recipe: Recipe, others: Sequence[Manifest]) -> tuple[Manifest, Order]:
    """The shards that a search scores on, and the order in which it goes through them. Raises UserError also if they
    are `others`, by which the search's result is trained or judged."""
    manifest = open_manifest(recipe.data.search, _cache(recipe, recipe.data.search))
    _check_cache([manifest], recipe.data.block_shards)
    if same := next((other for other in others if other.fingerprint == manifest.fingerprint), None):
        raise UserError(f"data.search: has the samples of {same.location}; a search needs some of its own")
    batch = recipe.search.batch or max(1, recipe.training.global_batch // 2)
    source = Source(manifest.counts)
    return manifest, Order([source], recipe.seed, recipe.data.block_shards, batch, "repeat")


def _open_in_file_order(recipe: Recipe, location: str) -> Manifest:
    manifest = open_manifest(location, _cache(recipe, location))
    _check_cache([manifest], 1)
    return manifest


def _cache(recipe: Recipe, location: str) -> Cache:
    data = recipe.data
    if is_remote(location) and not data.cache:
        raise UserError(f"data.cache: {masked(location)} is remote; give a folder on a local disk to keep shards in")
    return Cache(Path(data.cache), int(data.cache_gib * 2**30), data.allow_pipe, data.remote_timeout)


def _check_cache(manifests: Sequence[Manifest], block_shards: int) -> None:
    """Below the size of the blocks that are read in turns, each shard would be fetched again and again."""
    limits = [manifest.remote.cache.limit for manifest in manifests if manifest.remote]
    blocks = sum(_largest(manifest, block_shards) for manifest in manifests if manifest.remote)
    if limits and blocks > limits[0]:
        where = ", ".join(manifest.location for manifest in manifests if manifest.remote)
        raise UserError(
            f"data.cache_gib: {limits[0] / 2**30:.3g} GiB do not hold two blocks of"
            f" {counted(block_shards, 'shard')} of {where},"
            f" up to {blocks / 2**30:.3g} GiB; raise it, or lower data.block_shards"
        )


def _check_blocks(manifests: Sequence[Manifest], block_shards: int) -> None:
    """Every worker shuffles the samples of a block by itself."""
    for manifest in manifests:
        most = sum(sorted(manifest.counts, reverse=True)[:block_shards])
        if most > MOST_IN_BLOCK:
            raise UserError(
                f"data.block_shards: a block of {counted(block_shards, 'shard')} of {manifest.location} has"
                f" up to {counted(most, 'sample')},"
                f" at most {MOST_IN_BLOCK} are shuffled at once; lower it, or prepare smaller shards"
            )


def _largest(manifest: Manifest, block_shards: int) -> int:
    """Bytes of the largest block there can be, and the next: ranks are not all in the same one."""
    return sum(sorted(manifest.table.bytes.tolist(), reverse=True)[: 2 * block_shards])
