"""Sample -> prompt and target tokens: the published ScienceQA prompt (QCM-A), and its short form for open answers.

    Question: {question}\\nContext: {context or N/A}\\nOptions: (A) .. (B) ..\\nResponse:The answer is {letter}.

The target follows "Response:" without a space (facts of the published code: util/base_prompt.py of MemVP). The answer
of a free task (a caption, a turn of a conversation) follows in the same place, without "The answer is" and full stop.
Length is kept by cutting the context from its end, a conversation's from its beginning (the last turns stay); question
and options are never cut.
"""

import bisect
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dsmemvp.data.captions import caption_of
from dsmemvp.data.sample import Sample, SampleError
from dsmemvp.data.tokenizer import Tokenizer

CUE = "Response:"
"""The end of every prompt, which asks for the answer."""
LEAD_IN = "The answer is"
LETTER = re.compile("[A-Z]")
PROMPT_FORMAT = 1
"""Counts up when a sample becomes other text, which trained tensors would not know."""


@dataclass(frozen=True)
class EncodedText:
    tokens: list[int]
    """Prompt and target."""
    prompt: int
    """How many of them are the prompt."""
    cut: bool
    """Whether the context was shortened to fit."""
    bos: int = 1
    """How many of them stand before the text: BOS, or none."""
    cue: int = 0
    """How many of the prompt's tokens, its last ones, hold the cue."""


def prompt_text(sample: Sample, captions: bool) -> str:
    """The prompt up to "Response:"."""
    if not sample.choices:
        context = _context(sample, captions, "")
        middle = f"\nContext: {context}" if context else ""
        return _clean(f"Question: {sample.question}{middle}\n{CUE}")
    context = _context(sample, captions, "N/A")
    return _clean(f"Question: {sample.question}\nContext: {context}\nOptions: {options(sample.choices)}\n{CUE}")


def options(choices: Sequence[str]) -> str:
    """ "(A) cat (B) dog" """
    return " ".join(f"({letter(i)}) {choice}" for i, choice in enumerate(choices))


def letter(choice: int) -> str:
    """A, B, ... of a choice's index."""
    return chr(ord("A") + choice)


def chosen(text: str, choices: int) -> int | None:
    """Which of so many choices a written answer names: that of the first capital letter in it; None if it has none,
    or one beyond the choices (MemVP, eval.py:93-100, 207-213)."""
    found = LETTER.search(text)
    choice = ord(found[0]) - ord("A") if found else choices
    return choice if choice < choices else None


def target_text(sample: Sample) -> str:
    if sample.free:
        return str(sample.answer).strip()
    return f"{LEAD_IN} {sample.letter if sample.choices else sample.answer}."


def lead_in(sample: Sample) -> str:
    """What stands between the prompt and what a model is asked to write."""
    return "" if sample.free else LEAD_IN


def encode_for_training(tokenizer: Tokenizer, sample: Sample, captions: bool, most: int) -> EncodedText:
    """Prompt + target + EOS, at most `most` tokens. The prompt's tokens are the first of the whole text's: else the
    loss would train on tokens that generation never meets. Raises SampleError."""
    return _fitted(_Encoder(tokenizer, captions, target_text(sample), (tokenizer.eos,)), sample, most)


def encode_for_answer(tokenizer: Tokenizer, sample: Sample, captions: bool, most: int) -> EncodedText:
    """Prompt + "The answer is" if the task has it, for a model to continue."""
    return _fitted(_Encoder(tokenizer, captions, lead_in(sample), ()), sample, most)


def encode_caption(tokenizer: Tokenizer, sample: Sample, most: int, bos_too: bool, asks: bool) -> EncodedText:
    """BOS, the caption and EOS, without a prompt; `bos_too`: BOS is among what is to be written; `asks`: BOS alone, for
    a model to continue. Raises SampleError."""
    caption = caption_of(sample)
    if not caption and not asks:
        raise SampleError(sample.where, "has no caption, which is to be written")
    tokens = [*tokenizer.front] if asks else [*tokenizer.encode(caption), tokenizer.eos]
    if len(tokens) > most:
        raise SampleError(sample.where, f"its caption has {len(tokens)} tokens, more than data.max_length = {most}")
    front = 0 if bos_too and not asks else len(tokenizer.front)
    return EncodedText(tokens, front, False, front)


def encode_for_classes(tokenizer: Tokenizer, sample: Sample, captions: bool, most: int) -> EncodedText:
    """The text alone, between BOS and EOS of the tokenizer ([CLS] and [SEP]); one that is too long loses its end."""
    text = " ".join(filter(None, (_clean(sample.question), _context(sample, captions, ""))))
    tokens = tokenizer.encode(text)
    cut = len(tokens) >= most
    tokens = [*tokens[: most - 1], tokenizer.eos]
    return EncodedText(tokens, len(tokens), cut, bos=len(tokenizer.front))


@dataclass(frozen=True)
class _Encoder:
    """A sample's prompt, with any context, and what follows it -> tokens."""

    tokenizer: Tokenizer
    captions: bool
    rest: str
    """What follows the prompt."""
    end: tuple[int, ...]
    """Tokens behind it."""

    def __call__(self, sample: Sample) -> tuple[EncodedText, list[int]]:
        """The text, and where in it (in characters) each token stops. The prompt is tokenised once, together with what
        follows, unless the tokenizer joins the two. Raises SampleError."""
        tokenizer, prompt = self.tokenizer, prompt_text(sample, self.captions)
        tokens, spans = tokenizer.encode_spans(prompt + self.rest)
        stops = [stop for _, stop in spans]
        # a character may be several tokens of which the first are empty: those of `rest` start where the prompt ends
        first = next((i for i, (start, _) in enumerate(spans) if start >= len(prompt)), len(spans))
        if first == 0 or stops[first - 1] != len(prompt):
            # a byte-level tokenizer may have a piece like ":The"; the two are then encoded one by one. With a
            # sentencepiece model that would put a space between them
            asked, spans = tokenizer.encode_spans(prompt)
            first, tokens = len(asked), [*asked, *tokenizer.encode(self.rest)[len(tokenizer.front) :]]
            if tokenizer.decode(tokens) != prompt + self.rest:
                why = "the tokenizer joins the end of the prompt with the target; use another one"
                raise SampleError(sample.where, why)
        cue = sum(stop > len(prompt) - len(CUE) for _, stop in spans[:first])
        return EncodedText([*tokens, *self.end], first, False, len(tokenizer.front), cue), stops


def _fitted(encode: _Encoder, sample: Sample, most: int) -> EncodedText:
    """With as many words of the context as fit into `most` tokens. The first guess counts the tokens of the whole text,
    and is right but for what the tokenizer joins at the cut, so few texts are encoded. Raises SampleError."""
    whole, stops = encode(sample)
    excess = len(whole.tokens) - most
    if excess <= 0:
        return whole
    words = [word for word in _context(sample, encode.captions, "").split(" ") if word]
    last_ones = sample.scores.get("task") == "conversation"  # whose last turns are kept
    fitting: dict[int, EncodedText | None] = {len(words): None}

    def fits(number: int) -> bool:
        if number not in fitting:
            kept = words[len(words) - number :] if last_ones else words[:number]
            text, _ = encode(replace(sample, context=" ".join(kept), caption=""))
            fitting[number] = text if len(text.tokens) <= most else None
        return fitting[number] is not None

    number = _most_words(words, _spare(sample, words, stops, excess, last_ones), fits)
    text = fitting.get(number) if number >= 0 else None
    if text is None:
        raise SampleError(sample.where, f"question and options alone are longer than data.max_length = {most} tokens")
    return replace(text, cut=True)


def _spare(sample: Sample, words: Sequence[str], stops: Sequence[int], excess: int, last_ones: bool) -> int:
    """About how many words remain of the context if the text loses `excess` tokens; `stops` are the whole text's."""
    start = len(_clean(f"Question: {sample.question}\nContext: |")) - 1
    ends = list(itertools.accumulate(len(word) + 1 for word in words))
    if last_ones:
        cut = stops[min(bisect.bisect_right(stops, start) + excess, len(stops)) - 1] - start
        return len(words) - bisect.bisect_left(ends, cut)
    cut = stops[max(bisect.bisect_left(stops, start + ends[-1] - 1) - excess, 0)] - start if words else 0
    return bisect.bisect_right(ends, cut + 1)


def _most_words(words: Sequence[str], guess: int, fits: Callable[[int], bool]) -> int:
    """The largest number of words, below all of them, that fits; -1 if none does. Steps from the guess double until it
    lies between two numbers that were tried, and are then halved."""
    low, high = -1, len(words)  # `low` fits, or nothing does; `high` does not
    at, step = min(max(guess, 0), high - 1), 1
    while high - low > 1:
        if fits(at):
            low, at = at, at + step
        else:
            high, at = at, at - step
        step *= 2
        if not low < at < high:
            at, step = (low + high) // 2, 1
    return low


def _context(sample: Sample, captions: bool, nothing: str) -> str:
    parts = [sample.context.strip(), sample.caption.strip() if captions else ""]
    return " ".join(p for p in parts if p) or nothing


def _clean(text: str) -> str:
    """Double spaces collapsed, ends stripped, as published."""
    return re.sub(" {2,}", " ", text).strip()
