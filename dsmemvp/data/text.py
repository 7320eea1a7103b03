"""Sample -> prompt and target tokens: the published ScienceQA prompt (QCM-A), and its short form for open answers.

    Question: {question}\\nContext: {context or N/A}\\nOptions: (A) .. (B) ..\\nResponse:The answer is {letter}.

The target follows "Response:" without a space (facts of the published code: util/base_prompt.py of MemVP). The answer
of a free task (a caption, a turn of a conversation) follows in the same place, without "The answer is" and full stop.
Length is kept by cutting the context from its end, a conversation's from its beginning (the last turns stay); question
and options are never cut.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dsmemvp.data.sample import Sample, SampleError
from dsmemvp.data.tokenizer import Tokenizer

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


def prompt_text(sample: Sample, captions: bool) -> str:
    """The prompt up to "Response:"."""
    if not sample.choices:
        context = _context(sample, captions, "")
        middle = f"\nContext: {context}" if context else ""
        return _clean(f"Question: {sample.question}{middle}\nResponse:")
    context = _context(sample, captions, "N/A")
    return _clean(f"Question: {sample.question}\nContext: {context}\nOptions: {options(sample.choices)}\nResponse:")


def options(choices: Sequence[str]) -> str:
    """ "(A) cat (B) dog" """
    return " ".join(f"({letter(i)}) {choice}" for i, choice in enumerate(choices))


def letter(choice: int) -> str:
    """A, B, ... of a choice's index."""
    return chr(ord("A") + choice)


def chosen(text: str, choices: int) -> int | None:
    """Which of so many choices a written answer names: that of the first capital letter in it; None where it has none,
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

    def encode(sample: Sample) -> tuple[list[int], list[int]]:
        prompt, whole = _continued(tokenizer, prompt_text(sample, captions), target_text(sample), sample.where)
        return prompt, [*whole, tokenizer.eos]

    (prompt, whole), cut = _fitted(encode, sample, captions, most)
    return EncodedText(whole, len(prompt), cut)


def encode_for_answer(tokenizer: Tokenizer, sample: Sample, captions: bool, most: int) -> EncodedText:
    """Prompt + "The answer is" where the task has it, for a model to go on from."""

    def encode(sample: Sample) -> tuple[list[int], list[int]]:
        _, whole = _continued(tokenizer, prompt_text(sample, captions), lead_in(sample), sample.where)
        return whole, whole

    (_, whole), cut = _fitted(encode, sample, captions, most)
    return EncodedText(whole, len(whole), cut)


def _continued(tokenizer: Tokenizer, prompt: str, rest: str, where: str) -> tuple[list[int], list[int]]:
    """Tokens of the prompt, and of prompt + rest, which begin with the prompt's. Raises SampleError."""
    first, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + rest)
    if whole[: len(first)] != first:
        # a byte-level tokenizer may have a piece like ":The"; the two are then encoded one by one. With a sentencepiece
        # model that would put a space between them
        whole = [*first, *tokenizer.encode(rest)[1:]]
        if tokenizer.decode(whole) != prompt + rest:
            raise SampleError(where, "the tokenizer joins the end of the prompt with the target; use another one")
    return first, whole


def _fitted(encode, sample: Sample, captions: bool, most: int):
    """`encode(sample)` with as many words of the context as fit into `most` tokens, and whether any were cut."""
    encoded = encode(sample)
    if len(encoded[1]) <= most:
        return encoded, False
    words = _context(sample, captions, "").split(" ")
    low, high = 0, len(words)  # `low` words are known to fit, or nothing does; `high` words do not
    fitting = None
    while low < high:
        middle = (low + high) // 2
        kept = words[len(words) - middle :] if sample.scores.get("task") == "conversation" else words[:middle]
        shorter = replace(sample, context=" ".join(kept), caption="")
        encoded = encode(shorter)
        if len(encoded[1]) <= most:
            fitting, low = encoded, middle + 1
        else:
            high = middle
    if fitting is None:
        raise SampleError(sample.where, f"question and options alone are longer than data.max_length = {most} tokens")
    return fitting, True


def _context(sample: Sample, captions: bool, nothing: str) -> str:
    parts = [sample.context.strip(), sample.caption.strip() if captions else ""]
    return " ".join(p for p in parts if p) or nothing


def _clean(text: str) -> str:
    """Double spaces collapsed, ends stripped, as published."""
    return re.sub(" {2,}", " ", text).strip()
