"""Token counts kept beside a run are those of the samples that the run then encodes."""

import io
import os
from dataclasses import replace

import numpy as np
import pytest
from making import good_rows

from data_prep.shards import write_shards
from dsmemvp.data.collator import Collator
from dsmemvp.data.images import ImageTransform
from dsmemvp.data.sample import read_sample
from dsmemvp.data.stream import read_all
from dsmemvp.data.token_counts import TokenCounts, count_tokens, countable, counts_path
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.errors import UserError


@pytest.fixture
def collator(tokenizer_path):
    return Collator(str(tokenizer_path), ImageTransform(4, 10_000), False, 60, skip_bad=False)


@pytest.mark.parametrize("processes", [1, 2])
def test_counts_are_those_of_the_encoded_samples_of_all_data_sets(tmp_path, collator, tokenizer_path, processes):
    data = [write_shards(good_rows(7), tmp_path / name, "train", per_shard=3) for name in ("one", "two")]
    assert countable(data)
    counts, tokenizer = count_tokens(tmp_path, data, collator, processes), Tokenizer(tokenizer_path)
    samples = [read_sample(entry) for manifest in data for entry in read_all(manifest)]
    assert [counts[i] for i in range(14)] == [len(collator.text(tokenizer, sample).tokens) for sample in samples]
    assert len(counts.check(14)) == 64
    with pytest.raises(UserError, match="does not hold token counts of 15 samples; delete it"):
        counts.check(15)


def test_counts_are_kept_and_others_are_made_for_other_settings(tmp_path, collator):
    data = [write_shards(good_rows(3), tmp_path / "data", "train")]
    path = count_tokens(tmp_path, data, collator).path
    np.save(path, np.array([7, 7, 7], dtype=np.uint32))
    assert count_tokens(tmp_path, data, collator)[1] == 7  # not counted again
    others = [replace(collator, captions=True), replace(collator, max_length=61), replace(collator, answers=True)]
    assert len({path, *(counts_path(tmp_path, data, other) for other in others)}) == 4


def _saved(save) -> bytes:
    out = io.BytesIO()
    save(out, np.array([7, 7, 7], dtype=np.uint32))
    return out.getvalue()


COUNTS = _saved(np.save)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", COUNTS[:20], COUNTS[:-1], b"PK\x03\x04", _saved(np.savez), b"junk" * 50),
        *(COUNTS.replace(b"{'descr'", b"(((((((("), COUNTS.replace(b"<u4", b"|O ")),
    ],
)
def test_a_damaged_file_of_counts_is_named(tmp_path, content):
    path = tmp_path / "token_counts-0.npy"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"token_counts-0\.npy does not hold token counts \(.+\); delete it"):
        TokenCounts(path).check(3)


def test_a_pipe_in_the_place_of_counts_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "token_counts-0.npy")
    with pytest.raises(UserError, match="not a regular file"):
        TokenCounts(tmp_path / "token_counts-0.npy").check(3)
