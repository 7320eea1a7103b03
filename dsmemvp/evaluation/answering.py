"""A batch of questions -> what the model answers, by the recipe's protocol, in step with the other ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dsmemvp.config.recipe import Evaluation
from dsmemvp.data.batch import MicroBatch
from dsmemvp.data.layout import Reserved
from dsmemvp.data.letters import letter_tokens, longest_letter
from dsmemvp.data.packing import make_batch
from dsmemvp.data.sample import Sample
from dsmemvp.data.text import LETTER, letter
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.evaluation.likelihood import likeliest, log_likelihoods
from dsmemvp.evaluation.scores import FULL_STOP
from dsmemvp.generation.generate import Continuation

Over = Callable[[int, list[int]], bool]
Decode = Callable[[MicroBatch, int, Over], list[Continuation]]
"""(batch, most tokens, over(b, tokens): whether sample b needs no token after these) -> what follows each sample. All
ranks call it together, with the same number, and perhaps without any sample. A sample's tokens must depend on its own
batch alone, not on how many more are decoded; those after its end are not looked at."""


@dataclass(frozen=True)
class Answer:
    text: str
    """As decoded; by likelihood, the letter."""
    log_likelihoods: list[float] | None = None
    """Of all choices, by likelihood."""
    log_probability: float | None = None
    """Natural logarithm of the probability of what is written, up to the token that ends it, or of the class; None by
    likelihood and where there may be several classes."""
    cut: str = ""
    """The setting at which an open answer was cut, as in "evaluation.max_new_tokens=10"; empty if it ended by itself.
    """


@dataclass
class Answering:
    settings: Evaluation
    ranks: Ranks
    tokenizer: Tokenizer
    forward: Callable[..., Any]
    decode: Decode
    reserved: Sequence[Reserved]
    _letters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Tokens of each letter, by likelihood."""
    _longest: dict[int, int] = field(default_factory=dict)
    """Number of choices -> most tokens that one of their letters takes."""

    def __call__(self, batch: MicroBatch) -> list[Answer]:
        """For each of `batch.samples`. Raises UserError on all ranks alike."""
        likelihoods = self._likelihoods(batch)
        limits = self.ranks.together(lambda: [self._limit(sample) for sample in batch.samples])
        decoded = self._decoded(batch, limits)
        answers = []
        for b, sample in enumerate(batch.samples):
            if likelihoods[b]:
                answers.append(Answer(letter(likeliest(likelihoods[b])), likelihoods[b]))
            else:
                answers.append(self._written(sample, decoded[b], limits[b]))
        return answers

    def _decoded(self, batch: MicroBatch, limits: list[int]) -> list[Continuation]:
        """A single token is computed otherwise than several, and by rounding may be another one. Which way a batch goes
        follows from its own samples; all ranks go both ways that any of them goes, some with an empty batch."""
        wanted = max(limits, default=0)
        most = [int(row[0]) for row in self.ranks.table(wanted)]

        def over(b: int, tokens: list[int]) -> bool:
            return len(tokens) >= limits[b] or self._ended(batch.samples[b], tokens)

        decoded = [Continuation([], []) for _ in limits]
        for steps in ([1] if 1 in most else []) + ([max(most)] if max(most) > 1 else []):
            if min(wanted, 2) == min(steps, 2):
                decoded = self.decode(batch, steps, over)
            else:
                resolution = batch.batch.images.shape[-1]
                self.decode(make_batch([], resolution, self.reserved, last_only=True), steps, over)
        return decoded

    def _likelihoods(self, batch: MicroBatch) -> list[list[float]]:
        """Of every sample's choices; none for samples that are asked otherwise."""
        asked = self.settings.protocol == "likelihood"
        letters = [[letter(c) for c in range(len(sample.choices))] if asked else [] for sample in batch.samples]
        if not asked or not self.ranks.any(any(letters)):
            return [[] for _ in letters]
        self.ranks.together(lambda: self._learn({name for own in letters for name in own}))
        endings = [[self._letters[name] for name in own] for own in letters]
        return log_likelihoods(self.forward, batch.batch, self.reserved, endings)

    def _learn(self, letters: set[str]) -> None:
        for name in letters - self._letters.keys():
            self._letters[name] = letter_tokens(self.tokenizer, name)

    def _limit(self, sample: Sample) -> int:
        """Most tokens to decode: of a choice as many as its letters take. Raises UserError."""
        if not sample.choices:
            return self.settings.caption_tokens if sample.free else self.settings.max_new_tokens
        if self.settings.protocol != "generate":
            return 0
        number = len(sample.choices)
        if number not in self._longest:
            self._longest[number] = longest_letter(self.tokenizer, number)
        return self._longest[number]

    def _ended(self, sample: Sample, tokens: list[int]) -> bool:
        """At the end of the text; a choice at its letter; the rest of a sentence once something follows its full stop:
        by itself, the one of "3." may be a decimal point."""
        if tokens[-1] == self.tokenizer.eos:
            return True
        if sample.choices:
            return LETTER.search(self.tokenizer.decode(tokens)) is not None
        stop = None if sample.free else FULL_STOP.search(text := self.tokenizer.decode(tokens))
        return stop is not None and stop.end() < len(text)

    def _written(self, sample: Sample, written: Continuation, limit: int) -> Answer:
        """Others may have needed more tokens than this sample. Tokens that are fewer than its limit ended with EOS."""
        tokens = written.tokens
        ends = (n for n in range(1, min(limit, len(tokens)) + 1) if self._ended(sample, tokens[:n]))
        end = next(ends, None)
        kept = slice(limit if end is None else end)
        text = self.tokenizer.decode(tokens[kept])
        answer = Answer(text, log_probability=sum(written.log_probabilities[kept]))
        if end is not None or len(tokens) < limit or sample.choices:
            return answer
        if sample.free:
            return replace(answer, cut=f"evaluation.caption_tokens={limit}")
        return answer if FULL_STOP.search(text) else replace(answer, cut=f"evaluation.max_new_tokens={limit}")
