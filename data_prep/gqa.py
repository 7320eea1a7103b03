"""GQA as published (https://cs.stanford.edu/people/dorarad/gqa) -> shards of one split.

    python -m data_prep.gqa --questions train_balanced_questions.json --images images --out data/gqa/train
    python -m data_prep.gqa --questions train_all_questions/*.json    --images images --out data/gqa/train_all

    questions     {"02930152": {"imageId": "2354786", "question": "...", "answer": "yes", "fullAnswer": "...",
                  "types": {"structural": "verify", "semantic": "attr", "detailed": "..."}, ...}}
    images        images/2354786.jpg

Files are read one after another, in the order of their names. The test splits are published without answers, and a
sample needs one.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.annotations import load_json, part
from data_prep.command import convert, converter_parser
from data_prep.plan import Planned, key_of
from dsmemvp.data.sample import SampleError


def main() -> int:
    parser = converter_parser(__doc__)
    parser.add_argument("--questions", type=Path, nargs="+", required=True, help="one or several files of questions")
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    given = parser.parse_args()
    given.questions = sorted(given.questions)
    return convert("gqa", given, given.images, given.questions, plan_rows(given.questions))


def plan_rows(files: list[Path]) -> Iterator[Planned | SampleError]:
    for path in files:
        for name, question in load_json(path, dict).items():
            try:
                row = _row(name, question, f"{path}, question {name}")
            except SampleError as error:
                yield error
            else:
                yield row


def _row(name: str, question: Any, where: str) -> Planned:
    image = part(question, "imageId", str, where)
    types = question.get("types")
    fields = {
        "id": name,
        "task": "vqa",
        "question": part(question, "question", str, where),
        "answer": part(question, "answer", str, where),
        "full_answer": question.get("fullAnswer") or "",
        **{
            f"{kind}_type": types[kind]
            for kind in ("structural", "semantic")
            if isinstance(types, dict) and kind in types
        },
    }
    return Planned(key_of(name), fields, where, f"{image}.jpg")


if __name__ == "__main__":
    sys.exit(main())
