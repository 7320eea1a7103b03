"""Every fault of a JSON file is one line that names it."""

import os

import pytest

from dsmemvp.errors import UserError
from dsmemvp.json_text import parse_json, read_json


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a":' * 100_000, "is nested too deeply"),
        (b"{", "is not JSON"),
        (b"\xff\xfe{", "is not JSON"),
        (b"1" * 10_000, "is not JSON"),
    ],
)
def test_faults_are_one_line(content, why):
    with pytest.raises(UserError, match=why) as caught:
        parse_json(content, "file.json")
    assert str(caught.value).startswith("file.json is not") and "\n" not in str(caught.value)


def test_what_is_not_a_small_regular_file_is_refused(tmp_path):
    fifo, large = tmp_path / "fifo.json", tmp_path / "large.json"
    os.mkfifo(fifo)
    large.write_bytes(b" " * 11)
    with pytest.raises(UserError, match="regular file"):
        read_json(fifo)
    with pytest.raises(UserError, match="11 bytes, at most 10"):
        read_json(large, most=10)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
