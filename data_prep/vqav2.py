"""VQAv2 as published (https://visualqa.org) -> shards of one split.

    python -m data_prep.vqav2 --questions v2_OpenEnded_mscoco_train2014_questions.json \\
        --annotations v2_mscoco_train2014_annotations.json --images train2014 --out data/vqav2/train

    questions     {"questions": [{"image_id": 9, "question": "...", "question_id": 9000}]}
    annotations   {"annotations": [{"question_id": 9000, "multiple_choice_answer": "...", "question_type": "what is",
                  "answer_type": "other", "answers": [{"answer": "..."}, ... ten of them]}]}
    images        train2014/COCO_train2014_000000000009.jpg; for val2014: --image-name "COCO_val2014_{:012d}.jpg"

The answer is the published most frequent one; the ten given answers travel along for the score. The test splits are
published without answers, and a sample needs one.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep.annotations import part, table
from data_prep.command import convert, converter_parser
from data_prep.plan import Planned, key_of
from dsmemvp.data.sample import SampleError
from dsmemvp.errors import UserError


def main() -> int:
    parser = converter_parser(__doc__)
    parser.add_argument("--questions", type=Path, required=True, help="the file of questions")
    parser.add_argument("--annotations", type=Path, required=True, help="the file of answers")
    parser.add_argument("--images", type=Path, required=True, help="folder of images")
    parser.add_argument("--image-name", default="COCO_train2014_{:012d}.jpg", help="file name of an image_id")
    given = parser.parse_args()
    rows = plan_rows(given.questions, given.annotations, given.image_name)
    return convert("vqav2", given, given.images, [given.questions, given.annotations], rows)


def plan_rows(questions: Path, annotations: Path, image_name: str) -> Iterator[Planned | SampleError]:
    _check(image_name)
    answers = {
        part(answer, "question_id", int, f"{annotations}, annotation {number}"): answer
        for number, answer in enumerate(table(annotations, "annotations"))
    }
    for number, question in enumerate(table(questions, "questions")):
        where = f"{questions}, question {number}"
        try:
            where = f"{questions}, question_id {part(question, 'question_id', int, where)}"
            row = _row(question, answers.get(question["question_id"]), image_name, where, annotations)
        except SampleError as error:
            yield error
        else:
            yield row


def _row(question: dict, answer: dict | None, image_name: str, where: str, annotations: Path) -> Planned:
    if answer is None:
        raise SampleError(where, f"has no answer in {annotations}; a sample needs one, for evaluation too")
    name = question["question_id"]
    given = part(answer, "answers", list, where)
    fields = {
        "id": str(name),
        "task": "vqa",
        "question": part(question, "question", str, where),
        "answer": part(answer, "multiple_choice_answer", str, where),
        "answers": [part(one, "answer", str, where) for one in given],
        "question_type": part(answer, "question_type", str, where),
        "answer_type": part(answer, "answer_type", str, where),
    }
    image = image_name.format(part(question, "image_id", int, where))
    return Planned(key_of(name), fields, where, image)


def _check(image_name: str) -> None:
    try:
        if image_name.format(1) != image_name.format(2):
            return
    except (ValueError, LookupError):
        pass
    raise UserError(f"--image-name: {image_name!r} does not hold a place for the image_id, such as {{:012d}}")


if __name__ == "__main__":
    sys.exit(main())
