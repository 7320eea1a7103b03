"""SNLI-VE as published (Xie et al., arXiv 1901.06706) -> shards of one split, for visual entailment.

    python -m data_prep.snli_ve --pairs snli_ve_train.jsonl --images flickr30k_images --out data/snli_ve/train

    pairs         {"Flickr30K_ID": "4705552913", "pairID": "4705552913.jpg#2r1n", "sentence2": "Two women ...",
                  "gold_label": "neutral", ...}
    images        flickr30k_images/4705552913.jpg

The picture is the premise, sentence2 the hypothesis; sentence1, a caption of the picture, is left out. Labels: 0
entailment, 1 neutral, 2 contradiction.
"""

import sys
from pathlib import Path
from typing import Any

from data_prep.annotations import part, plan_lines
from data_prep.command import convert, converter_parser
from data_prep.plan import Planned, key_of
from dsmemvp.data.sample import SampleError

LABELS = ("entailment", "neutral", "contradiction")


def main() -> int:
    parser = converter_parser(__doc__)
    parser.add_argument("--pairs", type=Path, required=True, help="JSON lines, one pair each")
    parser.add_argument("--images", type=Path, required=True, help="folder of Flickr30k's images")
    given = parser.parse_args()
    return convert("snli_ve", given, given.images, [given.pairs], plan_lines(given.pairs, _row))


def _row(pair: Any, where: str, number: int) -> Planned:
    image, name, hypothesis, label = (
        part(pair, key, str, where) for key in ("Flickr30K_ID", "pairID", "sentence2", "gold_label")
    )
    if label not in LABELS:
        raise SampleError(where, f"gold_label {label!r} is none of {', '.join(LABELS)}")
    fields = {"id": name, "task": "snli_ve", "question": hypothesis, "label": LABELS.index(label)}
    return Planned(key_of(name), fields, where, f"{image}.jpg")


if __name__ == "__main__":
    sys.exit(main())
