"""Rows of the vision tower of methods whose vision prompts depend on the sample: images up to where these enter, from
there on the samples with an image, since two of them may share one.

B samples.
"""

import torch

from dsmemvp.data.batch import Batch


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
