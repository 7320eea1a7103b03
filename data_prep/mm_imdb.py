"""MM-IMDb as published (Arevalo et al., ICLR workshop 2017) -> shards of one split, for genres by poster and plot.

    python -m data_prep.mm_imdb --splits mmimdb/split.json --split train --films mmimdb/dataset --out data/mm_imdb/train

    splits        {"train": ["0076759", ...], "dev": [...], "test": [...]}
    films         dataset/0076759.json    {"plot": ["...", ...], "genres": ["Action", "Sci-Fi"], "title": "...", ...}
                  dataset/0076759.jpeg

The longest of a film's plots is taken. Labels number the 23 genres of the published task, sorted by name; the four that
it leaves out (Adult, News, Reality-TV, Talk-Show) are left out, and a film with none of the 23 has no label.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep.annotations import load_json, part, texts
from data_prep.command import convert, converter_parser
from data_prep.plan import Planned, key_of
from dsmemvp.data.sample import SampleError
from dsmemvp.errors import UserError

GENRES = (
    *("Action", "Adventure", "Animation", "Biography", "Comedy", "Crime", "Documentary", "Drama", "Family", "Fantasy"),
    *("Film-Noir", "History", "Horror", "Music", "Musical", "Mystery", "Romance", "Sci-Fi", "Short", "Sport"),
    *("Thriller", "War", "Western"),
)
LEFT_OUT = ("Adult", "News", "Reality-TV", "Talk-Show")


def main() -> int:
    parser = converter_parser(__doc__)
    parser.add_argument("--splits", type=Path, required=True, help="file of the three splits")
    parser.add_argument("--films", type=Path, required=True, help="folder of films and posters")
    given = parser.parse_args()
    split = given.split or given.out.name
    return convert("mm_imdb", given, given.films, [given.splits], plan_rows(given.splits, split, given.films))


def plan_rows(splits: Path, split: str, films: Path) -> Iterator[Planned | SampleError]:
    known = load_json(splits, dict)
    if split not in known:
        raise UserError(f"--split: {splits} has no split {split!r}, but {', '.join(known)}")
    for name in texts(part(known, split, list, str(splits)), split, str(splits)):
        try:
            planned = _row(name, films / f"{name}.json")
        except SampleError as error:
            yield error
        else:
            yield planned


def _row(name: str, path: Path) -> Planned:
    where = str(path)
    try:
        film = load_json(path, dict)
    except UserError as error:
        raise SampleError(where, str(error)) from None
    plots = texts(part(film, "plot", list, where), "plot", where)
    genres = texts(part(film, "genres", list, where), "genres", where)
    if unknown := [genre for genre in genres if genre not in (*GENRES, *LEFT_OUT)]:
        raise SampleError(where, f"genre {unknown[0]!r} is not one of the 27 published")
    labels = sorted({GENRES.index(genre) for genre in genres if genre in GENRES})
    fields = {"id": name, "task": "mm_imdb", "question": max(plots, key=len, default=""), "labels": labels}
    return Planned(key_of(name), fields, where, f"{name}.jpeg")


if __name__ == "__main__":
    sys.exit(main())
