"""A run, opened to look into: `dsmemvp inspect`, and the same from Python on one process:

from dsmemvp.inspection.look import Question, alone, open_model
from dsmemvp.checkpoints.loading import load_run
opened = open_model(load_run("runs/demo"), alone())
seen = opened.look(Question("Which shape is the red thing?", "x.png", choices=("circle", "star")))
print(*seen.table(), sep="\\n")
seen.sheet()          # a Pillow image
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from dsmemvp.checkpoints.loading import LoadedRun
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import Item
from dsmemvp.data.collator import Collator
from dsmemvp.data.datasets import open_test_data, open_training_data
from dsmemvp.data.images import decoded
from dsmemvp.data.packing import make_batch
from dsmemvp.data.sample import BadSample, Sample, SampleError, is_text, read_sample, sample_from_row
from dsmemvp.data.stream import read_each
from dsmemvp.data.text import chosen
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.data_tools.answers import right_answer
from dsmemvp.distributed.ranks import Ranks, join_ranks
from dsmemvp.errors import UserError
from dsmemvp.generation.generate import NOT_FINITE
from dsmemvp.inputs import open_inputs
from dsmemvp.inspection import table
from dsmemvp.inspection.attended import Attended, attention_weights, looks
from dsmemvp.inspection.compared import Comparison, compare, compares
from dsmemvp.inspection.page import LONGEST, maps, page
from dsmemvp.inspection.probe import Forward, Memory, Probe, What, has_memory, memory_of, probe
from dsmemvp.inspection.words import Word, chosen_words
from dsmemvp.model import VisualLanguageModel
from dsmemvp.prompts import method_class
from dsmemvp.training.inference import open_for_inference

REFERENCES, SEARCHED = 64, 1000
"""Pictures whose mean memory is what a change is measured against, and samples among which they are looked for."""
LAYERS = 5
"""Shown if none are asked for, spread over the depth."""


@dataclass(frozen=True)
class Question:
    """What a run is asked about one picture."""

    text: str
    image: str | Path
    choices: tuple[str, ...] = ()
    context: str = ""

    def sample(self) -> Sample:
        """Raises SampleError or another UserError."""
        path = Path(self.image)
        if not path.is_file():
            raise UserError(f"--image: {path} does not exist")
        for text in (self.text, self.context, *self.choices):
            if not is_text(text):
                raise UserError(f"{text!r} is not text that UTF-8 can write")
        row = {"question": self.text, "context": self.context, "choices": list(self.choices)}
        return sample_from_row({**row, "answer": 0 if self.choices else "?"}, path.read_bytes(), str(path))


@dataclass(frozen=True)
class Look:
    """One sample, looked into."""

    probe: Probe
    words: list[Word]
    picture: Image.Image
    question: str
    answer: str
    """The token that the model answers with, and the option that it names."""
    right: str
    """The right answer, in the same way; empty if nobody knows it."""
    other: str
    """What changes are measured against, in words."""

    @property
    def asked(self) -> str:
        """Question, the model's answer and the right one, in two lines."""
        return asked(self.question, self.answer, self.right)

    def table(self) -> list[str]:
        """Norms and shares layer by layer, as Markdown."""
        return table.lines(self.probe)

    def maps(self, word: Word, what: What = "change") -> torch.Tensor:
        """[Y + 1, P]: of every layer, and their mean."""
        return maps(self.probe, word, what)

    def sheet(self, what: What = "change", layers: Sequence[int] = (), longest: int = LONGEST) -> Image.Image:
        """Heat maps: a row for each word, a column for each layer and their mean. Raises UserError for a layer that is
        not there."""
        shown = list(layers) or spread(self.probe.layers)
        check_layers(shown, self.probe.layers)
        return page(self.probe, self.picture, self.words, shown, self.asked, self.other, what, longest=longest)


def asked(question: str, answer: str, right: str) -> str:
    return f"{question}\nmodel: {answer}" + f"    right: {right}" * bool(right)


def model_answer(tokenizer: Tokenizer, token: int, choices: Sequence[str]) -> str:
    """The token that a model answers with, and the option that it names."""
    answer = tokenizer.decode([token]).strip()
    choice = chosen(answer, len(choices))
    return answer if choice is None else f"{answer} ({choices[choice]})"


def spread(layers: int, most: int = LAYERS) -> list[int]:
    """Up to `most` layers from the first to the last."""
    if layers <= most:
        return list(range(layers))
    return [round(n * (layers - 1) / (most - 1)) for n in range(most)]


def check_layers(wanted: Sequence[int], layers: int) -> None:
    """Raises UserError for a layer that the model does not have."""
    for layer in wanted:
        if not 0 <= layer < layers:
            raise UserError(f"--layers: there is no layer {layer}, they run from 0 to {layers - 1}")


@dataclass(frozen=True)
class Opened:
    """A run's model with its trained values. All ranks call the same methods together."""

    recipe: Recipe
    model: VisualLanguageModel
    forward: Forward
    collator: Collator
    tokenizer: Tokenizer

    def item(self, sample: Sample) -> Item:
        """For reading the answer. Raises SampleError, also if the sample has no picture."""
        if sample.image is None:
            raise SampleError(sample.where, "has no picture to look at")
        return self.collator.item(self.tokenizer, sample)

    def average(self) -> Memory:
        """The mean memory of the first pictures of data.test, or of data.train if there is no test data."""
        data = self.recipe.data
        if not (data.test or data.train):
            raise UserError("--against: the mean needs pictures; name some with --set data.test=SHARDS, or take none")
        first = islice(self._samples(bool(data.test)), SEARCHED)
        pictures = list(islice((sample for sample in first if sample.image is not None), REFERENCES))
        if not pictures:
            raise UserError("--against: the recipe's data begin without pictures to average over; take --against none")
        items = [replace(self.item(picture), sample=None) for picture in pictures]
        batch = make_batch(items, self.collator.image.resolution, self.collator.reserved, last_only=True)
        return memory_of(self.model, self.forward, batch.batch).mean()

    def nothing(self, sample: Sample) -> Memory:
        """The memory of the same sample without picture: the learned positions."""
        item = replace(self.item(sample), image=None)
        batch = make_batch([item], self.collator.image.resolution, self.collator.reserved, last_only=True)
        return replace(memory_of(self.model, self.forward, batch.batch), of="no picture")

    def look(self, sample: Sample | Question, words: Sequence[str] = (), against: Memory | None = None) -> Look:
        """`against` is what changes are measured against (default: no picture). Raises UserError."""
        right = "" if isinstance(sample, Question) else right_answer(sample)
        sample = sample.sample() if isinstance(sample, Question) else sample
        item = self.item(sample)
        words_of = chosen_words(self.tokenizer, item.text.tokens, sample.question, words)
        batch = make_batch([item], self.collator.image.resolution, self.collator.reserved, last_only=True)
        against = against or self.nothing(sample)
        found = probe(self.model, self.forward, batch.batch, against)
        _check_finite(found.logits)
        assert sample.image is not None
        picture = decoded(sample.image, sample.where, self.collator.image.max_pixels)
        answer = model_answer(self.tokenizer, int(found.logits[0].argmax()), sample.choices)
        return Look(found, words_of, picture, sample.question, answer, right, against.of)

    def compare(self, sample: Sample | Question) -> Comparison:
        """What a method without a feed-forward memory compares. Raises UserError."""
        right = "" if isinstance(sample, Question) else right_answer(sample)
        sample = sample.sample() if isinstance(sample, Question) else sample
        item = self.item(sample)
        collator = self.collator
        batch = make_batch([item], collator.image.resolution, collator.reserved, True, collator.labels)
        found = compare(self.model, self.forward, batch.batch)
        _check_finite(found.logits)
        if not found.found:
            raise UserError("method.hub: is off in this run, so there is no similarity to show")
        answer = answer_of(self.tokenizer, collator, found.logits[0], sample)
        return replace(found, asked=asked(sample.question, answer, right))

    def attend(self, sample: Sample | Question) -> Attended:
        """Where the method's query looks. Raises UserError."""
        right = "" if isinstance(sample, Question) else right_answer(sample)
        sample = sample.sample() if isinstance(sample, Question) else sample
        collator = self.collator
        batch = make_batch([self.item(sample)], collator.image.resolution, collator.reserved, True, collator.labels)
        (weights,), logits = attention_weights(self.model, self.forward, batch.batch)
        _check_finite(logits)
        return attended(sample, weights, logits[0], self.tokenizer, collator, right)

    def sample(self, number: int, test: bool) -> Sample:
        """A sample of data.test or data.train by its running number, as in `dsmemvp data show`. Raises UserError."""
        found = next(islice(self._samples(test, number), 1), None)
        if found is None or number < 0:
            raise UserError(f"--sample: there is no sample {number} in {'data.test' if test else 'data.train'}")
        return found

    def _samples(self, test: bool, first: int = 0):
        """In file order. Raises SampleError at a bad one."""
        manifests = [open_test_data(self.recipe)] if test else open_training_data(self.recipe).manifests
        for entry in read_each(manifests, max(first, 0)):
            if isinstance(entry, BadSample):
                raise entry.error
            yield read_sample(entry)


def _check_finite(logits: torch.Tensor) -> None:
    """Raises UserError: numbers of a model that has diverged say nothing."""
    if not logits.isfinite().all():
        raise UserError(NOT_FINITE)


def attended(
    sample: Sample,
    weights_HkN: torch.Tensor,
    logits_V: torch.Tensor,
    tokenizer: Tokenizer,
    collator: Collator,
    right: str,
) -> Attended:
    """Raises SampleError."""
    assert sample.image is not None
    picture = decoded(sample.image, sample.where, collator.image.max_pixels)
    answer = answer_of(tokenizer, collator, logits_V, sample)
    return Attended(weights_HkN, picture, asked(sample.question, answer, right))


def answer_of(tokenizer: Tokenizer, collator: Collator, logits_V: torch.Tensor, sample: Sample) -> str:
    """In words, the class or what the model writes first."""
    best = int(logits_V.argmax())
    return f"class {best}" if collator.labels is not None else model_answer(tokenizer, best, sample.choices)


def open_model(run: LoadedRun, ranks: Ranks) -> Opened:
    """What `checkpoints.loading.load_run` gives, built over the ranks. Raises UserError or OSError with what to do."""
    recipe = run.recipe
    check_method(recipe)
    inputs = open_inputs(recipe, run.base, run.checkpoint.state.stage)
    opened = open_for_inference(recipe, ranks, run.checkpoint, inputs=inputs)
    collator = replace(opened.collator, answers=True)
    return Opened(recipe, opened.model, opened.forward, collator, Tokenizer(recipe.model.tokenizer))


def check_method(recipe: Recipe) -> None:
    """Raises UserError for a method without anything to look into."""
    method = method_class(recipe.method.name)
    if not (has_memory(method) or compares(method) or looks(method)):
        raise UserError(
            f"method.name: {recipe.name} was trained with {recipe.method.name}, which has no feed-forward memory to"
            " look into"
        )


def alone() -> Ranks:
    """This process as the only rank."""
    return join_ranks(seconds=600)
