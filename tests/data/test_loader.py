"""From shards to each rank's micro-batches: ranks, workers and bad samples change nothing for the others."""

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from making import as_json, fields, good_rows, manifest_of, picture, write_tar

from data_prep.shards import Row, write_shards
from dsmemvp.config.reading import read_recipe
from dsmemvp.data.batch import Reserved
from dsmemvp.data.collator import Collator, recipe_collator
from dsmemvp.data.images import ImageTransform
from dsmemvp.data.loader import Balancing, Share, evaluation_steps, training_steps
from dsmemvp.data.manifest import read_manifest
from dsmemvp.data.order import Order, Source
from dsmemvp.data.sample import SampleError
from dsmemvp.data.token_counts import count_tokens


@pytest.fixture
def collator(tokenizer_path):
    return Collator(str(tokenizer_path), ImageTransform(4, 10_000), False, 200, skip_bad=False)


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


@pytest.mark.parametrize(("world", "global_batch"), [(1, 8), (2, 8), (4, 8), (1, 24), (4, 24)])
def test_evaluation_covers_every_sample_once_with_equal_steps_on_every_rank(shards, collator, world, global_batch):
    collator = replace(collator, answers=True)
    shares = [Share(rank, world, global_batch // world) for rank in range(world)]
    ranks = [list(evaluation_steps(shards, collator, share, workers=0)) for share in shares]
    assert {len(steps) for steps in ranks} == {-(-23 // global_batch)}
    assert all(len(step) == 1 for steps in ranks for step in steps)
    assert sorted(i for steps in ranks for step in steps for i in indices(step)) == list(range(23))


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
    assert [[indices(step) for step in steps] for steps in ranks] == [
        [[4, 5, 6, 7], [20, 21, 22]],
        [[16, 17, 18, 19], []],
    ]


def test_a_rank_without_samples_still_takes_the_step(tmp_path, collator):
    manifest = write_shards(good_rows(5), tmp_path / "test", "test")
    collator = replace(collator, answers=True)
    ranks = [list(evaluation_steps(manifest, collator, Share(rank, 4, 1), workers=0)) for rank in range(4)]
    assert sorted(i for steps in ranks for i in indices(steps[0])) == [0, 1, 2, 3]
    assert sorted(i for steps in ranks for i in indices(steps[1])) == [4]
    assert all(steps[1][0].batch.size == 1 for steps in ranks)  # an empty batch computes on one lone token


def test_evaluation_supervises_the_last_place_of_the_lead_in(shards, collator, tokenizer):
    share = Share(0, 1, 23)
    collator = replace(collator, answers=True, reserved=(Reserved("image", 3),))
    ((micro,),) = evaluation_steps(shards, collator, share, workers=0)
    batch = micro.batch
    assert batch.supervised.numel() == 23 and batch.places["image"].numel() == 3 * 12
    text = tokenizer.decode(batch.tokens[slice(*batch.bounds[1])].tolist())
    assert text.endswith("\nResponse:The answer is")


def test_captions_enter_only_where_the_encoder_wants_them(demo_shards, collator, tokenizer):
    manifest, share = read_manifest(demo_shards), Share(0, 1, 48)
    texts = []
    for captions in (False, True):
        ((batch,),) = evaluation_steps(manifest, replace(collator, answers=True, captions=captions), share, workers=0)
        decoded = [tokenizer.decode(batch.batch.tokens[a:b].tolist()) for a, b in batch.batch.bounds]
        texts.append([text for _, text in sorted(zip(list(batch.indices), decoded, strict=True))])
    assert sum(a != b for a, b in zip(*texts, strict=True)) == 24  # the samples with a picture have a caption


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


def test_workers_do_not_outlive_a_rank_that_is_killed(shards, collator, tmp_path):
    program = f"""
import time
from pathlib import Path
from dsmemvp.data.batch import Reserved
from dsmemvp.data.collator import Collator
from dsmemvp.data.images import ImageTransform
from dsmemvp.data.token_counts import count_tokens
from dsmemvp.data.loader import Balancing, Share, evaluation_steps
from dsmemvp.data.manifest import read_manifest
if __name__ == "__main__":
    collator = {collator!r}
    steps = evaluation_steps(read_manifest(Path({str(shards.location)!r})), collator, Share(0, 1, 1), 2)
    next(steps)
    print("reading", flush=True)
    time.sleep(60)
"""
    (tmp_path / "rank.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OF_THIS_TEST": str(tmp_path)}
    command = [sys.executable, str(tmp_path / "rank.py")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout.readline() == "reading\n"
        assert len(_processes(tmp_path)) >= 4  # with the server and two workers
        rank.kill()
    end = time.monotonic() + 20
    while _processes(tmp_path):
        assert time.monotonic() < end, _processes(tmp_path)
        time.sleep(0.1)


def _processes(mark: Path) -> list[str]:
    """The processes that have it in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("OF_THIS_TEST") == str(mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def test_a_bug_in_a_worker_ends_the_run_with_its_traceback(demo_shards, tokenizer_path):
    """Python waits for its workers at exit, and these ignore SIGTERM; the traceback keeps their loader alive."""
    script = Path(__file__).with_name("buggy.py")
    command = [sys.executable, str(script), str(demo_shards), str(tokenizer_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "'Buggy' object has no attribute 'misspelt'" in ended.stderr
    assert 'buggy.py", line 19, in batch' in ended.stderr
