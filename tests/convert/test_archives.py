"""torch's zip files: what was inserted, doubled, lost or changed in them is found, also where torch reads on."""

import pytest
import torch
from stand_ins import write_torchscript

from dsmemvp.convert.files import tensors_in
from dsmemvp.errors import UserError

TENSORS = {"a.weight": torch.arange(60.0).view(6, 10), "b.weight": torch.arange(30.0, dtype=torch.float64)}


@pytest.fixture(scope="module", params=["save", "script"])
def archive(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "whole.pt"
    if request.param == "save":
        torch.save(TENSORS, path)
    else:
        write_torchscript(TENSORS, path)
    return path


def _read(path) -> bool:
    """Whether the tensors were read as they were written; False where the file is refused."""
    try:
        found = {name: tensor.read() for name, tensor in tensors_in(path).items()}
    except ValueError as error:
        assert str(path) in str(error)
        return False
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    return True


def test_bytes_that_were_inserted_doubled_or_lost_anywhere_are_found(archive):
    content, path = archive.read_bytes(), archive.with_name("damaged.pt")
    assert _read(archive)
    for at in range(0, len(content), 37):
        for changed in (
            content[:at] + b"\0" * 4 + content[at:],
            content[: at + 64] + content[at:],
            content[:at] + content[at + 8 :],
        ):
            path.write_bytes(changed)
            assert not _read(path), at


def test_a_changed_byte_is_found_or_changes_nothing(archive):
    content, path = archive.read_bytes(), archive.with_name("damaged.pt")
    refused = 0
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        refused += not _read(path)
    assert refused > 50


def test_a_part_of_a_storage_is_checked_with_all_of_it(tmp_path):
    whole = torch.arange(3_000_000.0)
    torch.save({"part": whole[5:9]}, tmp_path / "x.pth")
    assert torch.equal(tensors_in(tmp_path / "x.pth")["part"].read(), whole[5:9])
    content = (tmp_path / "x.pth").read_bytes()
    at = len(content) - 8000
    (tmp_path / "x.pth").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(UserError, match=r"'x/data/0' does not have its checksum"):
        tensors_in(tmp_path / "x.pth")["part"].read()


def test_a_file_without_checksums_is_read_with_a_warning(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(TENSORS, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    with pytest.warns(UserWarning, match="written without checksums"):
        assert _read(tmp_path / "x.pth")
