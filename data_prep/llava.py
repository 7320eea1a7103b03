"""Conversations about images in LLaVA's layout -> shards.

    python -m data_prep.llava --conversations llava_v1_5_mix665k.json --images data --out data/llava/train

    conversations   [{"id": "000000033471", "image": "coco/train2017/000000033471.jpg", "conversations":
                    [{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A bus."}, ...]}]

Every answer of "gpt" is a sample: the words of "human" before it are the question, the turns before them the context.
"image" may be missing. Published files have the same id more than once, so a key also holds the entry's number.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.annotations import load_json, part
from data_prep.command import convert, converter_parser
from data_prep.plan import Planned, key_of
from dsmemvp.data.sample import SampleError

ROLES = {"human": "Question", "gpt": "Response"}
"""How earlier turns are called in the context."""
ID_CHARACTERS = 40


def main() -> int:
    parser = converter_parser(__doc__)
    parser.add_argument("--conversations", type=Path, required=True, help="the file of conversations")
    parser.add_argument("--images", type=Path, required=True, help="folder that the images' paths start from")
    given = parser.parse_args()
    return convert("llava", given, given.images, [given.conversations], plan_rows(given.conversations))


def plan_rows(path: Path) -> Iterator[Planned | SampleError]:
    for number, entry in enumerate(load_json(path, list)):
        where = f"{path}, conversation {number}"
        try:
            rows = _samples(entry, number, where)
        except SampleError as error:
            yield error
        else:
            yield from rows


def _samples(entry: Any, number: int, where: str) -> list[Planned]:
    """One per answer. Raises SampleError for the conversation as a whole."""
    turns = [_turn(turn, where) for turn in part(entry, "conversations", list, where)]
    if turns and turns[0][0] == "gpt":  # an answer to nothing, as some published conversations begin
        turns = turns[1:]
    if turns and turns[-1][0] == "human":
        turns = turns[:-1]
    if not turns or [speaker for speaker, _ in turns] != ["human", "gpt"] * (len(turns) // 2):
        raise SampleError(where, "is not made of turns of human and gpt, one after the other")
    image = entry.get("image") or None
    if image is not None and not isinstance(image, str):
        raise SampleError(where, "has more than one image" if isinstance(image, list) else "image is not text")
    name = str(entry.get("id", ""))[:ID_CHARACTERS]
    rows = []
    for i in range(0, len(turns), 2):
        key = key_of(*([name] if name else []), f"{number:07d}", i // 2)
        fields = {
            "id": key,
            "task": "conversation",
            "question": turns[i][1],
            "context": "\n".join(f"{ROLES[speaker]}: {text}" for speaker, text in turns[:i]),
            "answer": turns[i + 1][1],
        }
        rows.append(Planned(key, fields, f"{where}, answer {i // 2}", image))
    return rows


def _turn(turn: Any, where: str) -> tuple[str, str]:
    """(who, what) without the mark that stands for the image."""
    text = part(turn, "value", str, where).replace("<image>", "")
    return part(turn, "from", str, where), text.strip()


if __name__ == "__main__":
    sys.exit(main())
