"""Shards of questions about pictures -> every picture once, with the words of its answers as its caption: for stages
that learn from captions, where a set has none.

    python -m data_prep.answer_captions --shards data/easy_vqa/train --out data/easy_vqa/pairs

A sample's own caption counts for more than its answer. Yes and no say nothing, nor does a word that is said of more
than half of the pictures; a picture without a word is left out. All pictures are held in memory.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep.progress import say
from data_prep.shards import Row, write_shards
from data_prep.tiny_texts import picture_words
from dsmemvp.counting import counted
from dsmemvp.data.manifest import read_manifest
from dsmemvp.data.sample import IMAGE_ENDINGS, BadSample, Sample, read_sample
from dsmemvp.data.stream import read_all


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+", required=True, help="folders of shards with questions")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards of pictures")
    parser.add_argument("--split", default="train", help="name of the split (default: train)")
    given = parser.parse_args()
    try:
        manifest = write_shards(captioned(given.shards), given.out, given.split)
    except (ValueError, OSError) as error:
        say("answer_captions", f"error: {error}", error=True)
        return 1
    print(f"{counted(manifest.samples, 'picture')} -> {given.out}")
    return 0


def captioned(folders: list[Path]) -> Iterator[Row]:
    """In the order in which the pictures are met. Raises SampleError at the first bad sample."""
    samples: list[Sample] = []
    endings: dict[bytes, str] = {}
    for folder in folders:
        for entry in read_all(read_manifest(folder)):
            if isinstance(entry, BadSample):
                raise entry.error
            samples.append(read_sample(entry))
            endings |= {entry.members[ending]: ending for ending in IMAGE_ENDINGS if ending in entry.members}
    for number, (image, words) in enumerate(picture_words(samples).items()):
        if words:
            yield Row(f"{number:09d}", {"caption": " ".join(words)}, image, endings[image])


if __name__ == "__main__":
    sys.exit(main())
