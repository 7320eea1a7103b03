"""Stores what a stage's teacher makes of the captions (data/vectors.py): each rank computes some of the shards, one
joins them. Interrupted, it goes on with the shards that are missing."""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dsmemvp.data.captions import CaptionReader, CaptionRow
from dsmemvp.data.manifest import Manifest
from dsmemvp.data.order import Place
from dsmemvp.data.packing import batch_captions
from dsmemvp.data.sample import BadSample, SampleError, read_sample
from dsmemvp.data.stream import Reader
from dsmemvp.data.vectors import (
    CaptionVectors,
    check_vectors,
    follows_from,
    join_parts,
    part_path,
    vectors_path,
    write_part,
)
from dsmemvp.training.context import RunContext
from dsmemvp.training.engine import Trainer
from dsmemvp.training.monitor import Monitor
from dsmemvp.training.stages import Span

BATCH = 256
"""Captions at once."""


def stored_vectors(context: RunContext, trainer: Trainer, span: Span, monitor: Monitor, step: int) -> CaptionVectors:
    """Of all data sets of the stage, computed where they are not there. All ranks call it together. Raises UserError or
    OSError."""
    reader, ranks = span.inputs.collator.caption_reader, context.ranks
    assert reader is not None and trainer.model.teacher is not None
    teacher = _digest(trainer.model.teacher.module)
    paths = []
    for manifest in span.data.manifests:
        known = follows_from(manifest, reader.text, teacher)
        # a remote data set is read only
        path = vectors_path(context.folder if manifest.remote else manifest.folder, known)
        if not ranks.any(path.is_file()):
            monitor.say(f"stage {span.name}: storing the vectors of {manifest.samples:,} captions in {path}")
            width = _store_missing(context, trainer, manifest, reader, path, step)
            join = partial(join_parts, path, manifest.counts, width, known)
            ranks.together(join if ranks.first else lambda: None)
        ranks.together(partial(check_vectors, path, manifest.samples) if ranks.first else lambda: None)
        paths.append(path)
    return CaptionVectors(tuple(paths))


def _store_missing(
    context: RunContext, trainer: Trainer, manifest: Manifest, reader: CaptionReader, path: Path, step: int
) -> int:
    """Returns the width of a vector."""
    ranks, device = context.ranks, context.ranks.device
    empty = batch_captions([], reader).map(lambda tensor: tensor.to(device))
    with torch.no_grad():
        width = trainer.model.method.caption_vectors(empty).shape[1]
    shards = range(len(manifest.counts))
    for turn in range(0, len(shards), ranks.world):  # all ranks take as many turns
        context.poll("storing vectors", step)
        shard = turn + ranks.rank
        if shard < len(shards) and not part_path(path, shard).is_file():
            vectors_NH = np.zeros((manifest.counts[shard], width), dtype=np.float32)
            rows = list(_rows(manifest, shard, reader))
            for start in range(0, len(rows), BATCH):
                numbered = rows[start : start + BATCH]
                captions = batch_captions([row for _, row in numbered], reader).map(lambda t: t.to(device))
                with torch.no_grad():
                    found = trainer.model.method.caption_vectors(captions).float().cpu().numpy()
                vectors_NH[[number for number, _ in numbered]] = found
            write_part(path, shard, vectors_NH)
    ranks.together(lambda: None)
    return width


def _rows(manifest: Manifest, shard: int, reader: CaptionReader) -> Iterator[tuple[int, CaptionRow]]:
    """The captions of a shard that can be read, with their places in it."""
    entries = Reader([manifest], indexes=1)
    places = [Place(0, shard, sample) for sample in range(manifest.counts[shard])]
    for number, entry in enumerate(entries.read(places, images=False).values()):
        try:
            if not isinstance(entry, BadSample):
                yield number, reader.row(read_sample(entry), 0)
        except SampleError:
            continue


def _digest(teacher: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(teacher.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
