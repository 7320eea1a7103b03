"""UPMC Food-101 as published (Wang et al., ICMEW 2015) -> shards of one split, for classification by picture and title.

    python -m data_prep.food101 --titles texts/train_titles.csv --images images/train --out data/food101/train
    python -m data_prep.food101 --titles texts/test_titles.csv  --images images/test  --out data/food101/test

    titles        apple_pie_0.jpg,Grandma's apple pie recipe,apple_pie
    images        images/train/apple_pie/apple_pie_0.jpg

The class's number is its place among the names of the folders of images, sorted: 101 in each split. To take a part of
the training data for validation, cut the file of titles in two.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep.command import convert, converter_parser
from data_prep.plan import Planned, key_of
from dsmemvp.data.sample import SampleError
from dsmemvp.errors import UserError


def main() -> int:
    parser = converter_parser(__doc__)
    parser.add_argument("--titles", type=Path, required=True, help="file of titles")
    parser.add_argument("--images", type=Path, required=True, help="folder with a folder of images for each class")
    given = parser.parse_args()
    return convert("food101", given, given.images, [given.titles], plan_rows(given.titles, given.images))


def plan_rows(titles: Path, images: Path) -> Iterator[Planned | SampleError]:
    if not images.is_dir():
        raise UserError(f"--images: {images} is not a folder")
    classes = sorted(path.name for path in images.iterdir() if path.is_dir())
    with titles.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            where = f"{titles}, line {number}"
            try:
                planned = _row(row, classes, where)
            except SampleError as error:
                yield error
            else:
                yield planned


def _row(row: list[str], classes: list[str], where: str) -> Planned:
    if len(row) != 3:
        raise SampleError(where, f"has {len(row)} columns, not image, title and class")
    image, title, name = (text.strip() for text in row)
    if name not in classes:
        raise SampleError(where, f"class {name!r} has no folder of images")
    fields = {"id": Path(image).stem, "task": "food101", "question": title, "label": classes.index(name), "class": name}
    return Planned(key_of(Path(image).stem), fields, where, f"{name}/{image}")


if __name__ == "__main__":
    sys.exit(main())
