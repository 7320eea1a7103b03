"""Shards and how their samples are read; shards behind a web server of this machine, and a cache for them."""

import pytest
from making import good_rows, good_shards
from serving import serve

from data_prep.shards import write_shards
from dsmemvp.data import fetch
from dsmemvp.data.cache import Cache
from dsmemvp.data.collator import Collator
from dsmemvp.data.images import ImageTransform


@pytest.fixture
def there(tmp_path):
    """Nine samples in three shards of 10,240 bytes each."""
    good_shards(tmp_path / "there", number=9, per_shard=3)
    return tmp_path / "there"


@pytest.fixture
def soon(monkeypatch):
    """Attempts follow one another at once."""
    monkeypatch.setattr(fetch, "BACK_OFF", 0.001)


@pytest.fixture
def server(there, soon, monkeypatch, tmp_path):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # whose .netrc is this test's
    with serve(there) as server:
        yield server


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", 1 << 30, pipes=False, timeout=10)


@pytest.fixture
def collator(tokenizer_path):
    return Collator(str(tokenizer_path), ImageTransform(4, 10_000), False, 200, skip_bad=False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """23 good samples in shards of 5; even ones have a picture whose red channel is their number."""
    return write_shards(good_rows(23), tmp_path_factory.mktemp("good") / "train", "train", per_shard=5)
