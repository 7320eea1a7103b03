"""From shards to each rank's micro-batches: ranks, workers and bad samples change nothing for the others."""

import json
from dataclasses import replace

import pytest
import torch
from making import as_json, fields, good_rows, manifest_of, picture, write_tar

from data_prep.shards import Row, write_shards
from dsmemvp.config.reading import read_recipe
from dsmemvp.data.collator import recipe_collator
from dsmemvp.data.images import ImageTransform
from dsmemvp.data.layout import Reserved
from dsmemvp.data.loader import Balancing, Share, evaluation_steps, training_steps
from dsmemvp.data.manifest import read_manifest
from dsmemvp.data.order import Order, Source
from dsmemvp.data.sample import SampleError
from dsmemvp.data.token_counts import count_tokens


@pytest.fixture
def damaged(tmp_path):
    """Two shards of 4; sample 1 has no json that can be read, sample 6 has half a picture."""
    members = [(f"s{i}.json", as_json(fields(i))) for i in range(8)]
    members[1] = ("s1.json", b"\xff")
    members.insert(7, ("s6.png", picture()[:40]))
    return manifest_of(*(write_tar(tmp_path / f"{n}.tar", part) for n, part in enumerate((members[:4], members[4:]))))


def training(
    manifest, collator, world=1, rank=0, workers=0, global_batch=8, micro_batch=2, micro_tokens=0, balancing=None
):
    order = Order([Source(manifest.counts)], 5, 2, global_batch)
    share = Share(rank, world, micro_batch, micro_tokens)
    return list(training_steps([manifest], order, collator, share, range(order.steps), workers, balancing))


def indices(step) -> list[int]:
    return [i for batch in step for i in list(batch.indices)]


def test_each_sample_keeps_its_text_and_its_picture(shards, collator, tokenizer):
    for micro in (b for step in training(shards, collator) for b in step):
        batch = micro.batch
        for b, index in enumerate(micro.indices):
            start, stop = batch.bounds[b]
            assert fields(index)["question"] in tokenizer.decode(batch.tokens[start:stop].tolist())
            assert (batch.image_of[b] >= 0) == (index % 2 == 0)
            if index % 2 == 0:
                assert (batch.images[batch.image_of[b], 0] == index).all()


def test_samples_with_a_picture_come_first_in_training_and_answers_keep_the_order_of_the_file(shards, collator):
    for micro in (b for step in training(shards, collator, micro_batch=4) for b in step):
        rows = micro.batch.image_rows
        assert rows == (*range(len(rows) - rows.count(-1)), *[-1] * rows.count(-1))
    ((micro,),) = evaluation_steps(shards, replace(collator, answers=True), Share(0, 1, 23), workers=0)
    assert micro.indices == tuple(range(23))


def test_a_picture_that_several_samples_show_is_decoded_once_and_stands_once_in_their_batch(tmp_path, collator):
    colours = [0, None, 7, 0, 7, 7, None, 0]
    rows = [
        Row(f"s{i}", fields(i), None if colour is None else picture(colour=(colour, 0, 0)))
        for i, colour in enumerate(colours)
    ]
    shards = write_shards(rows, tmp_path / "train", "train", per_shard=8)

    decoded = []

    class Counting(ImageTransform):
        def __call__(self, encoded, where):
            decoded.append(where)
            return super().__call__(encoded, where)

    collator = replace(collator, image=Counting(4, 10_000))

    def red(batch):
        return [int(batch.images[row, 0, 0, 0]) if row >= 0 else None for row in batch.image_rows]

    ((micro,),) = evaluation_steps(shards, replace(collator, answers=True), Share(0, 1, 8), workers=0)
    assert red(micro.batch) == colours and micro.batch.images.shape[0] == 2
    ((micro,),) = training(shards, collator, micro_batch=8)
    assert red(micro.batch) == [colours[i] for i in micro.indices] and micro.batch.images.shape[0] == 2
    assert [samples for _, samples, _ in micro.batch.image_runs] == [3, 3, 2]
    assert len(decoded) == 2 * 2


def test_making_batches_draws_nothing_from_the_run_s_random_state(shards, collator):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    training(shards, collator)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_ends_the_run_with_its_message_where_none_may_be_left_out(damaged, collator, workers):
    with pytest.raises(SampleError) as caught:
        training(damaged, collator, workers=workers, micro_batch=8)
    assert any(
        part in str(caught.value) for part in ("0.tar, sample s1: json member", "1.tar, sample s6: image cannot")
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("world", [1, 2])
def test_a_bad_sample_is_left_out_and_told_and_the_others_keep_their_places(damaged, collator, world):
    order = Order([Source(damaged.counts)], 5, 2, 8).batch(0)
    numbers = [4 * place.shard + place.sample for place in order]
    ranks = [training(damaged, replace(collator, skip_bad=True), world, rank) for rank in range(world)]
    batches = [batch for (step,) in ranks for batch in step]
    assert len(batches) == 4 and {len(step) for (step,) in ranks} == {4 // world}
    # every place of the global batch is assigned once, to the sample that stands there
    assert sorted(pair for batch in batches for pair in batch.assigned) == list(enumerate(numbers))
    for batch in batches:
        assert sorted(batch.indices) == sorted(i for _, i in batch.assigned if i not in (1, 6))
        for skip in batch.skipped:
            expected = {1: "0.tar, sample s1: json member cannot be read", 6: "1.tar, sample s6: image cannot"}
            assert expected[numbers[skip.position]] in skip.message
    assert sum(len(batch.skipped) for batch in batches) == 2


def test_a_micro_batch_of_bad_samples_only_is_an_empty_batch(damaged, collator):
    (step,) = training(damaged, replace(collator, skip_bad=True), micro_batch=1)
    empty = [b for b in step if not b.indices]
    assert len(step) == 8 and len(empty) == 2
    assert all(b.batch.targets.numel() == 0 and len(b.skipped) == 1 for b in empty)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_lost_shard_ends_the_run_even_where_bad_samples_may_be_left_out(damaged, collator, workers):
    damaged.path(0).unlink()
    with pytest.raises(FileNotFoundError, match=r"0\.tar"):
        training(damaged, replace(collator, skip_bad=True), workers=workers)


def test_every_rank_computes_as_many_tokens_with_unequal_numbers_of_samples(tmp_path, collator):
    rows = [replace(r, fields=fields(i, context="word " * (40 * (i == 0)))) for i, r in enumerate(good_rows(9))]
    manifest = write_shards(rows, tmp_path / "train", "train")
    exact = Balancing(token_counts=count_tokens(tmp_path, [manifest], collator, processes=1))
    ranks = [
        training(manifest, collator, 2, rank, global_batch=9, micro_batch=5, balancing=exact)[0] for rank in range(2)
    ]
    ((long,), (short,)) = sorted(ranks, key=lambda step: len(step[0].indices))
    assert 0 in long.indices and len(long.indices) < len(short.indices)
    tokens = [batch.batch.cu_seqlens[-1].item() for batch in (long, short)]
    assert max(tokens) / sum(tokens) < 0.56


@pytest.mark.parametrize("exact", [False, True])
def test_micro_tokens_bounds_what_a_micro_batch_holds(shards, collator, tmp_path, exact):
    collator = replace(collator, reserved=(Reserved("image", 5),))
    counts = count_tokens(tmp_path, [shards], collator, processes=1) if exact else None
    balancing = Balancing(token_counts=counts)
    ranks = [
        training(shards, collator, 2, rank, global_batch=20, micro_tokens=150, balancing=balancing)[0]
        for rank in range(2)
    ]
    assert len(ranks[0]) == len(ranks[1]) > 1
    assert sorted(i for step in ranks for i in indices(step)) == sorted({i for step in ranks for i in indices(step)})
    assert sum(len(indices(step)) for step in ranks) == 20
    most = max(micro.batch.cu_seqlens[-1].item() for step in ranks for micro in step)
    assert most <= 150 if exact else most <= 300  # an estimate is no bound


def test_a_blind_encoder_leaves_every_image_out_and_nothing_else(shards, collator):
    seeing = training(shards, collator)
    blind = training(shards, replace(collator, blind=True))
    for one, other in zip(seeing, blind, strict=True):
        assert sorted(indices(one)) == sorted(indices(other))
        assert sum(b.batch.tokens.sum() for b in one) == sum(b.batch.tokens.sum() for b in other)
        for b in other:
            assert b.batch.images.shape == (0, 3, 4, 4) and (b.batch.image_of == -1).all()
    assert any(batch.batch.images.shape[0] for step in seeing for batch in step)


def test_a_blind_encoder_does_not_mind_a_broken_image(damaged, collator):
    (step,) = training(damaged, replace(collator, skip_bad=True, blind=True))
    assert sorted(indices(step)) == [0, 2, 3, 4, 5, 6, 7]


def test_evaluation_hands_on_the_fields_for_scoring_without_the_pixels(shards, collator):
    ((batch,),) = evaluation_steps(shards, replace(collator, answers=True), Share(0, 1, 23), workers=0)
    assert [s.index for s in batch.samples] == list(batch.indices)
    assert all(s.question == fields(s.index)["question"] for s in batch.samples)
    assert all(s.image == (b"" if s.index % 2 == 0 else None) for s in batch.samples)
    assert all(b.samples == () for step in training(shards, collator) for b in step)


def test_cut_contexts_are_counted(tmp_path, collator):
    rows = good_rows(4)
    rows[2] = replace(rows[2], fields=fields(2, context="a long word " * 200))
    manifest = write_shards(rows, tmp_path / "train", "train")
    (step,) = training(manifest, collator, global_batch=4)
    assert sum(b.cut for b in step) == 1 and max(max(b.batch.lengths) for b in step) <= 200


def test_the_recipe_s_encoder_takes_what_the_recipe_says(recipe_path):
    overrides = ["vision.max_pixels=99", "data.captions=true", "data.on_bad_sample=skip"]
    recipe = read_recipe(recipe_path, overrides)
    collator = recipe_collator(recipe, resolution=32, vocabulary=400)
    assert collator.image == ImageTransform(32, 99)
    assert (collator.captions, collator.max_length, collator.skip_bad) == (True, 160, True)
    assert (collator.reserved, collator.blind, collator.answers) == ((), False, False)


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(recipe_path, tokenizer):
    recipe = read_recipe(recipe_path)
    pieces = tokenizer.vocabulary
    recipe_collator(recipe, 32, pieces)
    with pytest.raises(
        ValueError, match=rf"^model\.tokenizer: .* has {pieces} pieces, the language model {pieces - 1};"
    ):
        recipe_collator(recipe, 32, pieces - 1)


def test_the_demo_shards_are_what_the_fixture_promises(demo_shards):
    manifest = read_manifest(demo_shards)
    assert [s.samples for s in manifest.shards] == [12] * 4
    content = json.loads((demo_shards / "dataset.json").read_text())
    assert content["split"] == "train"
