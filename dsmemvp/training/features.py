"""Features of the frozen vision tower, computed once before training (`vision.cache_features`): every rank takes its
shards of those that are missing, and all ranks then read what all have written (data/feature_files.py)."""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TypeVar

import torch

from dsmemvp.backbones.filling import fill_from_files, matched
from dsmemvp.backbones.vision import VisionTower
from dsmemvp.backbones.vision_families import built_blocks
from dsmemvp.backbones.weights import VISION_KEY, Base
from dsmemvp.data.feature_cache import CachedFeatures
from dsmemvp.data.feature_files import KEY, Settings, distinct, missing_shards, remove_partial, write_shard
from dsmemvp.data.images import ImageTransform
from dsmemvp.data.manifest import Manifest
from dsmemvp.data.order import Place
from dsmemvp.data.sample import BadSample, SampleError, read_sample
from dsmemvp.data.stream import Reader
from dsmemvp.dtypes import NAMED
from dsmemvp.errors import UserError
from dsmemvp.log import log
from dsmemvp.progress import Progress
from dsmemvp.training.context import RunContext
from dsmemvp.training.preparation import Prepared
from dsmemvp.training.stages import Span

T = TypeVar("T")
PHASE = "computing features"
AT_A_TIME = 8
"""Images of a forward on a CPU, times 8 on a GPU."""
DECODERS = 4
"""Threads that decode images, for which Pillow releases Python's lock."""


def with_features(context: RunContext, prepared: Prepared) -> Prepared:
    """The run with features in the place of pixels, if the recipe asks for it. Computes what is missing. Raises
    UserError or OSError, the same on all ranks, and Stopped."""
    name, inputs = context.recipe.vision.cache_features, prepared.span.inputs
    seeing = [span for span in prepared.spans if span.stage.vision]
    if not name or not inputs.method.sees_images or not seeing:
        return prepared
    manifests = [manifest for span in seeing for manifest in (*span.data.manifests, span.validation) if manifest]
    distinct_manifests = tuple({manifest.folder: manifest for manifest in manifests}.values())
    if any(manifest.remote for manifest in distinct_manifests):
        raise UserError(f"{KEY}: features lie beside shards, which here are remote; fetch them first, or leave it out")
    settings = feature_settings(inputs.base, prepared.start.base[VISION_KEY])
    pixels = inputs.collator.image
    assert isinstance(pixels, ImageTransform)
    _complete(context, inputs.base, distinct_manifests, settings, pixels, prepared.start.step)
    features = CachedFeatures(pixels, settings, name, distinct_manifests)
    context.ranks.together(features.check)

    def changed(span: Span) -> Span:
        collator = replace(span.inputs.collator, image=features)
        return replace(span, inputs=replace(span.inputs, collator=collator)) if span.stage.vision else span

    spans = [changed(span) for span in prepared.spans]
    return replace(prepared, spans=spans, span=spans[prepared.spans.index(prepared.span)])


def feature_settings(base: Base, fingerprint: str) -> Settings:
    """Of the recipe's tower, whose fingerprint is given."""
    recipe, configs = base.recipe, base.configs
    with torch.device("meta"):
        tower = VisionTower(configs.vision, recipe.vision.statistics, recipe.method.vision_features())
    mean, deviation = tower.statistics
    features = tower.features
    tokens, width = configs.features(features)
    return Settings(
        tower=fingerprint,
        resolution=configs.resolution,
        mean=mean,
        deviation=deviation,
        blocks=built_blocks(configs.vision, features.block),
        class_token=features.class_token,
        norm=features.norm,
        dtype=recipe.model.dtype,
        tokens=tokens,
        width=width,
    )


def _complete(
    context: RunContext,
    base: Base,
    manifests: tuple[Manifest, ...],
    settings: Settings,
    pixels: ImageTransform,
    step: int,
) -> None:
    """Compute the shards that are missing, one per rank and round."""
    ranks, name = context.ranks, context.recipe.vision.cache_features

    def missing() -> list[str]:
        """Known to the first rank, so that all agree."""
        if not ranks.first:
            return []
        for manifest in manifests:
            remove_partial(manifest, name)
        found = [(m, shard) for m, each in enumerate(manifests) for shard in missing_shards(each, name, settings)]
        return [json.dumps(place) for place in found]

    todo = [tuple(json.loads(text)) for text in ranks.gather(ranks.together(missing))]
    if not todo:
        return
    context.at("loading", step)
    tower = ranks.together(lambda: load_tower(base, ranks.device))
    images = sum(manifests[m].shards[shard].samples for m, shard in todo)
    log.info(f"features of {images} samples, once: {', '.join(str(m.folder / name) for m in manifests)}")
    with Progress("features", images, "sample", active=ranks.first) as progress:
        for round_ in _parts(todo, ranks.world):
            context.poll(PHASE, step)

            def one(round_=round_) -> None:
                if ranks.rank < len(round_):
                    m, shard = round_[ranks.rank]
                    rows = _rows(context, tower, manifests[m], shard, pixels, step)
                    write_shard(manifests[m], name, shard, settings, rows)

            ranks.together(one)
            progress.advance(sum(manifests[m].shards[shard].samples for m, shard in round_))


def load_tower(base: Base, device: torch.device) -> VisionTower:
    """The whole frozen tower on one device, in the recipe's type. Raises UserError."""
    recipe = base.recipe
    before = torch.get_default_dtype()
    torch.set_default_dtype(NAMED[recipe.model.dtype])
    try:
        tower = VisionTower(base.configs.vision, recipe.vision.statistics, recipe.method.vision_features())
    finally:
        torch.set_default_dtype(before)
    fill_from_files(matched(tower, base.vision_tensors, recipe.model.vision_tower, VISION_KEY), tell=False)
    return tower.requires_grad_(False).eval().to(device)


@torch.no_grad()
def _rows(
    context: RunContext, tower: VisionTower, manifest: Manifest, shard: int, pixels: ImageTransform, step: int
) -> Iterator[tuple[bytes, torch.Tensor]]:
    """(SHA-256, features) of the distinct images of a shard; none of those that cannot be used, of which training will
    say why. Raises OSError."""
    device, at_a_time = context.ranks.device, AT_A_TIME * (8 if context.ranks.device.type == "cuda" else 1)

    def decode(given: tuple[bytes, bytes]) -> tuple[bytes, torch.Tensor] | None:
        try:
            return given[0], pixels(given[1], "")
        except SampleError:
            return None

    with ThreadPoolExecutor(DECODERS) as pool:
        for part in _parts(distinct(_images(manifest, shard)), at_a_time):
            context.at(PHASE, step)
            found = [each for each in pool.map(decode, part) if each is not None]
            if found:
                features = tower(torch.stack([image for _, image in found]).to(device))
                yield from zip((digest for digest, _ in found), features.cpu(), strict=True)


def _images(manifest: Manifest, shard: int) -> Iterator[bytes]:
    reader = Reader([manifest], indexes=1)
    for part in _parts((Place(0, shard, i) for i in range(manifest.shards[shard].samples)), 4 * AT_A_TIME):
        for entry in reader.read(part).values():
            try:
                image = None if isinstance(entry, BadSample) else read_sample(entry).image
            except SampleError:
                continue
            if image is not None:
                yield image


def _parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    remaining = iter(items)
    while part := list(islice(remaining, size)):
        yield part
