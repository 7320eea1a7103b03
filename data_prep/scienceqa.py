"""ScienceQA as published (https://github.com/lupantech/ScienceQA) -> shards of one split.

    python -m data_prep.scienceqa --data raw/scienceqa --split train --out data/scienceqa/train

    raw/scienceqa/problems.json          {"17": {"question", "choices", "answer", "hint", "image", "grade", ...}}
    raw/scienceqa/pid_splits.json        {"train": ["17", ...], "val": [...], "test": [...], "minival": [...]}
    raw/scienceqa/captions.json          {"captions": {"17": "A picture of ..."}}; may be missing
    raw/scienceqa/images/train/17/image.png

Lectures and solutions are left behind: the answer alone is trained.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep.annotations import load_json, part, texts
from data_prep.command import convert, converter_parser
from data_prep.plan import Planned, key_of
from dsmemvp.data.sample import SampleError
from dsmemvp.errors import UserError

CLASSES = ("subject", "topic", "category", "skill", "split")


def main() -> int:
    parser = converter_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with problems.json and the other files")
    parser.add_argument("--captions", type=Path, help="file of captions (default: captions.json if there is one)")
    given = parser.parse_args()
    given.split = given.split or given.out.resolve().name
    data, captions = given.data, given.captions
    if captions is None and (data / "captions.json").is_file():
        captions = data / "captions.json"
    files = [data / "problems.json", data / "pid_splits.json", *([captions] if captions else [])]
    return convert("scienceqa", given, data / "images", files, plan_rows(data, given.split, captions))


def plan_rows(data: Path, split: str, captions: Path | None) -> Iterator[Planned | SampleError]:
    splits = load_json(data / "pid_splits.json", dict)
    if split not in splits:
        raise UserError(f"--split: {data / 'pid_splits.json'} has {', '.join(splits)}, not {split!r}")
    problems = load_json(data / "problems.json", dict)
    said = part(load_json(captions, dict), "captions", dict, str(captions)) if captions else {}
    for name in part(splits, split, list, str(data / "pid_splits.json")):
        where = f"{data / 'problems.json'}, problem {name}"
        try:
            row = _row(str(name), part(problems, str(name), dict, where), said.get(str(name), ""), where)
        except SampleError as error:
            yield error
        else:
            yield row


def _row(name: str, problem: dict, caption: str, where: str) -> Planned:
    fields = {
        "id": name,
        "task": "scienceqa",
        "question": part(problem, "question", str, where),
        "context": part(problem, "hint", str, where),
        "choices": texts(part(problem, "choices", list, where), "choices", where),
        "answer": part(problem, "answer", int, where),
        "caption": caption,
        "grade": _grade(part(problem, "grade", str, where), where),
        **{key: part(problem, key, str, where) for key in CLASSES},
    }
    image = problem.get("image")
    return Planned(key_of(name), fields, where, f"{fields['split']}/{name}/{image}" if image else None)


def _grade(text: str, where: str) -> int:
    grade = re.fullmatch(r"grade(\d+)", text)
    if grade is None or not 1 <= int(grade[1]) <= 12:
        raise SampleError(where, f"grade {text!r} is none of grade1 to grade12")
    return int(grade[1])


if __name__ == "__main__":
    sys.exit(main())
