"""Batches as decoding wants them: prompts that all end at the same place, then one token per sample.

B samples, L places.
"""

from dataclasses import replace

import torch

from dsmemvp.data.batch import Batch


def left_padded(batch: Batch) -> tuple[Batch, torch.Tensor]:
    """The samples of `batch` (made with last_only) moved to the right end of their rows, and [B, L] int64: 1 where
    there is a token or slot, 0 for padding. Each row's last place is supervised, also that of an empty batch."""
    L = batch.length
    ends = torch.arange(1, batch.size + 1, device=batch.place.device) * L - 1
    last = batch.supervised if batch.indices.numel() else batch.place
    shift_B = ends - last
    moved = replace(
        batch,
        place=batch.place + shift_B[batch.place // L],
        slot_place=batch.slot_place + shift_B[batch.slot_place // L],
        supervised=ends,
    )
    return moved, (torch.arange(L, device=shift_B.device) >= shift_B[:, None]).long()


def next_tokens(tokens_B: torch.Tensor, before: Batch) -> Batch:
    """One token more of every sample, without images and slots."""
    B = tokens_B.shape[0]
    nothing = before.slot_place[:0]
    each = torch.arange(B, device=tokens_B.device)
    return replace(
        before,
        tokens=tokens_B,
        offsets=torch.arange(B + 1, device=tokens_B.device),
        supervised=each,
        targets=torch.zeros_like(each),
        images=before.images[:0],
        place=each,
        slot_place=nothing,
        length=1,
    )
