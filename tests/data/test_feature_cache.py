"""Two runs that compute the same features at once, and runs that are killed while they do."""

import hashlib
import os
import shutil
import signal
import time

import pytest
import torch

from dsmemvp.data.feature_cache import CachedFeatures
from dsmemvp.data.feature_files import ABANDONED, Settings, missing_shards, remove_partial, write_shard
from dsmemvp.data.images import ImageTransform
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


def test_another_run_that_rounds_otherwise_takes_nothing_from_one_that_reads(demo_shards, tmp_path, monkeypatch):
    """As two machines of a study's array may; the second is killed before its JSON file, and once ends."""
    manifest = read_manifest(shutil.copytree(demo_shards, tmp_path / "shards"))
    encoded = [f"image {i}".encode() for i in range(3)]

    def rows(value: float):
        return ((hashlib.sha256(image).digest(), torch.full((2, 3), value + i)) for i, image in enumerate(encoded))

    for shard in range(len(manifest.shards)):
        write_shard(manifest, "features", shard, SETTINGS, () if shard else rows(0.0))
    reading = CachedFeatures(ImageTransform(8, 1 << 20), SETTINGS, "features", (manifest,))
    assert [float(reading(image, "here")[0, 0]) for image in encoded] == [0, 1, 2]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dsmemvp.data.feature_files.replace_file", _interrupt)
        write_shard(manifest, "features", 0, SETTINGS, rows(0.5))
    assert missing_shards(manifest, "features", SETTINGS) == []
    write_shard(manifest, "features", 0, SETTINGS, rows(0.5))
    assert [float(reading(image, "here")[0, 0]) for image in encoded] == [0, 1, 2]
    later = CachedFeatures(ImageTransform(8, 1 << 20), SETTINGS, "features", (manifest,))
    assert [float(later(image, "here")[0, 0]) for image in encoded] == [0.5, 1.5, 2.5]


def _interrupt(*_, **__):
    raise KeyboardInterrupt


def test_many_that_write_the_same_shard_at_once_all_end(demo_shards, tmp_path):
    manifest, row = read_manifest(shutil.copytree(demo_shards, tmp_path / "shards")), (b"a" * 32, torch.zeros(2, 3))
    children = []
    for _ in range(3):
        children.append(os.fork())
        if not children[-1]:
            try:
                for _ in range(60):
                    write_shard(manifest, "features", 0, SETTINGS, [row])
            except BaseException:
                os._exit(1)
            os._exit(0)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert 0 not in missing_shards(manifest, "features", SETTINGS)


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
    others = sorted({path.name for path in folder.iterdir()} - {elsewhere[0].name})
    assert len(others) == 2 and others[0].endswith(".features") and others[1] == "000000.tar.json"


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
