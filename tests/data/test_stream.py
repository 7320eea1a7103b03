"""Reading shards: good ones whole, damaged ones with every sample still in its place."""

import gzip
import io
import json
import random
import tarfile

import pytest
import webdataset
from making import as_json, fields, good_rows, good_shards, manifest_of, picture, write_tar

from dsmemvp.data.order import epoch_blocks, file_order
from dsmemvp.data.sample import read_sample
from dsmemvp.data.stream import BadSample, EncodedSample, SampleError, read_in_order, read_shard


def members(*numbers):
    """Tar members of good samples: json, and a png for every second one."""
    for i in numbers:
        yield f"s{i:03d}.json", as_json(fields(i))
        if i % 2 == 0:
            yield f"s{i:03d}.png", picture(colour=(i, 0, 0))


def is_bad(entry, *parts):
    assert isinstance(entry, BadSample)
    for part in parts:
        assert part in str(entry.error), entry.error
    return True


def test_good_shards_read_back_as_written(tmp_path):
    manifest = good_shards(tmp_path / "train", number=7, per_shard=3)
    entries = [e for block in file_order([3, 3, 1]) for e in read_in_order(manifest, block)]
    assert [e.index for e in entries] == list(range(7))
    for row, entry in zip(good_rows(7), entries, strict=True):
        assert isinstance(entry, EncodedSample)
        assert json.loads(entry.members["json"]) == row.fields
        assert entry.members.get("png") == row.image
        assert entry.members.keys() <= {"json", "png"}


def test_an_entry_says_its_file_and_key(tmp_path):
    manifest = good_shards(tmp_path / "train", number=4, per_shard=2)
    (entry,) = read_in_order(manifest, [(1, 1)])
    assert entry.where == f"{tmp_path / 'train' / '000001.tar'}, sample s003"
    assert entry.index == 3


def test_samples_come_in_the_order_asked_for(tmp_path):
    manifest = good_shards(tmp_path / "train", number=8, per_shard=3)
    for block in epoch_blocks([3, 3, 2], seed=1, epoch=0, block_shards=2):
        indices = [entry.index for entry in read_in_order(manifest, block)]
        assert indices == [3 * shard + i for shard, i in block]


def test_stock_webdataset_reads_our_shards(tmp_path):
    good_shards(tmp_path / "train", number=5, per_shard=5)
    url = str(tmp_path / "train" / "000000.tar")
    stock = list(webdataset.WebDataset(url, shardshuffle=False, empty_check=False).decode("pil"))
    assert [s["__key__"] for s in stock] == [f"s{i:03d}" for i in range(5)]
    assert [s["json"]["question"] for s in stock] == [fields(i)["question"] for i in range(5)]
    assert [("png" in s) for s in stock] == [True, False, True, False, True]
    assert stock[4]["png"].size == (6, 4) and stock[4]["png"].getpixel((0, 0)) == (4, 0, 0)


def test_we_read_shards_that_stock_webdataset_wrote(tmp_path):
    path = tmp_path / "x.tar"
    with webdataset.TarWriter(str(path)) as tar:
        tar.write({"__key__": "a", "json": fields(1), "JPG": picture("JPEG")})
    (entry,) = read_shard(path, 1, 0)
    assert read_sample(entry).question == fields(1)["question"]
    assert entry.members["jpg"] == picture("JPEG")


def test_members_in_folders_and_compressed_tars_are_read(tmp_path):
    noise = random.Random(0).randbytes(4096)
    path = write_tar(tmp_path / "x.tar", [("part/s0.json", as_json(fields())), ("part/s0.png", noise)])
    path.write_bytes(gzip.compress(path.read_bytes()))
    (entry,) = read_shard(path, 1, 0)
    assert entry.where.endswith("x.tar, sample part/s0") and entry.members.keys() == {"json", "png"}


@pytest.mark.parametrize(
    "content", [b"this is no tar file " * 100, b"\x1f\x8b" + b"\0" * 1000, b"{}", b"", b"\xff" * 511], ids=str
)
def test_a_shard_that_is_no_tar_file_is_all_bad_samples(tmp_path, content):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    entries = read_shard(path, 3, 10)
    assert [e.index for e in entries] == [10, 11, 12]
    assert all(is_bad(e, str(path), "not a readable tar file") for e in entries)


def test_a_missing_shard_is_all_bad_samples(tmp_path):
    entries = read_shard(tmp_path / "gone.tar", 2, 0)
    assert len(entries) == 2 and all(is_bad(e, "gone.tar", "cannot be read") for e in entries)


def test_samples_before_the_place_where_a_tar_file_breaks_off_are_good(tmp_path):
    path = write_tar(tmp_path / "x.tar", list(members(0, 1, 2, 3)))
    with tarfile.open(path) as tar:
        third = tar.getmember("s002.png")
    path.write_bytes(path.read_bytes()[: third.offset_data + 5])
    entries = read_shard(path, 4, 20)
    assert [e.index for e in entries] == [20, 21, 22, 23]
    assert [read_sample(e).question for e in entries[:2]] == [fields(i)["question"] for i in (0, 1)]
    assert all(is_bad(e, str(path), "not a readable tar file") for e in entries[2:])


def test_a_sample_whose_end_was_not_seen_before_the_break_is_not_trusted(tmp_path):
    path = write_tar(tmp_path / "x.tar", list(members(0, 1, 2, 3)))
    with tarfile.open(path) as tar:
        third = tar.getmember("s002.json")
    path.write_bytes(path.read_bytes()[: third.offset_data + 5])
    good, *bad = read_shard(path, 4, 0)  # sample 1 might have had an image in what was lost
    assert isinstance(good, EncodedSample) and all(is_bad(e, str(path)) for e in bad) and len(bad) == 3


def test_a_sample_whose_second_member_breaks_off_is_bad(tmp_path):
    path = write_tar(tmp_path / "x.tar", list(members(0, 2)))
    with tarfile.open(path) as tar:
        image = tar.getmember("s002.png")
    path.write_bytes(path.read_bytes()[: image.offset_data + image.size - 1])
    good, bad = read_shard(path, 2, 0)
    assert isinstance(good, EncodedSample) and is_bad(bad, str(path))


@pytest.mark.parametrize("promised", [2, 5])
def test_where_the_number_of_samples_is_not_the_promised_one_none_is_good(tmp_path, promised):
    path = write_tar(tmp_path / "x.tar", list(members(0, 1, 2)))
    entries = read_shard(path, promised, 7)
    assert [e.index for e in entries] == [7 + i for i in range(promised)]
    assert all(is_bad(e, str(path), f"holds 3 samples, the manifest says {promised}") for e in entries)


def test_a_wrong_count_in_one_shard_moves_no_sample_of_another(tmp_path):
    first = write_tar(tmp_path / "a.tar", list(members(0, 1, 2)))
    second = write_tar(tmp_path / "b.tar", list(members(3, 4)))
    manifest = manifest_of((first, 2), (second, 2))
    entries = [e for block in file_order([2, 2]) for e in read_in_order(manifest, block)]
    assert [e.index for e in entries] == [0, 1, 2, 3]
    assert [isinstance(e, BadSample) for e in entries] == [True, True, False, False]
    assert read_sample(entries[2]).question == fields(3)["question"]


def test_a_member_that_stands_twice_is_named(tmp_path):
    path = write_tar(tmp_path / "x.tar", [*members(0), ("s001.json", b"{}"), ("s001.json", b"{}"), *members(2)])
    good, *bad = read_shard(path, 3, 0)
    assert isinstance(good, EncodedSample)
    assert len(bad) == 2 and all(is_bad(e, str(path), "s001.json", "duplicate") for e in bad)


def test_a_member_without_ending_and_a_folder_are_passed_over(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("README"), io.BytesIO())
        entry = tarfile.TarInfo("folder.json")
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
        for name, content in members(0):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (entry,) = read_shard(path, 1, 0)
    assert entry.where.endswith("sample s000")


def test_a_sample_error_reads_as_place_and_reason():
    assert str(SampleError("file, sample s0", "is odd")) == "file, sample s0: is odd"
