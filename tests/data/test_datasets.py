"""The data sets of a recipe: what is refused before a run, and what tells one order from another."""

import json
from pathlib import Path

import pytest
from making import good_shards

from dsmemvp.config.recipe import Data, Recipe, Training
from dsmemvp.data.datasets import open_test_data, open_training_data
from dsmemvp.data.manifest import FILE
from dsmemvp.errors import UserError


@pytest.fixture
def folders(tmp_path):
    """Seven samples, and four."""
    good_shards(tmp_path / "a", number=7, per_shard=3)
    good_shards(tmp_path / "b", number=4, per_shard=2)
    return str(tmp_path / "a"), str(tmp_path / "b")


def recipe(*train, batch=2, seed=0, **data) -> Recipe:
    return Recipe(name="r", seed=seed, data=Data(train=list(train), **data), training=Training(global_batch=batch))


def pipe(folder) -> str:
    return f"pipe:cat {folder}/{{name}}"


def test_one_data_set_is_gone_through_once_in_an_epoch(folders):
    data = open_training_data(recipe(folders[0]))
    assert [manifest.location for manifest in data.manifests] == [folders[0]]
    assert (data.order.samples, data.order.steps) == (7, 3)


def test_several_data_sets_come_in_the_recipe_s_order_with_their_passes(folders):
    data = open_training_data(recipe(*folders, passes=[1, 2.5]))
    assert [manifest.samples for manifest in data.manifests] == [7, 4]
    assert data.order.samples == 7 + 10
    assert open_training_data(recipe(*folders)).order.samples == 11


def test_a_last_batch_is_dropped_or_completed(folders):
    assert open_training_data(recipe(folders[0], batch=4)).order.steps == 1
    assert open_training_data(recipe(folders[0], batch=4, last_batch="repeat")).order.steps == 2


def test_the_identity_names_by_the_recipe_s_keys_all_that_the_order_follows_from(folders):
    base = open_training_data(recipe(folders[0])).identity
    assert base.keys() == {
        *("seed", "training.global_batch"),
        *(f"data.{key}" for key in ("block_shards", "last_batch", "passes", "train")),
    }
    others = {
        "seed": recipe(folders[0], seed=1),
        "training.global_batch": recipe(folders[0], batch=3),
        "data.block_shards": recipe(folders[0], block_shards=2),
        "data.last_batch": recipe(folders[0], last_batch="repeat"),
        "data.passes": recipe(folders[0], passes=[2.0]),
        "data.train": recipe(folders[1]),
    }
    for key, other in others.items():
        found = open_training_data(other).identity
        assert {k for k in base if base[k] != found[k]} == {key}


def test_the_identity_does_not_change_with_what_the_order_does_not_follow_from(folders, tmp_path):
    base = open_training_data(recipe(folders[0])).identity
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    moved = recipe(str(tmp_path / "elsewhere"), workers=7, max_length=9, captions=True, passes=[1.0])
    assert open_training_data(moved).identity == base


def test_a_recipe_without_training_or_test_data_is_refused_by_its_key():
    with pytest.raises(UserError, match=r"data\.train: name the folder"):
        open_training_data(recipe())
    with pytest.raises(UserError, match=r"data\.test: give the folder"):
        open_test_data(recipe())


def test_a_folder_without_manifest_is_named_with_what_makes_one(tmp_path):
    with pytest.raises(UserError, match=f"`dsmemvp index {tmp_path}`"):
        open_training_data(recipe(str(tmp_path)))


def test_passes_that_are_not_one_sample_are_refused(folders):
    with pytest.raises(UserError) as caught:
        open_training_data(recipe(*folders, passes=[1.0, 0.1]))
    wanted = f"data.passes: 0.1 of the 4 samples of {folders[1]} is not one sample"
    assert str(caught.value) == wanted


def test_a_global_batch_of_more_than_an_epoch_is_refused_unless_it_is_completed(folders):
    with pytest.raises(UserError, match=r"training\.global_batch: 12 is more than the 11 samples") as caught:
        open_training_data(recipe(*folders, batch=12))
    assert "data.last_batch=repeat" in str(caught.value)
    assert open_training_data(recipe(*folders, batch=12, last_batch="repeat")).order.steps == 1


def test_a_remote_location_needs_a_cache(folders):
    remote = recipe(pipe(folders[0]), allow_pipe=True)
    with pytest.raises(UserError, match=r"data\.cache: pipe:cat .* is remote; give a folder on a local disk"):
        open_training_data(remote)


def test_errors_do_not_show_a_password_of_a_location(folders, tmp_path):
    asked = recipe("https://me:sEcret@host/a?sig=sEcret")
    with pytest.raises(UserError, match=r"data\.cache: https://\*\*\*@host/a\?\*\*\* is remote"):
        open_training_data(asked)
    secret = f"pipe:: https://me:sEcret@host/; cat {folders[0]}/{{name}}"
    more = {"cache": str(tmp_path / "cache"), "allow_pipe": True}
    for asked in (recipe(secret, batch=99, **more), recipe(secret, passes=[0.01], **more)):
        with pytest.raises(UserError, match=r"https://\*\*\*@host/") as caught:
            open_training_data(asked)
        assert "sEcret" not in str(caught.value)


def test_a_pipe_needs_the_recipe_s_leave(folders, tmp_path):
    with pytest.raises(UserError, match=r"data\.allow_pipe=true"):
        open_training_data(recipe(pipe(folders[0]), cache=str(tmp_path / "cache")))


def test_remote_and_local_data_are_one_order(folders, tmp_path):
    more = {"cache": str(tmp_path / "cache"), "allow_pipe": True, "block_shards": 2}
    remote = open_training_data(recipe(pipe(folders[0]), folders[1], **more))
    local = open_training_data(recipe(*folders, block_shards=2))
    assert remote.identity == local.identity
    assert [remote.order.batch(step) for step in range(9)] == [local.order.batch(step) for step in range(9)]


SHARD = 10_240 / 2**30
"""GiB of each shard: tarfile fills up to 10,240 bytes."""


@pytest.mark.parametrize(
    ("block_shards", "gib", "fits"),
    [(1, 1.99, False), (1, 2.01, True), (2, 2.99, False), (2, 3.01, True), (16, 3.01, True)],
)
def test_a_cache_smaller_than_two_blocks_is_refused(folders, tmp_path, block_shards, gib, fits):
    more = {"cache": str(tmp_path / "cache"), "allow_pipe": True}
    asked = recipe(pipe(folders[0]), block_shards=block_shards, cache_gib=gib * SHARD, **more)
    if fits:
        assert open_training_data(asked).order.steps == 3
        return
    with pytest.raises(
        ValueError, match=rf"data\.cache_gib: .* not hold two blocks of {block_shards} shards? of"
    ) as caught:
        open_training_data(asked)
    assert "raise it, or lower data.block_shards" in str(caught.value)


def test_the_blocks_of_all_remote_data_sets_must_fit_together(folders, tmp_path):
    more = {"cache": str(tmp_path / "cache"), "allow_pipe": True, "block_shards": 2, "cache_gib": 4 * SHARD}
    both = [pipe(folder) for folder in folders]
    with pytest.raises(UserError, match=r"data\.cache_gib"):
        open_training_data(recipe(*both, **more))
    open_training_data(recipe(both[0], folders[1], **more))  # a local one needs no place
    open_training_data(recipe(*both, **{**more, "cache_gib": 5 * SHARD}))


def test_test_data_need_two_shards_in_the_cache_at_a_time(folders, tmp_path):
    more = {"cache": str(tmp_path / "cache"), "allow_pipe": True}
    assert open_test_data(recipe(test=pipe(folders[0]), cache_gib=2.01 * SHARD, **more)).samples == 7
    with pytest.raises(UserError, match=r"data\.cache_gib"):
        open_test_data(recipe(test=pipe(folders[0]), cache_gib=1.9 * SHARD, **more))
    assert open_test_data(recipe(test=folders[1])).samples == 4


def test_blocks_that_would_take_minutes_to_shuffle_are_refused(folders):
    path = Path(folders[0]) / FILE
    content = json.loads(path.read_text())
    content["shards"][1] |= {"samples": 10**9, "bytes": 10**12}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"data\.block_shards: a block of 16 shards of .* 1000000004 samples"):
        open_training_data(recipe(folders[0]))
