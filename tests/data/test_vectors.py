"""Stored vectors of captions: several data sets one after another, an interrupted one, a damaged one."""

import json
import pickle

import numpy as np
import pytest

from dsmemvp.data.vectors import CaptionVectors, check_vectors, join_parts, part_path, vectors_path, write_part
from dsmemvp.errors import UserError

COUNTS = (3, 1, 2)


@pytest.fixture
def stored(tmp_path):
    """Two data sets of 6 samples, and their vectors."""
    paths, parts = [], []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        known = {"data": name}
        path = vectors_path(folder, known)
        own = [np.random.default_rng((len(paths), shard)).random((n, 5)) for shard, n in enumerate(COUNTS)]
        for shard, vectors in enumerate(own):
            write_part(path, shard, vectors)
        join_parts(path, COUNTS, 5, known)
        paths.append(path)
        parts += own
    return paths, np.concatenate(parts).astype(np.float32)


def test_rows_are_those_of_running_numbers_over_all_data_sets(stored):
    paths, whole = stored
    vectors = pickle.loads(pickle.dumps(CaptionVectors(tuple(paths))))
    for numbers in ([0], [5, 6], [11, 0, 3, 3], list(range(12))):
        assert np.array_equal(vectors.rows(numbers).numpy(), whole[numbers])
    assert not vectors.rows([]).any() and vectors.rows([]).shape == (1, 5)
    assert np.array_equal(np.load(paths[1]), whole[6:])
    assert paths[0].name != paths[1].name and not part_path(paths[0], 0).parent.exists()


def test_another_run_may_have_joined_the_parts_first(stored, tmp_path):
    (path, _), _ = stored
    content = path.read_bytes()
    write_part(path, 1, np.ones((1, 5)))  # of a run that was slower
    join_parts(path, COUNTS, 5, {"data": "one"})
    assert path.read_bytes() == content and not part_path(path, 0).parent.exists()
    with pytest.raises(FileNotFoundError):
        join_parts(tmp_path / "vectors-0.npy", COUNTS, 5, {})
    assert not list(tmp_path.glob("partial-*"))


def test_what_is_not_as_it_was_written_is_told(stored):
    (path, _), _ = stored
    check_vectors(path, 6)
    with pytest.raises(UserError, match="does not hold the vectors of 7 samples; delete it"):
        check_vectors(path, 7)
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match="is damaged: its checksum"):
        check_vectors(path, 6)
    path.write_bytes(content[:-3])
    with pytest.raises(UserError, match="holds no vectors"):
        check_vectors(path, 6)
    about = json.loads(path.with_suffix(".json").read_text())
    path.write_bytes(content)
    for damaged in ("null", "{}"):
        path.with_suffix(".json").write_text(damaged)
        with pytest.raises(UserError, match=r"does not say what .* holds; delete both"):
            check_vectors(path, 6)
    assert (about["samples"], about["width"], about["follows_from"]) == (6, 5, {"data": "one"})
