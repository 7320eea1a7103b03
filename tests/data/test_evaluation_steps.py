"""What an evaluation reads: every sample once, in the same company on any number of ranks, with the answer left out."""

from dataclasses import replace

import pytest
from making import good_rows

from data_prep.shards import write_shards
from dsmemvp.data.layout import Reserved
from dsmemvp.data.loader import Share, evaluation_steps
from dsmemvp.data.manifest import read_manifest


@pytest.mark.parametrize(("world", "global_batch"), [(1, 8), (2, 8), (4, 8), (1, 24), (4, 24)])
def test_evaluation_covers_every_sample_once_with_equal_steps_on_every_rank(shards, collator, world, global_batch):
    collator = replace(collator, answers=True)
    shares = [Share(rank, world, global_batch // world) for rank in range(world)]
    ranks = [list(evaluation_steps(shards, collator, share, workers=0)) for share in shares]
    assert {len(steps) for steps in ranks} == {-(-23 // global_batch)}
    assert all(len(step) == 1 for steps in ranks for step in steps)
    assert sorted(i for steps in ranks for step in steps for i in step[0].indices) == list(range(23))


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_evaluation_computes_every_sample_in_the_same_company_on_any_number_of_ranks(shards, collator, world):
    collator = replace(collator, answers=True)
    shares = [Share(rank, world, 4) for rank in range(world)]
    ranks = [list(evaluation_steps(shards, collator, share, workers=0)) for share in shares]
    assigned = [[i for _, i in batch.assigned] for step in zip(*ranks, strict=True) for (batch,) in step]
    assert assigned[:6] == [
        [*range(0, 4)],
        [*range(4, 8)],
        [*range(8, 12)],
        [*range(12, 16)],
        [*range(16, 20)],
        [20, 21, 22],
    ]
    assert not any(assigned[6:]) and len(assigned) < 6 + world


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_goes_on_with_the_batches_that_are_left(shards, collator, workers):
    collator, left = replace(collator, answers=True), [1, 4, 5]
    ranks = [list(evaluation_steps(shards, collator, Share(rank, 2, 4), workers, left)) for rank in range(2)]
    assert [[list(step[0].indices) for step in steps] for steps in ranks] == [
        [[4, 5, 6, 7], [20, 21, 22]],
        [[16, 17, 18, 19], []],
    ]


def test_evaluation_supervises_the_last_place_of_the_lead_in(shards, collator, tokenizer):
    share = Share(0, 1, 23)
    collator = replace(collator, answers=True, reserved=(Reserved("image", 3),))
    ((micro,),) = evaluation_steps(shards, collator, share, workers=0)
    batch = micro.batch
    assert batch.supervised.numel() == 23 and batch.places["image"].numel() == 3 * 12
    text = tokenizer.decode(batch.tokens[slice(*batch.bounds[1])].tolist())
    assert text.endswith("\nResponse:The answer is")


def test_a_rank_without_samples_still_takes_the_step(tmp_path, collator):
    manifest = write_shards(good_rows(5), tmp_path / "test", "test")
    collator = replace(collator, answers=True)
    ranks = [list(evaluation_steps(manifest, collator, Share(rank, 4, 1), workers=0)) for rank in range(4)]
    assert sorted(i for steps in ranks for i in steps[0][0].indices) == [0, 1, 2, 3]
    assert sorted(i for steps in ranks for i in steps[1][0].indices) == [4]
    assert all(steps[1][0].batch.size == 1 for steps in ranks)  # an empty batch computes on one lone token


def test_captions_enter_only_where_the_encoder_wants_them(demo_shards, collator, tokenizer):
    manifest, share = read_manifest(demo_shards), Share(0, 1, 48)
    texts = []
    for captions in (False, True):
        ((batch,),) = evaluation_steps(manifest, replace(collator, answers=True, captions=captions), share, workers=0)
        decoded = [tokenizer.decode(batch.batch.tokens[a:b].tolist()) for a, b in batch.batch.bounds]
        texts.append([text for _, text in sorted(zip(list(batch.indices), decoded, strict=True))])
    assert sum(a != b for a, b in zip(*texts, strict=True)) == 24  # the samples with a picture have a caption
