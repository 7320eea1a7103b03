"""What has to hold before a study is worth its hours: no test sample in training, the same prompts for all contenders.

A test sample leaks if one with the same picture and the same question and choices, or, without a picture, with the same
question, choices and context, is trained or tuned on. Pictures are the same if their decoded pixels are; pictures that
are nearly the same are counted and reported: their difference hashes (64 bits: whether each pixel of a 9 x 8 copy in
grey is darker than its neighbour) differ in at most NEAR bits.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from dsmemvp.comparison.study import Study
from dsmemvp.config.recipe import Recipe
from dsmemvp.counting import counted
from dsmemvp.data.datasets import open_test_data, open_training_data, open_validation_data
from dsmemvp.data.images import decoded
from dsmemvp.data.manifest import Manifest
from dsmemvp.data.sample import BadSample, Sample, SampleError, read_sample
from dsmemvp.data.stream import read_all
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.errors import UserError
from dsmemvp.inputs import open_inputs

NEAR = 2
LISTED = 10
ROWS = 4096
"""Pictures whose hashes are compared at a time."""
PROMPTS = 200
"""Test samples whose prompts are compared between contenders."""
BITS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


@dataclass
class Content:
    """Of one split, hashes."""

    samples: dict[bytes, str] = field(default_factory=dict)
    """What a sample is -> where it lies; the first one of several."""
    pictures: dict[bytes, int] = field(default_factory=dict)
    """Pixels -> difference hash."""
    captions: int = 0
    """Samples with a caption."""


def check_study(study: Study) -> list[str]:
    """Remarks for the report. Raises UserError for a leak, unless the study has it reported, and for other prompts."""
    recipe = study.contenders[0].recipe
    _check_prompts(study)
    validation = open_validation_data(recipe)
    known = [*open_training_data(recipe).manifests, *([validation] if validation else [])]
    trained, tested = content_of(known, recipe), content_of([open_test_data(recipe)], recipe)
    remarks = list(_leaks(study, trained, tested))
    same = len(trained.pictures.keys() & tested.pictures.keys())
    near = near_duplicates(list(tested.pictures.values()), list(trained.pictures.values()))
    remarks.append(
        f"{counted(same, 'picture')} of {len(tested.pictures)} in the test data also in the data of training and tuning"
        f" (by pixels), {near} nearly so (difference hash within {NEAR} of 64 bits)"
    )
    if (trained.captions or tested.captions) and recipe.evaluation.captions != [recipe.data.captions]:
        shown = " and ".join("on" if on else "off" for on in recipe.evaluation.captions)
        remarks.append(f"Captions: {'on' if recipe.data.captions else 'off'} in training, {shown} in the test")
    return remarks


def content_of(manifests: Sequence[Manifest], recipe: Recipe) -> Content:
    content = Content()
    for sample in _samples(manifests):
        picture = b""
        if sample.image is not None:
            try:
                image = decoded(sample.image, sample.where, recipe.vision.max_pixels)
            except SampleError:
                continue
            picture = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
            if picture not in content.pictures:
                content.pictures[picture] = _difference_hash(image)
        words = [sample.question, *sample.choices, *([] if picture else [sample.context])]
        text = "\0".join(" ".join(word.casefold().split()) for word in words)
        content.samples.setdefault(hashlib.sha256(picture + text.encode()).digest(), sample.where)
        content.captions += bool(sample.caption)
    return content


def _samples(manifests: Sequence[Manifest]) -> Iterator[Sample]:
    """Those that can be used; the others are training's and evaluation's to complain of."""
    for manifest in manifests:
        for encoded in read_all(manifest):
            if not isinstance(encoded, BadSample):
                try:
                    yield read_sample(encoded)
                except SampleError:
                    continue


def _leaks(study: Study, trained: Content, tested: Content) -> Iterator[str]:
    found = [(where, trained.samples[key]) for key, where in tested.samples.items() if key in trained.samples]
    if not found:
        yield f"None of {counted(len(tested.samples), 'different test sample')} in the data of training and tuning"
        return
    said = f"{counted(len(found), 'test sample')} of {len(tested.samples)} also in the data of training and tuning"
    pairs = "\n".join(f"  {test} is {other}" for test, other in found[:LISTED])
    if study.settings.leaks == "refuse":
        raise UserError(
            f"data.test: {said}; leave them out of one of both, or write `leaks: report` into the study\n{pairs}"
        )
    yield said


def near_duplicates(tested: Sequence[int], trained: Sequence[int]) -> int:
    """How many of `tested` have one of `trained` within NEAR bits."""
    if not tested or not trained:
        return 0
    a, b = (np.array(hashes, dtype=np.uint64).view(np.uint8).reshape(-1, 8) for hashes in (tested, trained))
    near = np.zeros(len(a), dtype=bool)
    for start in range(0, len(b), ROWS):
        for i in range(0, len(a), 256):
            apart = BITS[a[i : i + 256, None] ^ b[None, start : start + ROWS]].sum(-1, dtype=np.uint16)
            near[i : i + 256] |= (apart <= NEAR).any(1)
    return int(near.sum())


def _difference_hash(image: Image.Image) -> int:
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR), dtype=np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "little")


def _check_prompts(study: Study) -> None:
    """Raises UserError if two contenders are asked in other tokens."""
    first, *others = study.contenders
    wanted = prompts_of(first.recipe)
    for other in others:
        for (where, own), (_, found) in zip(wanted, prompts_of(other.recipe), strict=True):
            if own != found:
                raise UserError(
                    f"{where}: contenders {first.name} and {other.name} are asked in other tokens; all must see the"
                    " same prompt, but for the places that a method reserves"
                )


def prompts_of(recipe: Recipe) -> list[tuple[str, list[int]]]:
    tokenizer, found = Tokenizer(recipe.model.tokenizer), []
    collator = replace(open_inputs(recipe).collator, answers=True)
    for sample in _samples([open_test_data(recipe)]):
        try:
            text = collator.text(tokenizer, sample)
        except SampleError:
            continue
        found.append((sample.where, list(text.tokens[: text.prompt])))
        if len(found) == PROMPTS:
            break
    return found
