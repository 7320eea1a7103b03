"""Any folder of images + JSON lines -> shards.

    python -m data_prep.folder --rows train.jsonl --images DIR --out data/mine/train

A row is {"question", "answer", ...}, with "image" (path below DIR) if there is one and "choices" for multiple
choice, whose answer is the index or the text of the right choice. "context", "caption", "subject", "grade" and whatever
else a row holds travel along. A row's "id", with every other character than letters, digits, "_" and "-" replaced, is
its sample's key; without one the number of its line is.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.annotations import plan_lines
from data_prep.command import convert, converter_parser
from data_prep.plan import Planned, key_of
from dsmemvp.data.sample import SampleError


def main() -> int:
    parser = converter_parser(__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines, one question each")
    parser.add_argument("--images", type=Path, required=True, help="folder that the rows' image paths start from")
    given = parser.parse_args()
    return convert("folder", given, given.images, [given.rows], plan_rows(given.rows))


def plan_rows(path: Path) -> Iterator[Planned | SampleError]:
    return plan_lines(path, _row)


def _row(fields: Any, where: str, number: int) -> Planned:
    if not isinstance(fields, dict):
        raise SampleError(where, "is not a JSON object")
    choices, answer = fields.get("choices"), fields.get("answer")
    if isinstance(choices, list) and choices and isinstance(answer, str):
        if answer not in choices:
            raise SampleError(where, f"answer {answer!r} is none of its choices")
        fields["answer"] = choices.index(answer)
    fields.setdefault("task", "multiple choice" if choices else "vqa")
    image = fields.pop("image", None)
    name = fields.get("id")
    key = ("" if name is None else key_of(name)) or f"{number:09d}"
    return Planned(key, fields, where, str(image) if image else None)


if __name__ == "__main__":
    sys.exit(main())
