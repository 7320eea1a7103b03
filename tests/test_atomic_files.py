"""Files that several processes write at the same time."""

from concurrent.futures import ThreadPoolExecutor

from dsmemvp.atomic_files import replace_file


def test_of_writers_at_the_same_time_one_is_whole_and_none_fails(tmp_path):
    path, contents = tmp_path / "shared.json", [bytes([letter]) * 50_000 for letter in b"abcdefgh"]
    with ThreadPoolExecutor(len(contents)) as writers:
        for _ in range(2):
            list(writers.map(lambda content: replace_file(path, content, shared=True), contents))
            assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]
