"""The loaders that benchmarks/loader.py compares: each opens a data set and gives batches, from where it is asked to.

A contender is added by its name and format here and a writer of that format in loader_sets.py.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loader_sets import Set, import_streaming

BATCH, BLOCK_SHARDS = 32, 16
THIS, WEBDATASET, MOSAICML, LITDATA = "this loader", "webdataset", "MosaicML streaming", "LitData"
FORMATS = {THIS: "tar", WEBDATASET: "tar", MOSAICML: "mds", LITDATA: "litdata"}


@dataclass(frozen=True)
class Job:
    """One measurement, made in a process of its own."""

    contender: str
    kind: str
    """raw, jpeg, memory, resume, check or write"""
    chosen: Set
    folder: str
    start: float = 0.0
    """Where in the epoch to begin."""
    workers: int = 0

    @property
    def path(self) -> Path:
        return Path(self.folder) / self.chosen.name / FORMATS[self.contender]

    @property
    def first(self) -> int:
        """The first batch."""
        return int(self.chosen.samples * self.start) // BATCH

    @property
    def tokenizer(self) -> Path:
        return Path(self.folder) / "tokenizer.model"


Opened = Callable[[], Iterator]
"""Opens the data and gives batches: lists of samples' encoded members, or the collator's batches of tensors."""


@dataclass(frozen=True)
class Bytes:
    """A collator that hands out what it is given."""

    tokenizer_path: str
    endings: tuple[str, ...]
    reserved: tuple = ()
    blind: bool = False
    max_length: int = 512

    def batch(self, tokenizer, entries, epoch=0) -> list[tuple[bytes, ...]]:
        return [tuple(entry.members[ending] for ending in self.endings) for _, entry in entries]


def _collator(job: Job):
    from dsmemvp.data.collator import Collator
    from dsmemvp.data.images import ImageTransform

    if job.kind != "jpeg":
        return Bytes(str(job.tokenizer), job.chosen.members)
    image = ImageTransform(224, 50_000_000)
    return Collator(str(job.tokenizer), image, captions=False, max_length=512, skip_bad=False)


def _encoded(job: Job, batches: Callable[[], Iterator[list[tuple[bytes, ...]]]]) -> Opened:
    """Batches of another loader, through this project's collator if the job asks for it."""
    from dsmemvp.data.sample import EncodedSample
    from dsmemvp.data.tokenizer import Tokenizer

    collator, tokenizer = _collator(job), Tokenizer(job.tokenizer)

    def encoded() -> Iterator:
        for batch in batches():
            samples = [
                EncodedSample(dict(zip(job.chosen.members, sample, strict=True)), "", int(sample[0][8:16]))
                for sample in batch
            ]
            yield collator.batch(tokenizer, list(enumerate(samples)))

    return encoded if job.kind == "jpeg" else batches


def _open_this(job: Job) -> Opened:
    from dsmemvp.data.loader import Share, training_steps
    from dsmemvp.data.manifest import read_manifest
    from dsmemvp.data.order import Order, Source

    collator = _collator(job)

    def batches() -> Iterator:
        manifest = read_manifest(job.path)
        order = Order([Source(manifest.counts)], 0, BLOCK_SHARDS, BATCH, "repeat")
        steps = training_steps(
            [manifest], order, collator, Share(0, 1, BATCH), range(job.first, order.steps), job.workers
        )
        return (batch for step in steps for batch in step)

    return batches


def _open_webdataset(job: Job) -> Opened:
    from torch.utils.data import DataLoader
    from webdataset import WebDataset

    urls = sorted(map(str, job.path.glob("*.tar")))
    size = job.chosen.per_shard * BLOCK_SHARDS

    def batches() -> Iterator[list[tuple[bytes, ...]]]:
        data = WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(size, initial=size, seed=0)
        data = data.to_tuple(*job.chosen.members).batched(BATCH, collation_fn=list)
        loader = DataLoader(data, batch_size=None, num_workers=0, collate_fn=_as_is)
        return itertools.islice(loader, job.first, None)

    return _encoded(job, batches)


def _open_mosaicml(job: Job) -> Opened:
    from torch.utils.data import DataLoader

    streaming = import_streaming()
    collate = functools.partial(_members, job.chosen.members)

    def batches() -> Iterator[list[tuple[bytes, ...]]]:
        block = job.chosen.per_shard * BLOCK_SHARDS
        data = streaming.StreamingDataset(
            local=str(job.path), shuffle=True, batch_size=BATCH, shuffle_block_size=block, num_canonical_nodes=1
        )
        if job.first:
            data.load_state_dict({**data.state_dict(job.first * BATCH, from_beginning=True), "epoch": 0})
        return iter(DataLoader(data, batch_size=BATCH, num_workers=job.workers, collate_fn=collate))

    return _encoded(job, batches)


def _open_litdata(job: Job) -> Opened:
    from litdata import StreamingDataLoader, StreamingDataset

    collate = functools.partial(_members, job.chosen.members)

    def batches() -> Iterator[list[tuple[bytes, ...]]]:
        data = StreamingDataset(str(job.path), shuffle=True)
        context = "forkserver" if job.workers else None
        loader = StreamingDataLoader(
            data, batch_size=BATCH, num_workers=job.workers, collate_fn=collate, multiprocessing_context=context
        )
        if job.first:
            done = job.first * BATCH
            data.set_epoch(1)
            state = {"dataset": data.state_dict(done, job.workers, BATCH), "current_epoch": 1}
            loader.load_state_dict({**state, "num_samples_yielded": done, "latest_worker_idx": 0})
        return iter(loader)

    return _encoded(job, batches)


def _as_is(batch: list) -> list:
    """Without it torch looks into every sample for arrays to convert."""
    return batch


def _members(endings: tuple[str, ...], samples: list[dict[str, Any]]) -> list[tuple[bytes, ...]]:
    """LitData gives views of a mapped file, which a worker could not send: they become bytes."""
    return [tuple(bytes(sample[ending]) for ending in endings) for sample in samples]


OPEN: dict[str, Callable[[Job], Opened]] = {
    THIS: _open_this,
    WEBDATASET: _open_webdataset,
    MOSAICML: _open_mosaicml,
    LITDATA: _open_litdata,
}
