"""Captions of COCO, as published or in Karpathy's splits -> shards of one split.

    python -m data_prep.coco_captions --captions captions_train2014.json --images train2014 --out data/coco/train
    python -m data_prep.coco_captions --captions dataset_coco.json --karpathy test --references \\
        --images coco --out data/coco/test

    captions_train2014.json   {"images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}],
                              "annotations": [{"id": 661611, "image_id": 9, "caption": "..."}]}
    dataset_coco.json         {"images": [{"filepath": "val2014", "filename": "COCO_val2014_....jpg", "split": "test",
                              "cocoid": 391895, "sentences": [{"raw": "...", "sentid": 770337}]}]}
    images                    the folder from which file_name, or filepath/filename, leads to an image

To train, each caption is a sample. With --references, to evaluate, each image is one, with all of its captions.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.annotations import load_json, part
from data_prep.command import convert, converter_parser
from data_prep.plan import Planned, key_of
from dsmemvp.data.sample import DESCRIBE, SampleError
from dsmemvp.errors import UserError


class Picture(NamedTuple):
    name: int
    file: str
    captions: list[tuple[int, str]]
    """Their numbers and texts."""


def main() -> int:
    parser = converter_parser(__doc__)
    parser.add_argument("--captions", type=Path, required=True, help="captions_*.json, or Karpathy's dataset_coco.json")
    parser.add_argument("--images", type=Path, required=True, help="folder that the images' paths start from")
    parser.add_argument(
        "--karpathy",
        nargs="+",
        metavar="SPLIT",
        help="which of train, restval, val, test to take from dataset_coco.json",
    )
    parser.add_argument("--references", action="store_true", help="one sample per image, with all captions")
    given = parser.parse_args()
    rows = plan_rows(given.captions, given.karpathy, given.references)
    return convert("coco_captions", given, given.images, [given.captions], rows)


def plan_rows(path: Path, karpathy: list[str] | None, references: bool) -> Iterator[Planned | SampleError]:
    content = load_json(path, dict)
    for picture in _karpathy(content, path, karpathy) if "annotations" not in content else _published(content, path):
        if isinstance(picture, SampleError):
            yield picture
        elif not picture.captions:
            yield SampleError(f"{path}, image {picture.name}", "has no caption")
        else:
            yield from _rows(picture, path, references)


def _rows(picture: Picture, path: Path, references: bool) -> Iterator[Planned]:
    where = f"{path}, image {picture.name}"
    texts = [text.strip() for _, text in picture.captions]
    if references:
        fields = {"task": "caption", "question": DESCRIBE, "answer": texts[0], "references": texts}
        yield Planned(key_of(picture.name), {"id": str(picture.name), **fields}, where, picture.file)
        return
    for (number, _), text in zip(picture.captions, texts, strict=True):
        key = key_of(picture.name, number)
        fields = {"id": key, "task": "caption", "question": DESCRIBE, "answer": text}
        yield Planned(key, fields, f"{where}, caption {number}", picture.file)


def _published(content: dict, path: Path) -> Iterator[Picture | SampleError]:
    captions = defaultdict(list)
    for number, entry in enumerate(part(content, "annotations", list, str(path))):
        where = f"{path}, annotation {number}"
        try:
            text = (part(entry, "id", int, where), part(entry, "caption", str, where))
            captions[part(entry, "image_id", int, where)].append(text)
        except SampleError as error:
            yield error
    for number, image in enumerate(part(content, "images", list, str(path))):
        where = f"{path}, image entry {number}"
        try:
            name, file = part(image, "id", int, where), part(image, "file_name", str, where)
        except SampleError as error:
            yield error
        else:
            yield Picture(name, file, captions[name])


def _karpathy(content: dict, path: Path, wanted: list[str] | None) -> Iterator[Picture | SampleError]:
    images = part(content, "images", list, str(path))
    found = {image.get("split") for image in images if isinstance(image, dict)} - {None}
    if wanted is None or set(wanted) - found:
        raise UserError(f"--karpathy: name one or more of the splits of {path}: {', '.join(sorted(map(str, found)))}")
    for number, image in enumerate(images):
        where = f"{path}, image entry {number}"
        try:
            if part(image, "split", str, where) in wanted:
                yield _picture(image, where)
        except SampleError as error:
            yield error


def _picture(image: dict[str, Any], where: str) -> Picture:
    sentences = part(image, "sentences", list, where)
    captions = [(part(s, "sentid", int, where), part(s, "raw", str, where)) for s in sentences]
    folder = image.get("filepath")
    file = part(image, "filename", str, where)
    return Picture(part(image, "cocoid", int, where), f"{folder}/{file}" if folder else file, captions)


if __name__ == "__main__":
    sys.exit(main())
