"""A batch packed and the same batch padded: every token, slot and target in its place."""

from dataclasses import replace

import pytest
import torch
from making import sample

from dsmemvp.data.batch import Item, Skip, make_batch
from dsmemvp.data.text import EncodedText

R = 4


def item(index, tokens, prompt, image=False, cut=False) -> Item:
    pixels = torch.full((3, R, R), float(index)) if image else None
    return Item(index, EncodedText(list(tokens), prompt, cut), pixels)


@pytest.fixture
def items():
    """Three lengths; the first and the last have an image."""
    return [
        item(10, [1, 11, 12, 13, 14], 3, image=True),
        item(20, [1, 21, 22, 23, 24, 25, 26, 27], 5, cut=True),
        item(30, [1, 31, 32], 2, image=True),
    ]


def padded(batch, values) -> list[list[int]]:
    """Packed values laid out as [B, L]; -1 where nothing stands."""
    out = torch.full((batch.size * batch.length,), -1)
    out[batch.place] = values
    return out.view(batch.size, batch.length).tolist()


def test_packed_tokens_stand_one_sample_after_another(items):
    batch = make_batch(items, R)
    assert batch.tokens.tolist() == [1, 11, 12, 13, 14, 1, 21, 22, 23, 24, 25, 26, 27, 1, 31, 32]
    assert batch.offsets.tolist() == [0, 5, 13, 16]
    assert batch.indices.tolist() == [10, 20, 30]
    assert (batch.size, batch.length, batch.cut, batch.cost) == (3, 8, 1, 24)
    assert batch.skipped == batch.dealt == batch.samples == ()


def test_without_slots_the_padded_rows_are_the_texts_filled_up_on_the_right(items):
    batch = make_batch(items, R)
    rows = padded(batch, batch.tokens)
    assert rows == [i.text.tokens + [-1] * (8 - len(i.text.tokens)) for i in items]
    assert batch.slot_place.numel() == 0


def test_slots_stand_after_bos_of_the_samples_with_an_image_only(items):
    batch = make_batch(items, R, slots=2)
    assert batch.length == 8  # 5 + 2 and 3 + 2 stay below the longest text
    assert padded(batch, batch.tokens) == [
        [1, -1, -1, 11, 12, 13, 14, -1],
        [1, 21, 22, 23, 24, 25, 26, 27],
        [1, -1, -1, 31, 32, -1, -1, -1],
    ]
    assert batch.slot_place.tolist() == [1, 2, 17, 18]


def test_slots_lengthen_the_padded_batch_where_they_must(items):
    batch = make_batch(items, R, slots=6)
    assert batch.length == 11
    assert padded(batch, batch.tokens)[0] == [1, -1, -1, -1, -1, -1, -1, 11, 12, 13, 14]
    assert batch.slot_place.tolist() == [1, 2, 3, 4, 5, 6, 23, 24, 25, 26, 27, 28]


@pytest.mark.parametrize("slots", [0, 1, 5])
def test_no_place_is_given_twice(items, slots):
    batch = make_batch(items, R, slots)
    places = [*batch.place.tolist(), *batch.slot_place.tolist()]
    assert len(set(places)) == len(places)
    assert set(places) <= set(range(batch.size * batch.length))


@pytest.mark.parametrize("slots", [0, 3])
def test_supervised_places_hold_the_token_before_each_target(items, slots):
    batch = make_batch(items, R, slots)
    assert batch.targets.tolist() == [13, 14, 25, 26, 27, 32]
    rows = torch.tensor(padded(batch, batch.tokens)).flatten()
    assert rows[batch.supervised].tolist() == [12, 13, 24, 25, 26, 31]
    assert rows[batch.supervised + 1].tolist() == batch.targets.tolist()


def test_a_prompt_of_bos_alone_is_supervised_at_the_last_slot():
    batch = make_batch([item(0, [1, 11, 12], 1, image=True)], R, slots=2)
    assert batch.slot_place.tolist() == [1, 2]
    assert batch.supervised.tolist() == [2, 3] and batch.targets.tolist() == [11, 12]


@pytest.mark.parametrize("slots", [0, 3])
def test_last_only_reads_the_place_after_which_the_answer_comes(items, slots):
    batch = make_batch(items, R, slots, last_only=True)
    rows = torch.tensor(padded(batch, batch.tokens)).flatten()
    assert rows[batch.supervised].tolist() == [14, 27, 32]
    assert batch.targets.tolist() == [0, 0, 0]


def test_images_are_only_those_there_are(items):
    batch = make_batch(items, R)
    assert batch.images.shape == (2, 3, R, R) and batch.images.dtype == torch.float32
    assert batch.images[:, 0, 0, 0].tolist() == [10.0, 30.0]
    assert batch.image_of.tolist() == [0, -1, 1]


def test_a_batch_without_images_has_none_of_the_right_size():
    batch = make_batch([item(0, [1, 2, 3], 2)], R, slots=5)
    assert batch.images.shape == (0, 3, R, R)
    assert batch.image_of.tolist() == [-1] and batch.slot_place.numel() == 0 and batch.length == 3


@pytest.mark.parametrize("last_only", [False, True])
def test_an_empty_batch_computes_on_one_token_and_trains_nothing(last_only):
    batch = make_batch([], R, slots=3, last_only=last_only)
    assert batch.tokens.tolist() == [0] and batch.offsets.tolist() == [0, 1] and batch.place.tolist() == [0]
    assert batch.supervised.tolist() == [] and batch.targets.tolist() == [] and batch.indices.tolist() == []
    assert batch.images.shape == (0, 3, R, R) and batch.image_of.tolist() == [-1]
    assert (batch.size, batch.length, batch.cost, batch.samples) == (1, 1, 1, ())


def test_every_tensor_of_numbers_is_int64_also_where_it_is_empty(items):
    for batch in (make_batch(items, R, 2), make_batch([], R)):
        for name in ("tokens", "offsets", "supervised", "targets", "image_of", "place", "slot_place", "indices"):
            assert getattr(batch, name).dtype == torch.int64, name


def test_a_batch_moves_as_a_whole(items):
    notes = {"skipped": (Skip(3, "x"),), "dealt": ((0, 10), (3, 99))}
    moved = replace(make_batch(items, R, 2), **notes).to(torch.device("meta"))
    assert {t.device.type for t in vars(moved).values() if isinstance(t, torch.Tensor)} == {"meta"}
    assert (moved.length, moved.cut, moved.skipped, moved.dealt) == (8, 1, notes["skipped"], notes["dealt"])


def test_the_cost_is_what_the_padded_batch_holds(items):
    assert make_batch(items, R, slots=6).cost == 3 * 11
    assert make_batch(items[:1], R).cost == 5


def test_the_samples_ride_along_where_they_are_given(items):
    known = replace(items[1], sample=sample())
    assert make_batch([items[0], known], R).samples == (sample(),)
