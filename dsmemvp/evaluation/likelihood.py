"""Multiple choice by likelihood: which of the letters of its choices a model would rather write.

A choice's target is, as in training, "The answer is B." behind the prompt. What is summed are the natural logarithms of
the probabilities of the tokens that come after those of "The answer is", up to the one that completes the letter: for
LLaMA's tokenizers the one token " B", with others all tokens of the letter (data/letters.py). Full stop and end do not
count, and nothing is normalised: a sum says how probable it is that the letter is written. The letter with the highest
sum is the answer, the first one of equal sums.

Letters whose tokens but the last are the same are read from one row of the batch, so with LLaMA's tokenizers a question
costs what one decoded token costs. Rows of one sample share its image.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dsmemvp.data.batch import Batch, Item
from dsmemvp.data.layout import Reserved
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText


def log_likelihoods(
    forward: Callable[[Batch], tuple[torch.Tensor, Any]],
    batch: Batch,
    reserved: Sequence[Reserved],
    endings: Sequence[Sequence[tuple[int, ...]]],
) -> list[list[float]]:
    """[B][endings of sample b]: the log-likelihood of each of `endings[b]` after sample b of `batch` (made with
    last_only). One forward, with or without any ending."""
    rows = {(b, ending[:-1]): ending for b, own in enumerate(endings) for ending in own}
    texts, images = _texts(batch, reserved), list(batch.images)
    items, start, supervised = [], {}, 0
    for (b, before), ending in rows.items():
        text, row = texts[b], batch.image_rows[b]
        # the ending's last token is there for the places before it to be supervised: it changes nothing at them
        longer = EncodedText([*text.tokens, *ending], text.prompt, False, text.bos, text.cue)
        items.append(Item(b, longer, images[row] if row >= 0 else None))
        supervised += len(longer.tokens) - longer.prompt
        start[b, before] = supervised - len(ending)
    logits, _ = forward(make_batch(items, batch.images.shape[-1], reserved).batch)
    wanted = [
        (start[b, ending[:-1]] + i, token)
        for b, own in enumerate(endings)
        for ending in own
        for i, token in enumerate(ending)
    ]
    at, token = torch.tensor(wanted, dtype=torch.long, device=logits.device).reshape(-1, 2).unbind(1)
    found = iter(logits.double().log_softmax(-1)[at, token].tolist())
    return [[sum(next(found) for _ in ending) for ending in own] for own in endings]


def _texts(batch: Batch, reserved: Sequence[Reserved]) -> list[EncodedText]:
    """The samples' texts, without the places that are reserved in them; behind those before the cue stands the cue."""
    at_text = torch.ones_like(batch.tokens, dtype=torch.bool)
    for places in batch.places.values():
        at_text[places] = False
    before_cue = [place for r in reserved if r.anchor == "before_cue" for place in batch.places[r.name].tolist()]
    texts = []
    for (start, stop), ((question, _), (answer, _)) in zip(batch.bounds, batch.spans.tolist(), strict=True):
        bos, prompt = (int(at_text[start:end].sum()) for end in (question, answer))
        behind = max((place + 1 for place in before_cue if start <= place < stop), default=answer)
        cue = int(at_text[behind:answer].sum())
        texts.append(EncodedText(batch.tokens[start:stop][at_text[start:stop]].tolist(), prompt, False, bos, cue))
    return texts


def likeliest(likelihoods: Sequence[float]) -> int:
    """The first of the highest."""
    return max(range(len(likelihoods)), key=likelihoods.__getitem__)
