"""A folder of photographs -> shards to train on and shards to test on.

    python -m data_prep.photos --photos DIR --out data/photos

DIR holds one subfolder for each class, whose name is the answer ("golden_retriever": golden retriever); or a file of
JSON lines, {"image", "question", "answer"} with paths below DIR, one question each; --photos may also name that file.
With "choices" beside an "answer" the text of the right choice is the answer: it is asked for in words.

A photograph belongs to the test split by its content alone, whatever it is called and wherever it lies; copies of one
are on the same side. --held-out photographs are taken: of each class, or of JSON lines of all.
"""

import argparse
import hashlib
import json
import math
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_prep.command import convert, converter_parser
from data_prep.folder import plan_rows
from data_prep.plan import Planned, key_of
from data_prep.progress import say
from dsmemvp.counting import counted
from dsmemvp.data.sample import IMAGE_ENDINGS, SampleError
from dsmemvp.errors import UserError

QUESTION = "What is in the photo?"
RESIZED, PER_SHARD = 224, 50
"""Pixels of DINOv2's input in recipes/photos.yaml; and few samples, so that ranks share the work of the tower."""


@dataclass(frozen=True)
class Photo:
    """A row of one photograph or of none."""

    row: Planned | SampleError
    group: str
    """What a share is held out of."""
    digest: str
    """SHA-256 of the photograph; empty without one."""


def main() -> int:
    parser = converter_parser(__doc__)
    parser.set_defaults(resize=RESIZED, per_shard=PER_SHARD)
    parser.add_argument("--photos", type=Path, required=True, help="the folder, or its file of JSON lines")
    parser.add_argument(
        "--question", default=QUESTION, help="asked of every photograph of a class (default: %(default)s)"
    )
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.15,
        help="photographs to test on: a share, or from 1 on a number (default: %(default)s)",
    )
    given = parser.parse_args()
    out = given.out
    try:
        folder, photos = read_photos(given.photos, given.question)
        held = held_out(photos, given.held_out)
    except (ValueError, OSError) as error:
        say("photos", f"error: {error}", error=True)
        return 1
    for split in ("train", "test"):
        chosen = [photo for photo in photos if (photo.digest in held) == (split == "test")]
        own = argparse.Namespace(**vars(given) | {"out": out / split, "split": split, "content": _content(chosen)})
        if code := convert("photos", own, folder, [], (photo.row for photo in chosen)):
            return code
    return 0


def read_photos(source: Path, question: str) -> tuple[Path, list[Photo]]:
    """The folder that images lie below, and all rows. Raises UserError or OSError."""
    if not source.exists():
        raise UserError(f"--photos: {source} does not exist")
    rows = [source] if source.is_file() else sorted(source.glob("*.jsonl"))
    if len(rows) > 1:
        raise UserError(f"--photos: {source} has {', '.join(path.name for path in rows)}; name one of them")
    folder = rows[0].parent if rows else source
    photos = [_of_row(row, folder) for row in plan_rows(rows[0])] if rows else _of_classes(source, question)
    # in the order of their digests, so that neighbours are not of one class
    return folder, sorted(photos, key=lambda photo: photo.digest)


def _of_classes(folder: Path, question: str) -> list[Photo]:
    photos, others = [], Counter[str]()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if any(part.startswith((".", "__MACOSX")) for part in inside.parts) or not path.is_file():
            continue
        ending = path.suffix.removeprefix(".").lower()
        if ending not in IMAGE_ENDINGS or len(inside.parts) < 2:
            others[f".{ending}" if len(inside.parts) > 1 else "beside the subfolders"] += 1
            continue
        answer = class_name(inside.parts[0])
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        fields = {"question": question, "answer": answer, "task": "vqa"}
        start = key_of(*inside.parts).encode()[:60].decode(errors="ignore")  # a key's limit is in bytes
        photos.append(Photo(Planned(f"{start}-{digest[:12]}", fields, str(path), str(inside)), answer, digest))
    if others:
        listed = ", ".join(f"{number} {what}" for what, number in others.most_common(5))
        say("photos", f"not used, since they are no photographs of a class: {listed}")
    classes = {photo.group for photo in photos}
    if len(classes) < 2:
        raise UserError(
            f"--photos: {folder} has {counted(len(classes), 'subfolder')} with photographs"
            f" ({', '.join(IMAGE_ENDINGS)}); give one subfolder for each class, at least two, or a file of JSON lines"
        )
    return photos


def class_name(folder: str) -> str:
    """What a class is called in an answer: "001.Black_footed_Albatross" -> "Black footed Albatross"."""
    return " ".join(re.sub(r"^\d+\.", "", folder).replace("_", " ").split()) or folder


def _of_row(row: Planned | SampleError, folder: Path) -> Photo:
    if isinstance(row, SampleError):
        return Photo(row, "", "")
    fields = dict(row.fields)
    choices, answer = fields.pop("choices", None), fields.get("answer")
    if isinstance(choices, list) and type(answer) is int and 0 <= answer < len(choices):
        fields["answer"] = choices[answer]
    fields["task"] = "vqa"
    path = folder / row.image if row.image else None
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else ""
    return Photo(Planned(row.key, fields, row.where, row.image), "", digest)


def held_out(photos: list[Photo], wanted: float) -> set[str]:
    """Digests of the photographs to test on: in the order of their digests the first ones of each group. Raises
    UserError if nothing would be left to train or to test on."""
    groups: dict[str, set[str]] = {}
    for photo in photos:
        if photo.digest:
            groups.setdefault(photo.group, set()).add(photo.digest)
    total = sum(map(len, groups.values()))
    share = wanted / total if wanted >= 1 and total else wanted
    if not 0 < share < 1:
        raise UserError(f"--held-out: {wanted:g} of {counted(total, 'photograph')}; take fewer, but some")
    held: set[str] = set()
    before = 0.0
    for _, digests in sorted(groups.items()):
        # shares of a photograph add up over the groups, so that the whole is what was wanted
        number = math.floor(before + share * len(digests) + 1e-9) - math.floor(before + 1e-9)
        before += share * len(digests)
        held |= set(sorted(digests)[:number])
    if not held:
        raise UserError(f"--held-out: {wanted:g} of {counted(total, 'photograph')} is none; take more")
    return held


def _content(photos: list[Photo]) -> str:
    """Tells these rows from any others, for a preparation to resume only with the same."""
    known = hashlib.sha256()
    for photo in photos:
        row = photo.row
        known.update(json.dumps([str(row)] if isinstance(row, SampleError) else [row.key, row.fields]).encode())
        known.update(photo.digest.encode())
    return known.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
