"""Shards -> this rank's micro-batches, in worker processes.

Global batch g of an epoch is the g-th run of `global_batch` samples of the order; rank r takes every world-th of
them. Worker w makes the global batches w, w + workers, ..., so their number changes nothing. A sample that is left
out still takes its place.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dsmemvp.data import order
from dsmemvp.data.batch import Batch, Item, make_batch
from dsmemvp.data.images import ImageTransform
from dsmemvp.data.manifest import Manifest
from dsmemvp.data.sample import Sample, read_sample
from dsmemvp.data.stream import BadSample, EncodedSample, SampleError, read_in_order
from dsmemvp.data.text import Tokenizer, encode_for_answer, encode_for_training
from dsmemvp.recipe import Recipe


@dataclass(frozen=True)
class Encoder:
    """How a sample becomes an item; the same on every rank and worker."""

    tokenizer_path: str
    image: ImageTransform
    captions: bool
    max_length: int
    skip_bad: bool
    slots: int = 0
    """Places a prompting method reserves in the sequence of a sample with an image."""
    blind: bool = False
    """Replace every image by none."""
    answers: bool = False
    """Encode for reading an answer instead of for training."""

    def item(self, tokenizer: Tokenizer, sample: Sample) -> Item:
        encode = encode_for_answer if self.answers else encode_for_training
        text = encode(tokenizer, sample, self.captions, self.max_length)
        encoded = None if self.blind else sample.image
        image = self.image(encoded, sample.where) if encoded is not None else None
        return Item(sample.index, text, image)

    def items(self, tokenizer: Tokenizer, entries: list[EncodedSample | BadSample]) -> tuple[list[Item], list[str]]:
        """Items of the good entries and messages of the others; raises SampleError at the first bad one if the
        recipe does not allow skipping."""
        good, skipped = [], []
        for entry in entries:
            try:
                if isinstance(entry, BadSample):
                    raise entry.error
                good.append(self.item(tokenizer, read_sample(entry)))
            except SampleError as error:
                if not self.skip_bad:
                    raise
                skipped.append(str(error))
        return good, skipped


def recipe_encoder(recipe: Recipe, resolution: int, vocabulary: int) -> Encoder:
    """The encoder that a recipe describes, for training; `resolution` and `vocabulary` are the models'. Raises
    ValueError where the tokenizer knows more tokens than the model."""
    tokenizer = Tokenizer(recipe.model.tokenizer)
    if tokenizer.vocabulary > vocabulary:
        raise ValueError(
            f"model.tokenizer: {recipe.model.tokenizer} has {tokenizer.vocabulary} pieces, the language model only"
            f" {vocabulary}"
        )
    return Encoder(
        tokenizer_path=recipe.model.tokenizer,
        image=ImageTransform(resolution, recipe.vision.statistics, recipe.vision.max_pixels),
        captions=recipe.data.captions,
        max_length=recipe.data.max_length,
        skip_bad=recipe.data.on_bad_sample == "skip",
    )


@dataclass(frozen=True)
class Share:
    """Which part of the work is this rank's."""

    rank: int
    world: int
    global_batch: int
    micro_batch: int


Blocks = Callable[[], Iterator[list[order.Place]]]
"""One pass over the data, block by block."""


def training_steps(
    manifest: Manifest, encoder: Encoder, share: Share, seed: int, epochs: range, block_shards: int, workers: int
) -> Iterator[list[Batch]]:
    """This rank's micro-batches of every global batch of `epochs`: one list per optimizer step. The last partial
    global batch of an epoch is dropped. Raises SampleError (also out of a worker)."""
    counts = [shard.samples for shard in manifest.shards]
    steps = order.steps_per_epoch(manifest.samples, share.global_batch)
    passes: list[Blocks] = [partial(order.epoch_blocks, counts, seed, epoch, block_shards) for epoch in epochs]
    return _load(_Steps(manifest, encoder, share, passes, steps), workers)


def evaluation_steps(manifest: Manifest, encoder: Encoder, share: Share, workers: int) -> Iterator[list[Batch]]:
    """All samples in file order, one list of micro-batches per step, the same number on every rank: the last may be
    smaller or empty."""
    steps = -(-manifest.samples // share.global_batch)
    whole: Blocks = partial(order.file_order, [shard.samples for shard in manifest.shards])
    return _load(_Steps(manifest, encoder, share, [whole], steps), workers)


@dataclass
class _Steps(IterableDataset):
    manifest: Manifest
    encoder: Encoder
    share: Share
    passes: list[Blocks]
    """For each pass over the data, its places block by block."""
    steps: int
    """Global batches in a pass."""

    def __iter__(self) -> Iterator[list[Batch] | SampleError]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        tokenizer = Tokenizer(self.encoder.tokenizer_path)
        try:
            for step, entries in enumerate(self._global_batches()):
                if step % workers == worker:
                    yield self._batches(tokenizer, entries[self.share.rank :: self.share.world])
        except SampleError as error:
            yield error  # an exception raised in a worker reaches the main process wrapped in a traceback

    def _global_batches(self) -> Iterator[list[EncodedSample | BadSample]]:
        for blocks in self.passes:
            entries = (entry for block in blocks() for entry in read_in_order(self.manifest, block))
            for _ in range(self.steps):
                yield list(islice(entries, self.share.global_batch))

    def _batches(self, tokenizer: Tokenizer, entries: list[EncodedSample | BadSample]) -> list[Batch]:
        batches = []
        size = self.share.micro_batch
        for start in range(0, self.share.global_batch // self.share.world, size):
            items, skipped = self.encoder.items(tokenizer, entries[start : start + size])
            resolution = self.encoder.image.resolution
            batches.append(
                make_batch(items, resolution, self.encoder.slots, tuple(skipped), last_only=self.encoder.answers)
            )
        return batches


def _load(dataset: _Steps, workers: int) -> Iterator[list[Batch]]:
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        # its own generator: making the iterator must not draw from the run's random state
        generator=torch.Generator().manual_seed(0),
        multiprocessing_context=multiprocessing.get_context("forkserver") if workers else None,
        worker_init_fn=_one_thread,
    )
    for step in loader:
        if isinstance(step, SampleError):
            raise step
        yield step


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
