"""From shards to each rank's micro-batches: ranks, workers and bad samples change nothing for the others."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from making import as_json, fields, good_rows, manifest_of, picture, write_tar

from data_prep.shards import write_shards
from dsmemvp.data.images import ImageTransform
from dsmemvp.data.loader import Encoder, Share, evaluation_steps, recipe_encoder, training_steps
from dsmemvp.data.manifest import read_manifest
from dsmemvp.data.order import epoch_blocks
from dsmemvp.data.stream import SampleError
from dsmemvp.recipe_file import read_recipe


@pytest.fixture
def encoder(tokenizer_path):
    return Encoder(str(tokenizer_path), ImageTransform(4, "imagenet", 10_000), False, 200, skip_bad=False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """23 good samples in shards of 5; even ones have a picture whose red channel is their number."""
    return write_shards(good_rows(23), tmp_path_factory.mktemp("good") / "train", "train", per_shard=5)


@pytest.fixture
def damaged(tmp_path):
    """Two shards of 4; sample 1 has no json that can be read, sample 6 has half a picture."""
    members = [(f"s{i}.json", as_json(fields(i))) for i in range(8)]
    members[1] = ("s1.json", b"\xff")
    members.insert(7, ("s6.png", picture()[:40]))
    paths = [write_tar(tmp_path / f"{n}.tar", part) for n, part in enumerate((members[:4], members[4:]))]
    return manifest_of((paths[0], 4), (paths[1], 4))


def training(manifest, encoder, world=1, rank=0, workers=0, global_batch=8, micro_batch=2, epochs=range(2), seed=5):
    share = Share(rank, world, global_batch, micro_batch)
    return list(training_steps(manifest, encoder, share, seed, epochs, block_shards=2, workers=workers))


def indices(step) -> list[int]:
    return [i for batch in step for i in batch.indices.tolist()]


def expected(manifest, epochs, global_batch, seed=5):
    """Sorted indices of every global batch, straight from the order."""
    counts = [s.samples for s in manifest.shards]
    for epoch in epochs:
        flat = [sum(counts[:s]) + i for block in epoch_blocks(counts, seed, epoch, 2) for s, i in block]
        for start in range(0, len(flat) - global_batch + 1, global_batch):
            yield sorted(flat[start : start + global_batch])


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (4, 0), (2, 2)])
def test_every_global_batch_is_the_same_on_any_number_of_ranks_and_workers(shards, encoder, world, workers):
    ranks = [training(shards, encoder, world, rank, workers) for rank in range(world)]
    assert {len(steps) for steps in ranks} == {2 * (23 // 8)}
    united = [sorted(i for step in steps for i in indices(step)) for steps in zip(*ranks, strict=True)]
    assert united == list(expected(shards, range(2), 8))
    assert all(len(step) == 8 // world // 2 for steps in ranks for step in steps)


def test_a_later_start_goes_on_with_the_same_batches(shards, encoder):
    whole = [indices(s) for s in training(shards, encoder, epochs=range(3))]
    assert [indices(s) for s in training(shards, encoder, epochs=range(1, 3))] == whole[2:]


def test_another_seed_is_another_order(shards, encoder):
    orders = {str([indices(s) for s in training(shards, encoder, seed=seed)]) for seed in range(3)}
    assert len(orders) == 3


def test_each_sample_keeps_its_text_and_its_picture(shards, encoder, tokenizer):
    for batch in (b for step in training(shards, encoder, epochs=range(1)) for b in step):
        for b, index in enumerate(batch.indices.tolist()):
            text = tokenizer.decode(batch.tokens[batch.offsets[b] : batch.offsets[b + 1]].tolist())
            assert fields(index)["question"] in text
            assert (batch.image_of[b] >= 0) == (index % 2 == 0)
            if index % 2 == 0:
                red = batch.images[batch.image_of[b], 0] * 0.229 + 0.485
                torch.testing.assert_close(red, torch.full((4, 4), index / 255), atol=1e-5, rtol=0)


def test_making_batches_draws_nothing_from_the_run_s_random_state(shards, encoder):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    training(shards, encoder, epochs=range(1))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_ends_the_run_with_its_message_where_none_may_be_left_out(damaged, encoder, workers):
    with pytest.raises(SampleError) as caught:
        training(damaged, encoder, workers=workers, micro_batch=8)
    assert any(
        part in str(caught.value) for part in ("0.tar, sample s1: json member", "1.tar, sample s6: image cannot")
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("world", [1, 2])
def test_a_bad_sample_is_left_out_and_told_and_the_others_keep_their_places(damaged, encoder, world):
    encoder = replace(encoder, skip_bad=True)
    order = [4 * s + i for block in epoch_blocks([4, 4], 5, 0, 2) for s, i in block]
    for rank in range(world):
        (step,) = training(damaged, encoder, world, rank, epochs=range(1))
        own = order[rank::world]
        wanted = [[i for i in own[k : k + 2] if i not in (1, 6)] for k in range(0, len(own), 2)]
        assert [b.indices.tolist() for b in step] == wanted
        messages = [m for b in step for m in b.skipped]
        assert len(messages) == sum(i in (1, 6) for i in own)
        for message in messages:
            assert "0.tar, sample s1: json member cannot be read" in message or "1.tar, sample s6: image" in message


def test_a_micro_batch_of_bad_samples_only_is_an_empty_batch(damaged, encoder):
    (step,) = training(damaged, replace(encoder, skip_bad=True), micro_batch=1, epochs=range(1))
    empty = [b for b in step if b.indices.numel() == 0]
    assert len(step) == 8 and len(empty) == 2
    assert all(b.targets.numel() == 0 and len(b.skipped) == 1 for b in empty)


def test_a_lost_shard_is_told_for_each_of_its_samples(damaged, encoder):
    damaged.path(0).unlink()
    (step,) = training(damaged, replace(encoder, skip_bad=True), epochs=range(1))
    messages = [m for b in step for m in b.skipped]
    assert sum("0.tar: cannot be read" in m for m in messages) == 4
    assert sorted(indices(step)) == [4, 5, 7]


def test_a_blind_encoder_leaves_every_image_out_and_nothing_else(shards, encoder):
    seeing = training(shards, encoder, epochs=range(1))
    blind = training(shards, replace(encoder, blind=True), epochs=range(1))
    for one, other in zip(seeing, blind, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.tokens, b.tokens) and torch.equal(a.indices, b.indices)
            assert b.images.shape == (0, 3, 4, 4) and (b.image_of == -1).all()
    assert any(batch.images.shape[0] for step in seeing for batch in step)


def test_a_blind_encoder_does_not_mind_a_broken_image(damaged, encoder):
    (step,) = training(damaged, replace(encoder, skip_bad=True, blind=True), epochs=range(1))
    assert sorted(indices(step)) == [0, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(("world", "global_batch"), [(1, 8), (2, 8), (4, 8), (1, 24), (4, 24)])
def test_evaluation_covers_every_sample_once_with_equal_steps_on_every_rank(shards, encoder, world, global_batch):
    encoder = replace(encoder, answers=True)
    shares = [Share(rank, world, global_batch, global_batch // world) for rank in range(world)]
    ranks = [list(evaluation_steps(shards, encoder, share, workers=0)) for share in shares]
    assert {len(steps) for steps in ranks} == {-(-23 // global_batch)}
    assert all(len(step) == 1 for steps in ranks for step in steps)
    assert sorted(i for steps in ranks for step in steps for i in indices(step)) == list(range(23))


def test_a_rank_without_samples_still_takes_the_step(tmp_path, encoder):
    manifest = write_shards(good_rows(5), tmp_path / "test", "test")
    share = Share(3, 4, 4, 1)
    first, last = evaluation_steps(manifest, replace(encoder, answers=True), share, workers=0)
    assert indices(first) == [3] and indices(last) == [] and last[0].size == 1


def test_evaluation_supervises_the_last_place_of_the_lead_in(shards, encoder, tokenizer):
    share = Share(0, 1, 23, 23)
    ((batch,),) = evaluation_steps(shards, replace(encoder, answers=True, slots=3), share, workers=0)
    assert batch.supervised.numel() == 23 and batch.slot_place.numel() == 3 * 12
    text = tokenizer.decode(batch.tokens[: batch.offsets[1]].tolist())
    assert text.endswith("\nResponse:The answer is")


def test_captions_enter_only_where_the_encoder_wants_them(demo_shards, encoder, tokenizer):
    manifest, share = read_manifest(demo_shards), Share(0, 1, 48, 48)
    texts = []
    for captions in (False, True):
        ((batch,),) = evaluation_steps(manifest, replace(encoder, answers=True, captions=captions), share, workers=0)
        offsets = batch.offsets.tolist()
        texts.append([tokenizer.decode(batch.tokens[a:b].tolist()) for a, b in pairwise(offsets)])
    assert sum(a != b for a, b in zip(*texts, strict=True)) == 24  # the samples with a picture have a caption


def test_cut_contexts_are_counted(tmp_path, encoder):
    rows = good_rows(4)
    rows[2] = replace(rows[2], fields=fields(2, context="a long word " * 200))
    manifest = write_shards(rows, tmp_path / "train", "train")
    (step,) = training(manifest, encoder, global_batch=4, epochs=range(1))
    assert sum(b.cut for b in step) == 1 and max(b.length for b in step) <= 200


def test_the_recipe_s_encoder_takes_what_the_recipe_says(recipe_path):
    overrides = ["vision.statistics=clip", "vision.max_pixels=99", "data.captions=true", "data.on_bad_sample=skip"]
    recipe = read_recipe(recipe_path, overrides)
    encoder = recipe_encoder(recipe, resolution=32, vocabulary=400)
    assert encoder.image == ImageTransform(32, "clip", 99)
    assert (encoder.captions, encoder.max_length, encoder.skip_bad) == (True, 160, True)
    assert (encoder.slots, encoder.blind, encoder.answers) == (0, False, False)


def test_a_tokenizer_that_knows_more_than_the_model_is_refused(recipe_path, tokenizer):
    recipe = read_recipe(recipe_path)
    pieces = tokenizer.vocabulary
    recipe_encoder(recipe, 32, pieces)
    with pytest.raises(
        ValueError, match=rf"^model\.tokenizer: .* has {pieces} pieces, the language model only {pieces - 1}"
    ):
        recipe_encoder(recipe, 32, pieces - 1)


def test_the_demo_shards_are_what_the_fixture_promises(demo_shards):
    manifest = read_manifest(demo_shards)
    assert [s.samples for s in manifest.shards] == [12] * 4
    content = json.loads((demo_shards / "dataset.json").read_text())
    assert content["split"] == "train"
