"""Two runs that compute the same features at once, and runs that are killed while they do."""

import os
import shutil
import signal
import time

import pytest
import torch

from dsmemvp.data.feature_cache import ABANDONED, Settings, missing_shards, remove_partial, write_shard
from dsmemvp.data.manifest import read_manifest
from dsmemvp.errors import UserError

SETTINGS = Settings("tower", 8, (0.0,), (1.0,), 1, True, True, "fp32", 2, 3)


def test_two_that_write_the_same_shard_leave_it_whole(demo_shards, tmp_path, monkeypatch):
    shards = shutil.copytree(demo_shards, tmp_path / "shards")
    manifest = read_manifest(shards)
    rows = [(bytes([i]) * 32, torch.full((2, 3), float(i))) for i in range(4)]

    def interrupted():
        yield from rows[:2]
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            assert write_shard(manifest, "features", 0, SETTINGS, iter(rows)) == 4
        yield from rows[2:]

    assert write_shard(manifest, "features", 0, SETTINGS, interrupted()) == 4
    assert 0 not in missing_shards(manifest, "features", SETTINGS)
    wanted = torch.stack([row for _, row in rows]).numpy().tobytes()
    found = sorted(path for path in (shards / "features").iterdir())
    assert [path.suffix for path in found] == [".features", ".json"] and found[0].read_bytes() == wanted


def test_what_a_killed_run_has_left_is_removed_but_not_what_is_being_written(demo_shards, tmp_path):
    manifest = read_manifest(shutil.copytree(demo_shards, tmp_path / "shards"))
    folder, row = tmp_path / "shards" / "features", torch.zeros(2, 3)

    def killed():
        yield b"a" * 32, row
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        write_shard(manifest, "features", 0, SETTINGS, killed())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    (left,) = folder.iterdir()
    elsewhere = [folder / f"partial-elsewhere-{pid}-000001.tar.features" for pid in (1, 2)]
    for path, age in zip(elsewhere, (0, ABANDONED + 60), strict=True):
        path.touch()
        os.utime(path, (time.time() - age, time.time() - age))
    present = []

    def rows():
        remove_partial(manifest, "features")
        present.extend(folder.iterdir())
        yield b"a" * 32, row

    assert write_shard(manifest, "features", 0, SETTINGS, rows()) == 1
    assert len(present) == 2 and elsewhere[0] in present and left not in present
    whole = {"000000.tar.features", "000000.tar.json"}
    assert {path.name for path in folder.iterdir()} == {*whole, elsewhere[0].name}


def test_a_name_that_is_taken_and_a_folder_that_may_not_be_written_are_refused_by_key(
    demo_shards, tmp_path, monkeypatch
):
    manifest = read_manifest(shutil.copytree(demo_shards, tmp_path / "shards"))
    with pytest.raises(UserError, match=r"^vision.cache_features: .*000000\.tar is not a folder; give another name$"):
        missing_shards(manifest, "000000.tar", SETTINGS)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")  # root, as in a container, may write everywhere

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(UserError, match=r"^vision.cache_features: .*/features beside the shards cannot be written"):
        write_shard(manifest, "features", 0, SETTINGS, [])
