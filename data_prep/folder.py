"""Any folder of images + JSON lines -> shards.

    python -m data_prep.folder --rows train.jsonl --images DIR --out data/mine/train

A row is {"question", "answer", ...}, with "image" (path below DIR) where there is one and "choices" for multiple
choice, whose answer is the index or the text of the right choice. "context", "caption", "subject", "grade" and whatever
else a row holds travel along. Images are stored as they are.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.shards import Row, write_shards
from dsmemvp.data.sample import IMAGE_ENDINGS, sample_from_row
from dsmemvp.data.stream import SampleError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines, one question each")
    parser.add_argument("--images", type=Path, required=True, help="folder that the rows' image paths start from")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--split", default="", help="name of the split (default: the name of --out)")
    parser.add_argument("--per-shard", type=int, default=2000, help="samples per shard")
    parser.add_argument("--on-bad-row", choices=("fail", "skip"), default="fail")
    given = parser.parse_args()
    skipped: list[str] = []
    try:
        rows = read_rows(given.rows, given.images, skipped if given.on_bad_row == "skip" else None)
        manifest = write_shards(rows, given.out, given.split or given.out.name, given.per_shard)
    except (ValueError, OSError) as error:
        print(f"data_prep.folder: error: {error}", file=sys.stderr)
        return 1
    print(f"{manifest.samples} samples in {len(manifest.shards)} shards -> {given.out}")
    for message in skipped:
        print(f"left out: {message}")
    return 0


def read_rows(path: Path, images: Path, skipped: list[str] | None) -> Iterator[Row]:
    """Rows ready to write. A row that cannot be used raises SampleError, or its message goes to `skipped`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    keys: set[str] = set()
    with path.open("rb") as file:
        lines = tqdm(file, desc=path.name, unit="row", disable=not sys.stderr.isatty())
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = _row(line, f"{path}, line {number}", images, number)
                if row.key in keys:
                    raise SampleError(f"{path}, line {number}", f"key {row.key!r} stands twice")
                keys.add(row.key)
                yield row
            except SampleError as error:
                if skipped is None:
                    raise
                skipped.append(str(error))


def _row(line: bytes, where: str, images: Path, number: int) -> Row:
    try:
        fields: dict[str, Any] = json.loads(line.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SampleError(where, f"is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise SampleError(where, "is not a JSON object")
    choices, answer = fields.get("choices"), fields.get("answer")
    if isinstance(choices, list) and choices and isinstance(answer, str):
        if answer not in choices:
            raise SampleError(where, f"answer {answer!r} is none of its choices")
        fields["answer"] = choices.index(answer)
    fields.setdefault("task", "scienceqa" if choices else "vqa")
    image, ending = _image(fields.pop("image", None), where, images)
    sample_from_row(fields, image, where)
    name = fields.get("id")
    key = re.sub(r"[^\w-]+", "_", "" if name is None else str(name)) or f"{number:09d}"
    return Row(key, fields, image, ending)


def _image(name: Any, where: str, images: Path) -> tuple[bytes | None, str]:
    if not name:
        return None, ""
    path = images / str(name)
    if not path.resolve().is_relative_to(images.resolve()):
        raise SampleError(where, f"image {name!r} lies outside {images}")
    if not path.is_file():
        raise SampleError(where, f"image {path} does not exist")
    ending = path.suffix.removeprefix(".").lower()
    if ending not in IMAGE_ENDINGS:
        raise SampleError(where, f"image {path} does not end in one of {', '.join(IMAGE_ENDINGS)}")
    return path.read_bytes(), ending


if __name__ == "__main__":
    sys.exit(main())
