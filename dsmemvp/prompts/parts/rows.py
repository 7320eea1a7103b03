"""Where the two forms of MITP put their prompts, and where they find them again: slots of the pack, and tokens before
the vision tower's own.

Rows of the vision tower are images up to where prompts enter that depend on the sample; from there on they are the
samples with an image, since two of them may share one. T tokens in the pack, B samples, n prompts.
"""

from collections.abc import Sequence

import torch

from dsmemvp.data.batch import Batch


def write_slots(hidden_1Td: torch.Tensor, text_Bnd: torch.Tensor, places: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The prompts, [1 or B, n, d], in their places; those of a lone token, which has none, enter with weight zero."""
    if places.numel() == 0:
        return hidden_1Td + 0.0 * text_Bnd.sum()
    text_1Nd = text_Bnd.expand(batch.size, -1, -1).flatten(0, 1)[None]
    return hidden_1Td.index_copy(1, places, text_1Nd.to(hidden_1Td.dtype))


def read_slots(hidden_1Td: torch.Tensor, text_Bnd: torch.Tensor, places: torch.Tensor, batch: Batch) -> torch.Tensor:
    """What a block has made of `text_Bnd` in these places: [B, n, d]."""
    if places.numel() == 0:
        return text_Bnd
    return hidden_1Td[0, places].unflatten(0, (batch.size, text_Bnd.shape[1]))


def enter_vision(
    hidden: torch.Tensor, prompts: torch.Tensor, block: int, points: Sequence[int], batch: Batch
) -> torch.Tensor:
    """The vision tower's rows on entering a block: without the prompts of the block before, and at a point with
    `prompts`, [1 or B, n, v], in front."""
    if block - 1 in points:
        hidden = hidden[:, prompts.shape[1] :]
    if block not in points:
        return hidden
    if block != points[0]:
        prompts, hidden = with_image(prompts, batch), row_each(hidden, batch)
    return torch.cat((prompts.expand(len(hidden), -1, -1), hidden), dim=1)


def with_image(per_sample: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Of [B, ..] the rows of the samples with an image; the first one's if there is none, for the dummy row."""
    return per_sample[_with_image(batch) or [0]]


def row_each(per_image: torch.Tensor, batch: Batch) -> torch.Tensor:
    """A row for every sample with an image; as it is if that is so already."""
    samples = _with_image(batch)
    if not samples or len(per_image) == len(samples):
        return per_image
    return per_image[[batch.image_rows[b] for b in samples]]


def of_samples(rows: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[B, ..] of rows per image or per sample with an image; a sample without one gets any row."""
    samples = _with_image(batch)
    if len(rows) != len(samples):
        return rows[[max(row, 0) for row in batch.image_rows]]
    places = {b: place for place, b in enumerate(samples)}
    return rows[[places.get(b, 0) for b in range(batch.size)]]


def _with_image(batch: Batch) -> list[int]:
    return [b for b, row in enumerate(batch.image_rows) if row >= 0]
