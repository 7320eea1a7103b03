"""Greedy decoding of a few tokens, in step with the other ranks (under ZeRO-3 every rank must run every forward)."""

from collections.abc import Callable

import torch

from dsmemvp.data.batch import Batch, Item, make_batch
from dsmemvp.data.text import EncodedText


def decode_greedily(
    forward: Callable[[Batch], torch.Tensor],
    batch: Batch,
    slots: int,
    steps: int,
    over: Callable[[int, list[int]], bool] = lambda sample, tokens: False,
    any_rank: Callable[[bool], bool] = lambda own: True,
) -> list[list[int]]:
    """Up to `steps` tokens after each sample of `batch` (made with last_only), the same number for each. Ends sooner
    where the tokens of every sample are `over`: `any_rank(own)` says whether some rank's are not. `forward` gives the
    logits at the supervised places."""
    texts = _texts(batch)
    decoded: list[list[int]] = [[] for _ in texts]
    for step in range(steps):
        logits = forward(batch)[: len(texts)]
        for own, token in zip(decoded, logits.argmax(-1).tolist(), strict=True):
            own.append(token)
        if step + 1 == steps or not any_rank(any(not over(b, own) for b, own in enumerate(decoded))):
            break
        batch = _longer(batch, [t + d for t, d in zip(texts, decoded, strict=True)], slots)
    return decoded


def _texts(batch: Batch) -> list[list[int]]:
    tokens, offsets = batch.tokens.tolist(), batch.offsets.tolist()
    samples = batch.indices.numel()  # none in a batch that only keeps step with other ranks
    return [tokens[offsets[b] : offsets[b + 1]] for b in range(samples)]


def _longer(batch: Batch, texts: list[list[int]], slots: int) -> Batch:
    """The same samples and images with other texts."""
    rows, indices = batch.image_of.tolist(), batch.indices.tolist()
    items = [
        Item(indices[b], EncodedText(text, len(text), False), batch.images[rows[b]] if rows[b] >= 0 else None)
        for b, text in enumerate(texts)
    ]
    return make_batch(items, batch.images.shape[-1], slots, last_only=True)
