"""Numbers in messages agree with their nouns."""

from dsmemvp.counting import counted


def test_one_is_one_and_all_else_are_many():
    assert [counted(n, "shard") for n in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]
    assert counted(1, "context was", "contexts were") == "1 context was"
    assert counted(2, "context was", "contexts were") == "2 contexts were"
