"""VQA-RAD as published (Lau et al. 2018, https://osf.io/89kps) -> shards of one split: questions about radiographs.

    python -m data_prep.vqa_rad --questions "VQA_RAD Dataset Public.json" --images VQA_RAD_Image_Folder \\
        --split train --out data/vqa_rad/train

    questions     [{"qid": "0", "image_name": "synpic54610.jpg", "question": "...", "answer": "Yes",
                  "answer_type": "CLOSED", "phrase_type": "freeform", ...}]
    images        VQA_RAD_Image_Folder/synpic54610.jpg

--split is train or test (default: the name of --out): test are the questions whose phrase_type begins with "test", 451
of 2,248. Answers are put in lower case, in which they are compared: the set has Yes beside yes. Most test pictures are
also in train; that is how the set is made.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.annotations import load_json, part
from data_prep.command import convert, converter_parser
from data_prep.plan import Planned, key_of
from data_prep.progress import say
from dsmemvp.data.sample import SampleError

SPLITS = ("train", "test")


def main() -> int:
    parser = converter_parser(__doc__)
    parser.add_argument("--questions", type=Path, required=True, help="file of all questions")
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    given = parser.parse_args()
    split = given.split or given.out.name
    if split not in SPLITS:
        say("vqa_rad", f"error: --split: must be train or test, not {split!r}", error=True)
        return 1
    return convert("vqa_rad", given, given.images, [given.questions], plan_rows(given.questions, split))


def plan_rows(path: Path, split: str) -> Iterator[Planned | SampleError]:
    for number, question in enumerate(load_json(path, list), 1):
        where = f"{path}, question {number}"
        try:
            if part(question, "phrase_type", str, where).startswith("test") == (split == "test"):
                yield _row(question, where)
        except SampleError as error:
            yield error


def _row(question: Any, where: str) -> Planned:
    name = question.get("qid")
    if not isinstance(name, str | int):
        raise SampleError(where, f"qid is not a text or a number: {name!r}")
    image = part(question, "image_name", str, where)
    fields = {
        "id": str(name),
        "task": "vqa",
        "question": part(question, "question", str, where).strip(),
        "answer": str(question.get("answer", "")).strip().lower(),
    }
    # answers are closed (yes and no, and some others) or open; some entries have spaces behind the word
    for key in ("answer_type", "question_type", "image_organ"):
        if isinstance(question.get(key), str):
            fields[key] = question[key].strip()
    return Planned(key_of(name), fields, where, image)


if __name__ == "__main__":
    sys.exit(main())
