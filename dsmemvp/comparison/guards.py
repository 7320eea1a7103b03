"""What has to hold before a study is worth its hours: every sample can be read, no test sample is in training, all
contenders are asked with the same prompts.

A test sample leaks if the same one (content.py) is trained or tuned on.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dsmemvp.backbones.fingerprint import fingerprint
from dsmemvp.backbones.weights import VISION_KEY, Base
from dsmemvp.building import check_features
from dsmemvp.comparison.budget import spans
from dsmemvp.comparison.content import NEAR, Content, content_of, near_duplicates
from dsmemvp.comparison.study import OWN, Contender, Study, errors_of
from dsmemvp.config.reading import as_dict, leaves
from dsmemvp.config.recipe import START
from dsmemvp.config.yaml_text import shown
from dsmemvp.counting import counted
from dsmemvp.data.datasets import open_search_data, open_test_data, open_validation_data
from dsmemvp.data.manifest import Manifest
from dsmemvp.data.sample import BadSample, Sample, SampleError, read_sample
from dsmemvp.data.stream import read_each
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.errors import UserError
from dsmemvp.evaluation.scores import NO_POINTS, UNSCORED
from dsmemvp.inputs import open_inputs
from dsmemvp.training.stages import Span

LISTED = 3
PROMPTS = 200
"""Test samples whose prompts are compared between contenders."""


@dataclass(frozen=True)
class Checked:
    remarks: list[str]
    """For the report."""
    prompt_tokens: float
    """Of a test sample, on average over the first PROMPTS, without the places that a method reserves."""
    data: dict[str, str]
    """Key of the recipe -> fingerprint of its samples or weights."""


def check_study(study: Study, out: Path, task: int = 0, poll: Callable[[], object] = lambda: None) -> Checked:
    """`out` is the study's folder; tasks of an array that check at the same time share the work. `poll` is called for
    every picture. Raises UserError for a leak, unless the study has it reported, for a damaged sample, for other
    prompts, and for a contender that cannot train as it says."""
    for contender in study.contenders:
        with errors_of(contender.name):
            check_features(contender.recipe)
    recipe = study.contenders[0].recipe
    test, validation = open_test_data(recipe), open_validation_data(recipe)
    tokens = _check_prompts(study, test)
    of_stages = {c.name: spans(c.recipe) for c in study.contenders if c.trains}
    stages = [remark for name, own in of_stages.items() for remark in _check_stages(study, name, own)]
    trained_on = [manifest for own in of_stages.values() for span in own for manifest in span.data.manifests]
    tuned_on = [validation] if validation else []
    searched = [open_search_data(c.recipe, [*trained_on, *tuned_on, test])[0] for c in study.contenders if c.searched]
    known = _different([*trained_on, *tuned_on, *searched])
    begin = task / len(study.contenders)
    trained, tested = (
        content_of(manifests, recipe.vision.max_pixels, out / "content", begin, poll) for manifests in (known, [test])
    )
    for content in (trained, tested):
        if content.damaged and recipe.data.on_bad_sample == "fail":
            raise UserError(f"{content.damaged}; mend it, or leave such samples out with data.on_bad_sample=skip")
    if tested.kinds & set(UNSCORED):
        raise UserError(f"data.test: {NO_POINTS}")
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
    trained_by_all = [manifest.fingerprint for manifest in _different(trained_on)]
    data = {"data.train": " ".join(trained_by_all), "data.test": test.fingerprint}
    data |= {"data.validation": validation.fingerprint} if validation else {}
    return Checked([*remarks, *stages, *_own_settings(study)], tokens, data | _base(study))


def _own_settings(study: Study) -> Iterator[str]:
    """Says in which settings beside the method contenders differ, those left out that are tuned."""
    trained = [contender for contender in study.contenders if contender.trains]
    tuned = set().union(*(contender.tuned for contender in trained))
    values = {contender.name: dict(leaves(as_dict(contender.recipe))) for contender in trained}
    for key in OWN:
        found: dict[str, list[str]] = {}
        for name, own in values.items():
            found.setdefault(shown(own[key]), []).append(name)
        if key not in tuned and len(found) > 1:
            yield f"{key} differs: " + ", ".join(f"{value} ({', '.join(names)})" for value, names in found.items())


def _base(study: Study) -> dict[str, str]:
    """Key of the recipe -> fingerprint of the frozen weights and of the tokenizer, which are the same for all."""
    found: dict[str, str] = {}
    for contender in study.contenders:
        if VISION_KEY not in found:  # the first ones may see no images
            found |= fingerprint(Base(contender.recipe))
    return found


def _different(manifests: list[Manifest]) -> list[Manifest]:
    return list({manifest.fingerprint: manifest for manifest in manifests}.values())


def _check_stages(study: Study, name: str, stages: list[Span]) -> Iterator[str]:
    """Says what a contender is trained on before the last stage. Raises UserError if that one, which learns what all
    contenders learn, has other data or another schedule than they."""
    *before, last = stages
    contender = next(c for c in study.contenders if c.name == name)
    given = contender.recipe.stages.get(last.name, {})
    for group, values in given.items():
        for key in values if isinstance(values, dict) else ():
            where, own = f"contender {name}: stages.{last.name}.{group}.{key}", f"{group}.{key}"
            if own not in OWN:
                raise UserError(
                    f"{where}: the last stage learns what all contenders learn; give a key of it for all, or leave it"
                    " out"
                )
            if own in contender.tuned:
                raise UserError(f"{where}: takes the place of what the study tunes, {own}; leave it out")
    if START in given:
        yield f"{name} begins with {given[START]}, whose training is counted nowhere here"
    elif before:
        said = (
            f"{span.name} ({(span.last - span.first) * span.recipe.training.global_batch} samples)" for span in before
        )
        yield f"{name} is trained before, in stages of its own: {', '.join(said)}"


def _leaks(study: Study, trained: Content, tested: Content) -> Iterator[str]:
    found = [(where, trained.samples[key]) for key, where in tested.samples.items() if key in trained.samples]
    if not found:
        yield f"None of {counted(len(tested.samples), 'different test sample')} in the data of training and tuning"
        return
    said = f"{counted(len(found), 'test sample')} of {len(tested.samples)} also in the data of training and tuning"
    pairs = "; ".join(f"{test}, which is {other}" for test, other in found[:LISTED])
    if study.settings.leaks == "refuse":
        raise UserError(
            f"data.test: {said}; leave them out of one of both, or write `leaks: report` into the study; such as:"
            f" {pairs}"
        )
    yield said


def _check_prompts(study: Study, test: Manifest) -> float:
    """Returns the prompts' mean number of tokens. Raises UserError if two contenders are asked in other tokens, or one
    of them not at all."""
    samples = list(itertools.islice(_usable(test), PROMPTS))
    first, *others = study.contenders
    wanted = prompts_of(first, samples)
    for other in others:
        for sample, own, found in zip(samples, wanted, prompts_of(other, samples), strict=True):
            if own != found:
                alone = f"only {first.name if found is None else other.name} can be asked this"
                said = "are asked in other tokens" if own and found else alone
                raise UserError(
                    f"{sample.where}: contenders {first.name} and {other.name}: {said}; all must see the same prompt,"
                    " but for the places that a method reserves"
                )
    lengths = [len(tokens) for tokens in wanted if tokens is not None]
    return sum(lengths) / max(len(lengths), 1)


def prompts_of(contender: Contender, samples: list[Sample]) -> list[list[int] | None]:
    """Tokens of each sample's prompt; None for one that cannot be asked, such as one over data.max_length."""
    with errors_of(contender.name):
        tokenizer = Tokenizer(contender.recipe.model.tokenizer)
        collator = replace(open_inputs(contender.recipe).collator, answers=True)
    found: list[list[int] | None] = []
    for sample in samples:
        try:
            text = collator.text(tokenizer, sample)
            found.append(list(text.tokens[: text.prompt]))
        except SampleError:
            found.append(None)
    return found


def _usable(manifest: Manifest) -> Iterator[Sample]:
    for encoded in read_each([manifest]):
        if not isinstance(encoded, BadSample):
            try:
                yield read_sample(encoded)
            except SampleError:
                continue
