"""Training texts of the tiny models: the samples of a split, and the words that describe their pictures."""

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from dsmemvp.counting import counted
from dsmemvp.data.manifest import read_manifest
from dsmemvp.data.sample import BadSample, Sample, read_sample
from dsmemvp.data.stream import read_all
from dsmemvp.errors import UserError

TELLS_NOTHING = frozenset({"yes", "no", "true", "false"})
"""Answers that say something of a question, not of a picture."""
LEAST = 10
"""Texts, and pictures with words, that there must be: a tenth of them is held out."""

Words = dict[bytes, tuple[str, ...]]
"""Encoded picture -> the words said of it."""


def read_split(folder: Path) -> list[Sample]:
    """All samples of a folder of shards. Raises SampleError at the first bad one."""
    samples = []
    for entry in read_all(read_manifest(folder)):
        if isinstance(entry, BadSample):
            raise entry.error
        samples.append(read_sample(entry))
    return samples


def picture_words(samples: list[Sample]) -> Words:
    """Of every picture the words of its captions, else of its questions' answers: an open answer, or the text of the
    right choice. A word of more than half of the pictures (the, a) says little and is left out, unless a picture
    would be left without a word; one said of all pictures always is."""
    said: dict[bytes, set[str]] = defaultdict(set)
    for sample in samples:
        if sample.image is not None:
            text = sample.caption or _answer(sample)
            said[sample.image].update(set(re.findall(r"\w+", text.lower())) - TELLS_NOTHING)
    number = _counted(said)

    def kept(words: set[str]) -> tuple[str, ...]:
        rare = [word for word in words if number[word] <= len(said) / 2]
        return tuple(sorted(rare or [word for word in words if number[word] < len(said)]))

    return {image: kept(words) for image, words in said.items()}


def check_words(words: Words, folder: Path) -> None:
    """Raises UserError if a vision tower could learn nothing from them."""
    if not words:
        raise UserError(f"{folder}: none of its samples has a picture, so that no vision tower can be made")
    number = _counted(words)
    shared = sorted(word for word in number if number[word] > 1)
    if len(shared) < 2:
        found = f"only {shared[0]!r}" if shared else "none"
        raise UserError(
            f"{folder}: the captions, or else the right answers, of its {len(words)} pictures tell nothing of what they"
            f" show. At least two words must each be said of several pictures, but not of all ({found} is; yes, no,"
            " true and false do not count)"
        )
    captioned = sum(map(bool, words.values()))
    if captioned < LEAST:
        raise UserError(
            f"{folder}: only {counted(captioned, 'different picture has', 'different pictures have')} words; at"
            f" least {LEAST} are needed"
        )


def check_texts(texts: list[Sample], folder: Path) -> None:
    """Raises UserError if a language model could not be trained on them."""
    if len(texts) < LEAST:
        raise UserError(f"{folder}: only {counted(len(texts), 'sample')}; at least {LEAST} are needed")


def texts_of(data: Path) -> list[Sample]:
    """What the language model reads: the split `text`, or else the training samples with their pictures in words."""
    if (data / "text").is_dir():
        return read_split(data / "text")
    train = read_split(data / "train")
    words = picture_words(train)
    return [in_words(sample, words) for sample in train]


def in_words(sample: Sample, words: Words) -> Sample:
    """The sample as text alone: its picture replaced by its caption, or by the words said of it."""
    seen = sample.caption or (" ".join(words[sample.image]) if sample.image is not None else "")
    return replace(sample, context=f"{sample.context} {seen}".strip(), caption="", image=None)


def _answer(sample: Sample) -> str:
    return sample.answer if isinstance(sample.answer, str) else sample.choices[sample.answer]


def _counted(said: dict[bytes, set[str]] | Words) -> dict[str, int]:
    """Word -> number of pictures that have it."""
    number: dict[str, int] = defaultdict(int)
    for words in said.values():
        for word in words:
            number[word] += 1
    return number
