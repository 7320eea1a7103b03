"""VQA-RAD as published (Lau et al. 2018, https://osf.io/89kps) -> shards of one split: questions about radiographs.

    python -m data_prep.vqa_rad --questions "VQA_RAD Dataset Public.json" --images VQA_RAD_Image_Folder \\
        --split train --out data/vqa_rad/train

    questions     [{"qid": "0", "image_name": "synpic54610.jpg", "question": "...", "answer": "Yes",
                  "answer_type": "CLOSED", "phrase_type": "freeform", ...}]
    images        VQA_RAD_Image_Folder/synpic54610.jpg

--split is train, validation or test (default: the name of --out): test are the questions whose phrase_type begins with
"test", 451 of 2,248. The set has no validation split: --held-out 0.1 takes all questions about a tenth of the pictures
out of train for it, the same ones every time; --held-out-by question takes a tenth of the questions, about pictures
that train keeps, which asks what a model can say of pictures that it has been trained on. Answers are put in lower
case, in which they are compared: the set has Yes beside yes. Most test pictures are also in train; that is how the set
is made.
"""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.annotations import load_json, part
from data_prep.command import convert, converter_parser
from data_prep.plan import Planned, key_of
from data_prep.progress import say
from dsmemvp.data.sample import SampleError

SPLITS = ("train", "validation", "test")


def main() -> int:
    parser = converter_parser(__doc__)
    parser.add_argument("--questions", type=Path, required=True, help="file of all questions")
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.0,
        help="share of train's pictures that are validation's instead (default: 0)",
    )
    parser.add_argument(
        "--held-out-by", choices=("picture", "question"), default="picture", help="what --held-out is a share of"
    )
    given = parser.parse_args()
    split = given.split or given.out.name
    if split not in SPLITS:
        say("vqa_rad", f"error: --split: must be {', '.join(SPLITS)}, not {split!r}", error=True)
        return 1
    if not 0 <= given.held_out < 1 or (split == "validation" and not given.held_out):
        say("vqa_rad", f"error: --held-out: give a share for validation, below 1, not {given.held_out}", error=True)
        return 1
    key = {"picture": "image_name", "question": "qid"}[given.held_out_by]
    planned = plan_rows(given.questions, split, given.held_out, key)
    return convert("vqa_rad", given, given.images, [given.questions], planned)


def plan_rows(path: Path, split: str, held_out: float = 0.0, by: str = "image_name") -> Iterator[Planned | SampleError]:
    for number, question in enumerate(load_json(path, list), 1):
        where = f"{path}, question {number}"
        try:
            if _split_of(question, where, held_out, by) == split:
                yield _row(question, where)
        except SampleError as error:
            yield error


def _split_of(question: Any, where: str, held_out: float, by: str) -> str:
    if part(question, "phrase_type", str, where).startswith("test"):
        return "test"
    # a qid is a text or a number, which _row checks
    value = part(question, by, str, where) if by == "image_name" else str(question.get(by))
    digest = hashlib.sha256(value.encode()).digest()
    return "validation" if int.from_bytes(digest[:4], "big") < held_out * 2**32 else "train"


def _row(question: Any, where: str) -> Planned:
    name = question.get("qid")
    if not isinstance(name, str | int):
        raise SampleError(where, f"qid is not a text or a number: {name!r}")
    image = part(question, "image_name", str, where)
    if not image:
        raise SampleError(where, "image_name is empty")
    fields = {
        "id": str(name),
        "task": "vqa",
        "question": part(question, "question", str, where).strip(),
        "answer": _answer(question, where),
    }
    # answers are closed (yes and no, and some others) or open; some entries have spaces behind the word
    for key in ("answer_type", "question_type", "image_organ"):
        if isinstance(question.get(key), str):
            fields[key] = question[key].strip()
    return Planned(key_of(name), fields, where, image)


def _answer(question: dict[str, Any], where: str) -> str:
    """A text or a number."""
    answer = question.get("answer")
    if not isinstance(answer, str | int | float) or isinstance(answer, bool):
        raise SampleError(where, f"answer is not a text or a number: {answer!r:.60}")
    return str(answer).strip().lower()


if __name__ == "__main__":
    sys.exit(main())
