"""Captions alone, without pictures -> shards, for stages that train on text.

    python -m data_prep.captions_text --rows captions.jsonl --out data/captions/train
    python -m data_prep.captions_text --shards data/coco/train data/llava/train --out data/captions/train

    captions.jsonl   {"caption": "A red ball on the grass.", "id": "cc3m-000012"}, or a text in quotes, on every line
    shards           folders that other converters have written: of each sample its caption, or its answer if that is
                     one; samples without a caption, and a caption that stood before, are passed over

A row's "id", with every other character than letters, digits, "_" and "-" replaced, is its sample's key; without one
the number of its line is, and of shards the running number among all of them.
"""

import hashlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.annotations import plan_lines
from data_prep.command import convert, converter_parser
from data_prep.plan import Planned, key_of
from dsmemvp.data.captions import caption_of
from dsmemvp.data.manifest import FILE, read_manifest
from dsmemvp.data.sample import BadSample, SampleError, read_sample
from dsmemvp.data.stream import read_all


def main() -> int:
    parser = converter_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--rows", type=Path, help="JSON lines, one caption each")
    source.add_argument("--shards", type=Path, nargs="+", help="folders of shards whose captions to take")
    given = parser.parse_args()
    if given.rows:
        return convert("captions_text", given, given.rows.parent, [given.rows], plan_lines(given.rows, _row))
    inputs = [folder / FILE for folder in given.shards]
    return convert("captions_text", given, given.shards[0], inputs, plan_shards(given.shards))


def _row(row: Any, where: str, number: int) -> Planned:
    row = {"caption": row} if isinstance(row, str) else row
    if not isinstance(row, dict) or not isinstance(row.get("caption"), str):
        raise SampleError(where, 'is neither a text nor an object with a "caption"')
    if not row["caption"].strip():
        raise SampleError(where, "its caption is empty")
    name = row.get("id")
    key = ("" if name is None else key_of(name)) or f"{number:09d}"
    return Planned(key, {"id": key, "caption": row["caption"].strip()}, where)


def plan_shards(folders: Sequence[Path]) -> Iterator[Planned | SampleError]:
    seen: set[bytes] = set()
    entries = itertools.chain.from_iterable(read_all(read_manifest(folder)) for folder in folders)
    for number, entry in enumerate(entries, 1):
        try:
            if isinstance(entry, BadSample):
                raise entry.error
            sample = read_sample(entry)
        except SampleError as error:
            yield error
            continue
        caption = caption_of(sample)
        digest = hashlib.blake2b(caption.encode(), digest_size=16).digest()
        if caption and digest not in seen:
            seen.add(digest)
            yield Planned(f"{number:09d}", {"id": f"{number:09d}", "caption": caption}, sample.where)


if __name__ == "__main__":
    sys.exit(main())
