"""Samples -> one packed micro-batch (batch.py, with the shapes' legend)."""

import zlib
from collections.abc import Sequence
from typing import Any

import torch

from dsmemvp.data.batch import Batch, Captions, Item, Labels, MicroBatch
from dsmemvp.data.captions import CaptionReader, CaptionRow
from dsmemvp.data.layout import LONE, Reserved, lay_out


def make_batch(
    items: Sequence[Item],
    resolution: int,
    reserved: Sequence[Reserved] = (),
    last_only: bool = False,
    labels: Labels | None = None,
) -> MicroBatch:
    """Pack items in their order. `last_only` supervises only the last token of each (with target 0): for reading an
    answer. With `labels` the first or last token of each text is supervised alone, with the sample's labels.

    No items make a batch of one lone token that trains nothing: every rank must run the same modules even if all its
    samples were left out. Items that hold the same image tensor share its row.
    """
    images, rows = _distinct_images(items)
    packed = [lay_out(item.text, item.image is not None, reserved, last_only and labels is None) for item in items] or [
        LONE
    ]
    if labels is not None:
        packed = [lay._replace(supervised=lay.ends(labels.place) if items else (), targets=[]) for lay in packed]
    lengths = [len(layout.tokens) for layout in packed]
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    at = list(zip(starts, packed, strict=False))
    batch = Batch(
        tokens=torch.tensor([token for layout in packed for token in layout.tokens]),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        spans=torch.tensor([[[start + edge for edge in span] for span in layout.spans] for start, layout in at]),
        places={r.name: _indices(start + i for start, lay in at for i in lay.places.get(r.name, ())) for r in reserved},
        supervised=_indices(start + i for start, layout in at for i in layout.supervised),
        targets=labels.targets([item.labels for item in items])
        if labels is not None
        else _indices(target for layout in packed for target in layout.targets),
        images=torch.stack(images) if images else torch.zeros(0, 3, resolution, resolution, dtype=torch.uint8),
        image_of=torch.tensor(rows or [-1]),
        lengths=tuple(lengths),
        image_rows=tuple(rows or [-1]),
        supervised_counts=tuple(len(layout.supervised) for layout in packed),
        sample_ids=torch.tensor([item.index for item in items] or [-1]),
        image_ids=_indices(_checksum(image) for image in images),
    )
    return MicroBatch(
        batch,
        indices=tuple(item.index for item in items),
        cut=sum(item.text.cut for item in items),
        samples=tuple(item.sample for item in items if item.sample is not None),
    )


def batch_captions(rows: Sequence[CaptionRow], reader: CaptionReader) -> Captions:
    """Of no rows, one of padding alone: the batch then holds a lone token."""
    tokens_BL = torch.full((max(len(rows), 1), reader.text.length), reader.pieces.pad)
    drawn_BL = torch.zeros(tokens_BL.shape, dtype=torch.bool)
    lengths = tuple(len(row.tokens) for row in rows) or (0,)
    for number, row in enumerate(rows):
        tokens_BL[number, : len(row.tokens)] = torch.tensor(row.tokens)
        drawn_BL[number, : len(row.tokens)] = torch.from_numpy(row.drawn)
    mask_BL = torch.arange(reader.text.length) < torch.tensor(lengths)[:, None]
    return Captions(tokens_BL, mask_BL, drawn_BL, lengths, reader.pieces.mask)


def by_image(items: Sequence[Item]) -> list[Item]:
    """Items of one image side by side, in the order of their first ones, and those without an image last: each of these
    groups is one run of tokens. The sort is stable."""
    first: dict[int, int] = {}
    for place, item in enumerate(items):
        if item.image is not None:
            first.setdefault(id(item.image), place)
    return sorted(items, key=lambda item: first.get(id(item.image), len(items)))


def _distinct_images(items: Sequence[Item]) -> tuple[list[torch.Tensor], list[int]]:
    images: list[torch.Tensor] = []
    row_of: dict[int, int] = {}
    rows: list[int] = []
    for item in items:
        if item.image is not None and id(item.image) not in row_of:
            row_of[id(item.image)] = len(images)
            images.append(item.image)
        rows.append(-1 if item.image is None else row_of[id(item.image)])
    return images, rows


def _checksum(image: torch.Tensor) -> int:
    pixels: Any = image.contiguous().view(torch.uint8).numpy()
    return zlib.crc32(pixels)


def _indices(numbers) -> torch.Tensor:
    return torch.tensor(list(numbers), dtype=torch.long)
