"""Greedy decoding with a function that knows the answer in place of a model."""

from itertools import pairwise

import pytest
import torch

from dsmemvp.data.batch import Item, make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.evaluation.decode import decode_greedily

VOCABULARY = 50


class Counting:
    """Predicts, at every supervised place, the token there plus one; remembers the batches it saw."""

    def __init__(self):
        self.seen = []

    def __call__(self, batch):
        self.seen.append(batch)
        rows = torch.full((batch.size * batch.length,), -1)
        rows[batch.place] = batch.tokens
        here = rows[batch.supervised]
        assert (here >= 0).all()
        return torch.nn.functional.one_hot(here + 1, VOCABULARY).float()


def batch(slots, texts=((1, 10), (1, 5, 20), (1, 2, 3, 30))):
    items = [
        Item(100 + b, EncodedText(list(text), len(text), b == 1), torch.full((3, 2, 2), float(b)) if b != 1 else None)
        for b, text in enumerate(texts)
    ]
    return make_batch(items, 2, slots, last_only=True)


@pytest.mark.parametrize("slots", [0, 3])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_each_sample_goes_on_from_its_own_last_token(slots, steps):
    forward = Counting()
    decoded = decode_greedily(forward, batch(slots), slots, steps)
    assert decoded == [[last + 1 + k for k in range(steps)] for last in (10, 20, 30)]
    assert len(forward.seen) == steps


def test_what_was_decoded_is_put_behind_the_text_and_all_else_stays():
    forward = Counting()
    decode_greedily(forward, batch(2), 2, 3)
    for step, seen in enumerate(forward.seen):
        offsets = seen.offsets.tolist()
        texts = [seen.tokens[a:b].tolist() for a, b in pairwise(offsets)]
        assert texts == [[*t, *range(t[-1] + 1, t[-1] + 1 + step)] for t in ([1, 10], [1, 5, 20], [1, 2, 3, 30])]
        assert seen.image_of.tolist() == [0, -1, 1] and seen.images[:, 0, 0, 0].tolist() == [0.0, 2.0]
        assert seen.slot_place.numel() == 4 and seen.indices.tolist() == [100, 101, 102]
        assert seen.supervised.numel() == 3


def test_it_ends_when_every_sample_is_over_on_every_rank():
    forward, asked = Counting(), []

    def any_rank(own):
        asked.append(own)
        return len(asked) < 4 or own  # another rank needs 4 tokens

    ends = (12, 23, 31)  # after 2, 3 and 1 tokens
    decoded = decode_greedily(forward, batch(0), 0, 9, lambda b, tokens: ends[b] in tokens, any_rank)
    assert decoded == [[11, 12, 13, 14], [21, 22, 23, 24], [31, 32, 33, 34]]
    assert asked == [True, True, False, False]


@pytest.mark.parametrize("steps", [1, 3])
def test_an_empty_batch_takes_every_step_and_decodes_nothing(steps):
    calls = []

    def forward(batch):
        calls.append(batch.size)
        return torch.zeros(0, VOCABULARY)

    assert decode_greedily(forward, make_batch([], 2, last_only=True), 0, steps) == []
    assert calls == [1] * steps
