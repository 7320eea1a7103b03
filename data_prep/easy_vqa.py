"""easy-VQA's wheel -> shards: questions about pictures of 64 x 64 pixels with one coloured shape.

    pip download --no-deps easy-vqa==1.0 -d data/parts/wheels
    python -m data_prep.easy_vqa --wheel data/parts/wheels/easy_vqa-1.0-py3-none-any.whl --out data/real

Writes OUT/train and OUT/test; the wheel's pictures are unpacked in OUT/raw.
"""

import argparse
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from data_prep.annotations import load_json
from data_prep.command import convert, converter_parser
from data_prep.plan import Planned
from data_prep.progress import say
from dsmemvp.data.sample import SampleError
from dsmemvp.errors import UserError

INSIDE = "easy_vqa/data"
SPLITS = ("train", "test")


def main() -> int:
    parser = converter_parser(__doc__)
    parser.set_defaults(per_shard=500)
    parser.add_argument("--wheel", type=Path, required=True, help="the file that pip has downloaded")
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=int, help="at most so many questions, evenly spread (default: all)")
    given = parser.parse_args()
    out = given.out
    for split in SPLITS:
        if (most := getattr(given, split)) is not None and most < 1:
            say("easy_vqa", f"error: --{split}: give at least 1 question, not {most}", error=True)
            return 1
    try:
        unpack(given.wheel, out / "raw")
    except (ValueError, OSError) as error:
        say("easy_vqa", f"error: {error}", error=True)
        return 1
    for split in SPLITS:
        folder = out / "raw" / INSIDE / split
        own = argparse.Namespace(**vars(given) | {"out": out / split, "split": split})
        questions = folder / "questions.json"
        if code := convert(
            "easy_vqa", own, folder / "images", [questions], plan_rows(questions, getattr(given, split))
        ):
            return code
    return 0


def unpack(wheel: Path, out: Path) -> None:
    """The data of the wheel, below `out`. Raises UserError or OSError."""
    if not wheel.is_file():
        raise UserError(f"--wheel: {wheel} does not exist; `pip download --no-deps easy-vqa==1.0` fetches it")
    try:
        with zipfile.ZipFile(wheel) as packed:
            names = [name for name in packed.namelist() if name.startswith(INSIDE)]
            for split in SPLITS:
                if f"{INSIDE}/{split}/questions.json" not in names:
                    raise UserError(f"--wheel: {wheel} is not that of easy-vqa 1.0: no {INSIDE}/{split}/questions.json")
            for name in names:
                # a preparation resumes if its input's time is the one it had
                os.utime(packed.extract(name, out), ns=(wheel.stat().st_mtime_ns,) * 2)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"--wheel: {wheel} is damaged ({error}); fetch it again") from None


def plan_rows(path: Path, most: int | None) -> Iterator[Planned | SampleError]:
    """Questions are [text, answer, number of the picture]. With `most` spread evenly, so that all pictures are seen."""
    rows = load_json(path, list)
    most = min(most or len(rows), len(rows))
    for number in (n * len(rows) // most for n in range(most)):
        where = f"{path}, question {number}"
        row = rows[number]
        if not (isinstance(row, list) and [type(part) for part in row] == [str, str, int]):
            yield SampleError(where, f"is not [text, answer, number of the picture]: {row!r:.80}")
            continue
        question, answer, image = row
        yield Planned(f"{number:09d}", {"question": question, "answer": answer, "task": "vqa"}, where, f"{image}.png")


if __name__ == "__main__":
    sys.exit(main())
