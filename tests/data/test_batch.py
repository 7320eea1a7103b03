"""A packed batch against values worked out by hand: every token, reserved place, target and image where it belongs."""

from dataclasses import fields, replace

import pytest
import torch
from making import sample

from dsmemvp.data.batch import Item, Skip
from dsmemvp.data.layout import Reserved
from dsmemvp.data.packing import by_image, make_batch
from dsmemvp.data.text import EncodedText

R = 4
FRONT = Reserved("front", 2)
BEHIND = Reserved("behind", 1, "after_question")


def item(index, tokens, prompt, image=False, cut=False, bos=1) -> Item:
    pixels = torch.full((3, R, R), index, dtype=torch.uint8) if image else None
    return Item(index, EncodedText(list(tokens), prompt, cut, bos), pixels)


@pytest.fixture
def items():
    """Three lengths; the first and the last have an image."""
    return [
        item(10, [1, 11, 12, 13, 14], 3, image=True),
        item(20, [1, 21, 22, 23, 24, 25, 26, 27], 5, cut=True),
        item(30, [1, 31, 32], 2, image=True),
    ]


def test_tokens_stand_one_sample_after_another_without_padding(items):
    micro_batch = make_batch(items, R)
    batch = micro_batch.batch
    assert batch.tokens.tolist() == [1, 11, 12, 13, 14, 1, 21, 22, 23, 24, 25, 26, 27, 1, 31, 32]
    assert batch.cu_seqlens.tolist() == [0, 5, 13, 16] and batch.lengths == (5, 8, 3)
    assert batch.bounds == [(0, 5), (5, 13), (13, 16)] and batch.size == 3
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2]
    assert batch.spans.tolist() == [[[1, 3], [3, 5]], [[6, 10], [10, 13]], [[14, 15], [15, 16]]]
    assert batch.places == {}
    assert (micro_batch.indices, micro_batch.cut) == ((10, 20, 30), 1)
    assert micro_batch.skipped == micro_batch.assigned == micro_batch.samples == ()


def test_places_at_the_front_stand_behind_bos_of_the_samples_with_an_image_only(items):
    batch = make_batch(items, R, [FRONT]).batch
    assert batch.tokens.tolist() == [1, 0, 0, 11, 12, 13, 14, 1, 21, 22, 23, 24, 25, 26, 27, 1, 0, 0, 31, 32]
    assert {name: places.tolist() for name, places in batch.places.items()} == {"front": [1, 2, 16, 17]}
    assert batch.cu_seqlens.tolist() == [0, 7, 15, 20]
    assert batch.spans.tolist() == [[[3, 5], [5, 7]], [[8, 12], [12, 15]], [[18, 19], [19, 20]]]


def test_places_after_the_question_stand_before_the_answer(items):
    batch = make_batch(items, R, [BEHIND]).batch
    assert batch.tokens.tolist() == [1, 11, 12, 0, 13, 14, 1, 21, 22, 23, 24, 25, 26, 27, 1, 31, 0, 32]
    assert batch.places["behind"].tolist() == [3, 16]
    assert batch.spans.tolist() == [[[1, 3], [4, 6]], [[7, 11], [11, 14]], [[15, 16], [17, 18]]]
    # the first token of an answer comes after a reserved place
    assert batch.supervised.tolist() == [3, 4, 10, 11, 12, 16]
    assert batch.targets.tolist() == [13, 14, 25, 26, 27, 32]


def test_places_at_both_anchors_and_two_at_one(items):
    batch = make_batch(items[:1], R, [BEHIND, FRONT, Reserved("more", 1)]).batch
    assert batch.tokens.tolist() == [1, 0, 0, 0, 11, 12, 0, 13, 14]
    assert {name: places.tolist() for name, places in batch.places.items()} == {
        "behind": [6],
        "front": [1, 2],
        "more": [3],
    }
    assert batch.positions.tolist() == list(range(9))


def test_without_bos_places_at_the_front_are_the_first_tokens():
    batch = make_batch([item(7, [11, 12, 13], 2, image=True, bos=0)], R, [FRONT]).batch
    assert batch.tokens.tolist() == [0, 0, 11, 12, 13]
    assert batch.places["front"].tolist() == [0, 1]
    assert batch.spans.tolist() == [[[2, 4], [4, 5]]]


@pytest.mark.parametrize("reserved", [(), (FRONT,), (BEHIND,), (FRONT, BEHIND)])
def test_places_come_in_whole_samples_and_are_no_target(items, reserved):
    batch = make_batch(items, R, reserved).batch
    places = [place for name in batch.places for place in batch.places[name].tolist()]
    assert len(set(places)) == len(places) == 2 * sum(r.count for r in reserved)
    assert batch.tokens[places].tolist() == [0] * len(places)
    assert batch.tokens[batch.supervised + 1].tolist() == batch.targets.tolist() == [13, 14, 25, 26, 27, 32]


def test_a_prompt_of_bos_alone_is_supervised_at_the_last_reserved_place():
    batch = make_batch([item(0, [1, 11, 12], 1, image=True)], R, [FRONT]).batch
    assert batch.places["front"].tolist() == [1, 2]
    assert batch.supervised.tolist() == [2, 3] and batch.targets.tolist() == [11, 12]


@pytest.mark.parametrize(("reserved", "last"), [((), [4, 12, 15]), ((FRONT, BEHIND), [7, 15, 21])])
def test_last_only_reads_the_token_after_which_the_answer_comes(items, reserved, last):
    batch = make_batch(items, R, reserved, last_only=True).batch
    assert batch.supervised.tolist() == last
    assert batch.tokens[batch.supervised].tolist() == [14, 27, 32]
    assert batch.targets.tolist() == [0, 0, 0]


def test_images_are_only_those_there_are(items):
    batch = make_batch(items, R).batch
    assert batch.images.shape == (2, 3, R, R) and batch.images.dtype == torch.uint8
    assert batch.images[:, 0, 0, 0].tolist() == [10, 30]
    assert batch.image_of.tolist() == [0, -1, 1] and batch.image_rows == (0, -1, 1)


def test_samples_of_the_same_image_share_its_row(items):
    again = replace(items[2], image=items[0].image)
    batch = make_batch([items[0], again, items[1], items[2]], R).batch
    assert batch.images[:, 0, 0, 0].tolist() == [10, 30]
    assert batch.image_of.tolist() == [0, 0, -1, 1] and batch.image_rows == (0, 0, -1, 1)


def test_by_image_puts_samples_of_one_image_side_by_side_and_those_without_last(items):
    apart = [items[1], items[2], items[0], replace(items[1], index=3), replace(items[0], index=4)]
    apart += [replace(items[0], index=5, image=items[2].image)]
    ordered = by_image(apart)
    assert [i.index for i in ordered] == [items[2].index, 5, items[0].index, 4, items[1].index, 3]
    assert [(row, samples) for row, samples, _ in make_batch(ordered, R).batch.image_runs] == [(0, 2), (1, 2), (-1, 2)]


def test_a_batch_without_images_has_none_of_the_right_size():
    batch = make_batch([item(0, [1, 2, 3], 2)], R, [FRONT, BEHIND]).batch
    assert batch.images.shape == (0, 3, R, R) and batch.image_of.tolist() == [-1]
    assert {name: places.tolist() for name, places in batch.places.items()} == {"front": [], "behind": []}
    assert batch.tokens.tolist() == [1, 2, 3]


@pytest.mark.parametrize("last_only", [False, True])
def test_an_empty_batch_computes_on_one_token_and_trains_nothing(last_only):
    micro_batch = make_batch([], R, [FRONT], last_only=last_only)
    batch = micro_batch.batch
    assert batch.tokens.tolist() == [0] and batch.cu_seqlens.tolist() == [0, 1] and batch.positions.tolist() == [0]
    assert batch.supervised.tolist() == batch.targets.tolist() == batch.places["front"].tolist() == []
    assert batch.images.shape == (0, 3, R, R) and batch.image_of.tolist() == [-1] and batch.image_rows == (-1,)
    assert (batch.size, batch.lengths, batch.spans.tolist()) == (1, (1,), [[[0, 0], [0, 0]]])
    assert (micro_batch.indices, micro_batch.samples, micro_batch.cut) == ((), (), 0)


def test_items_with_an_image_come_first_and_keep_their_order(items):
    more = item(40, [1, 2], 1)
    assert [i.index for i in by_image([more, items[0], items[1], items[2]])] == [10, 30, 40, 20]


def test_kinds_of_numbers_are_the_documented_ones_also_if_there_are_none(items):
    for batch in (make_batch(items, R, [FRONT]).batch, make_batch([], R, [FRONT]).batch):
        for name in ("tokens", "positions", "spans", "supervised", "targets", "image_of"):
            assert getattr(batch, name).dtype == torch.int64, name
        assert batch.places["front"].dtype == torch.int64
        assert batch.cu_seqlens.dtype == torch.int32 and batch.images.dtype == torch.uint8


def test_a_batch_moves_as_a_whole(items):
    batch = make_batch(items, R, [FRONT, BEHIND]).batch
    moved = batch.to(torch.device("meta"))
    tensors = [getattr(moved, f.name) for f in fields(moved)]
    tensors = [t for t in tensors if isinstance(t, torch.Tensor)] + list(moved.places.values())
    assert len(tensors) == 12 and {t.device.type for t in tensors} == {"meta"}
    assert (moved.lengths, moved.image_rows) == (batch.lengths, batch.image_rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
def test_a_pinned_batch_is_the_same(items):
    batch = make_batch(items, R, [FRONT]).batch
    pinned = batch.pin_memory()
    assert pinned.tokens.is_pinned() and pinned.images.is_pinned() and pinned.places["front"].is_pinned()
    assert torch.equal(pinned.tokens, batch.tokens) and pinned.lengths == batch.lengths


def test_what_the_model_never_reads_rides_along(items):
    known = replace(items[1], sample=sample())
    notes = {"skipped": (Skip(3, "x"),), "assigned": ((0, 10), (3, 99))}
    micro_batch = replace(make_batch([items[0], known], R), **notes)
    assert (micro_batch.samples, micro_batch.skipped) == ((sample(),), notes["skipped"])
    assert micro_batch.assigned == notes["assigned"]
