"""Two runs that compute the same features at once."""

import os
import shutil

import torch

from dsmemvp.data.feature_cache import Settings, missing_shards, write_shard
from dsmemvp.data.manifest import read_manifest

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
