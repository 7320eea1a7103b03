"""Counts with their nouns, for messages."""


def counted(number: int, one: str, several: str = "") -> str:
    """ "1 shard", "2 shards"; `several` if an s is not enough, such as "contexts were" beside "context was"."""
    return f"{number} {one if number == 1 else several or one + 's'}"
