"""Words of an encoded text and the tokens they are made of.

Only a tokenizer's `decode` is used, on ever longer beginnings of the text: tokens may be pieces with or without a space
before them, or single bytes, and a tokenizer may have normalised the text.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.errors import UserError

ANSWER = "(answer)"
"""Name of the last token's place, where the answer is read."""
QUESTION = "(question)"
"""Name of all words of the question together."""
MOST = 8
"""Words of a question that are chosen one by one if none are asked for; a longer question is taken together."""


@dataclass(frozen=True)
class Word:
    text: str
    """Without punctuation around it."""
    tokens: tuple[int, ...]
    """Their places in the sample's tokens."""


def all_words(tokenizer: Tokenizer, tokens: list[int]) -> list[Word]:
    """All words of an encoded text, between its spaces; what is punctuation alone has no text."""
    text, spans = tokenizer.decode(tokens), _spans(tokenizer, tokens)
    words = []
    for match in re.finditer(r"\S+", text):
        inner = _bare(match[0])
        start = match.start() + match[0].index(inner)
        places = [n for n, (a, b) in enumerate(spans) if a < start + len(inner) and b > start]
        words.append(Word(inner, tuple(places)))
    return words


def chosen_words(tokenizer: Tokenizer, tokens: list[int], question: str, wanted: Sequence[str] = ()) -> list[Word]:
    """The wanted words where they stand first, or else those of the question, one by one if they are few, and together;
    and the place of the answer. `tokens` are those of a prompt (data/text.py). Raises UserError for a word that is not
    there."""
    words = all_words(tokenizer, tokens)
    # the prompt begins with "Question:"
    asked = [word for word in words[1 : 1 + len(question.split())] if word.text]
    together = Word(QUESTION, tuple(sorted({n for word in asked for n in word.tokens})))
    if wanted:
        chosen = [together if text == QUESTION else _first(words, text) for text in wanted if text != ANSWER]
    else:
        chosen = [*(asked if len(asked) <= MOST else []), together]
    return [*(word for word in chosen if word.tokens), Word(ANSWER, (len(tokens) - 1,))]


def _first(words: list[Word], text: str) -> Word:
    for word in words:
        if word.text and word.text.lower() == _bare(text).lower():
            return word
    known = ", ".join(dict.fromkeys(word.text for word in words if word.text))
    raise UserError(f"--words: {text!r} is not in the prompt, which has: {known}")


def _bare(text: str) -> str:
    """Without what is no letter, figure or mark of one at its ends."""
    kept = [n for n, sign in enumerate(text) if unicodedata.category(sign)[0] in "LNM"]
    return text[kept[0] : kept[-1] + 1] if kept else ""


def _spans(tokenizer: Tokenizer, tokens: list[int]) -> list[tuple[int, int]]:
    """Where each token's characters begin and end; those of a character's single bytes are that character."""
    ends = [len(tokenizer.decode(tokens[: n + 1])) for n in range(len(tokens))]
    for n in reversed(range(len(ends) - 1)):
        ends[n] = min(ends[n], ends[n + 1])  # a character of which bytes are missing decodes to several signs
    starts = [0, *ends[:-1]]
    return [(min(a, b - 1), b) for a, b in zip(starts, ends, strict=True)]
