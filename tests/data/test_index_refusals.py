"""Files that no index can be made of: the number of samples in them is not certain."""

import bz2
import gzip
import io
import lzma
import random
import tarfile
from collections import Counter

import pytest
from making import as_json, fields, good_shards, picture, write_tar

from dsmemvp.data.index import index_path, index_shard
from dsmemvp.data.tar import scan
from dsmemvp.errors import UserError


def good_tar(path):
    """Three samples, each a json and a picture; tarfile writes 10,240 bytes or a multiple."""
    members = []
    for i in range(3):
        members += [(f"s{i}.json", as_json(fields(i))), (f"s{i}.png", picture(colour=(i, 0, 0)))]
    return write_tar(path, members)


def refused(path, *parts):
    with pytest.raises(UserError) as caught:
        index_shard(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is not a readable tar file (") and "\n" not in message
    for part in parts:
        assert part in message
    assert not index_path(path).exists()
    return True


def test_a_file_cut_off_anywhere_before_the_end_mark_is_refused(tmp_path):
    path = good_tar(tmp_path / "x.tar")
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + 512 * -(-last.size // 512)
    assert whole[end:].strip(b"\0") == b""
    # every block boundary, also those between two members, and within blocks
    for cut in [*range(0, end + 1, 512), *range(1, end, 301), end + 511]:
        path.write_bytes(whole[:cut])
        assert refused(path), cut
    path.write_bytes(whole[: end + 512])  # one block of zeros is enough for other programs, too
    assert len(scan(path, Counter()).entries) == 3


def test_an_empty_file_says_so(tmp_path):
    (tmp_path / "x.tar").touch()
    assert refused(tmp_path / "x.tar", "it is empty")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, lambda c: b"(\xb5/\xfd" + c])
def test_a_compressed_file_is_to_be_unpacked(tmp_path, compress):
    path = good_tar(tmp_path / "x.tar")
    path.write_bytes(compress(path.read_bytes()))
    assert refused(path, "it is compressed; unpack it first")


@pytest.mark.parametrize(
    "content",
    [b"this is no tar file " * 100, b"{}", b"\xff" * 511, random.Random(0).randbytes(20_000), b"PK\x03\x04" * 600],
    ids=["text", "json", "short", "noise", "zip"],
)
def test_what_is_no_tar_file_at_all_is_refused(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    assert refused(tmp_path / "x.tar")


def test_a_damaged_header_in_the_middle_is_named_with_its_byte(tmp_path):
    path = good_tar(tmp_path / "x.tar")
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2]
    content = bytearray(path.read_bytes())
    content[third.offset + 150] ^= 1  # in the header's own checksum
    path.write_bytes(content)
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 2  # the reason for the check: tarfile says nothing
    assert refused(path, f"it is damaged at byte {third.offset})")


def test_a_hole_of_zeros_in_the_middle_is_no_end(tmp_path):
    path = good_tar(tmp_path / "x.tar")
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2]
    content = bytearray(path.read_bytes())
    content[third.offset : third.offset_data] = bytes(512)
    path.write_bytes(content)
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 2
    assert refused(path, f"it is damaged at byte {third.offset_data})")


def test_two_tar_files_one_after_another_are_not_one(tmp_path):
    path = good_tar(tmp_path / "x.tar")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() * 2)
    assert refused(path, f"it is damaged at byte {size})")


def test_a_damaged_extended_header_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.json", "b" * 150 + ".json"):
            tar.addfile(tarfile.TarInfo(name))
    content = bytearray(path.read_bytes())
    content[512 * 3] ^= 1  # the header that follows the long name
    path.write_bytes(content)
    assert refused(path)


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A header whose 12 bytes of size are as given, with the right checksum."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("kind", [b"0", b"L", b"x"], ids=["file", "GNU long name", "PAX header"])
@pytest.mark.parametrize(
    "size",
    [b"\xff" * 10 + b"\xfa\x00", b"\x80\x7f" + b"\xff" * 10, b"\x80" + b"\0" * 6 + b"\x7f" + b"\xff" * 4],
    ids=["negative", "over 64 bits", "over the file"],
)
def test_an_impossible_size_is_refused_and_nobody_waits_for_ever(tmp_path, size, kind):
    path = tmp_path / "x.tar"
    path.write_bytes(header("a.json", b"00000000000\0") * 3 + header("b.json", size, kind) + bytes(10_240))
    assert refused(path)


def test_a_member_stored_sparsely_is_refused_by_name(tmp_path):
    # POSIX sparse format 1.0, as GNU tar writes it: the member's bytes begin with a map
    path = tmp_path / "x.tar"
    info = tarfile.TarInfo("GNUSparseFile.0/a.json")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    info.pax_headers |= {"GNU.sparse.name": "a.json", "GNU.sparse.realsize": "4096"}
    stored = b"1\n0\n2\n".ljust(512, b"\0") + b"{}"
    info.size = len(stored)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(stored))
    with pytest.raises(UserError, match=r"x\.tar: member a\.json is stored sparsely"):
        index_shard(path)


def test_a_missing_shard_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.tar"):
        index_shard(tmp_path / "gone.tar")


def test_a_refused_file_leaves_the_old_index_alone(tmp_path):
    good_shards(tmp_path)
    path = tmp_path / "000000.tar"
    before = index_path(path).read_bytes()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError):
        index_shard(path)
    assert index_path(path).read_bytes() == before
