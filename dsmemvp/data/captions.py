"""Captions as a text encoder beside the language model reads them: by a word-piece tokenizer of its own, with the
places that are drawn for [MASK]."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import tokenizers

from dsmemvp.data.sample import Sample, SampleError
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.errors import UserError

MOST = 16 << 20
"""Bytes of a vocab.txt; BERT's has 0.2 million."""
SPECIAL = ("[CLS]", "[SEP]", "[UNK]", "[MASK]", "[PAD]")


@dataclass(frozen=True)
class CaptionText:
    """What a method wants of each sample's caption."""

    tokenizer: str
    """File of its own tokenizer: BERT's vocab.txt or tokenizer.json."""
    length: int
    """Tokens of a row, [CLS] and [SEP] included; a longer caption is a bad sample."""
    mask: float = 0.0
    """Probability that a token's place is drawn for [MASK]."""
    target: bool = False
    """Whether the language model's text is the caption and its end alone, without a question."""
    supervise_bos: bool = False
    """With `target`: whether BOS is among the tokens that it has to predict, behind places at the start."""
    of: Literal["caption", "answer", "question+answer"] = "caption"
    """What is read in a caption's place."""


@dataclass(frozen=True)
class CaptionReader:
    """A sample's caption -> a row. What travels to workers are its settings."""

    text: CaptionText
    seed: int = 0

    @cached_property
    def pieces(self) -> "WordPieces":
        return WordPieces(self.text.tokenizer)

    def __getstate__(self) -> dict[str, object]:
        return {"text": self.text, "seed": self.seed}

    def row(self, sample: Sample, epoch: int) -> "CaptionRow":
        """Raises SampleError for a caption that is empty, missing or too long."""
        caption = caption_of(sample) if self.text.of == "caption" else _answered(sample, self.text.of)
        if not caption:
            raise SampleError(sample.where, f"has no {self.text.of}, which the method reads")
        tokens = self.pieces.encode(caption)
        if len(tokens) > self.text.length:
            raise SampleError(
                sample.where,
                f"its caption has {len(tokens)} tokens, more than the text length of {self.text.length}",
            )
        return CaptionRow(tokens, drawn_places(len(tokens), self.text.mask, self.seed, epoch, sample.index))


@dataclass(frozen=True)
class CaptionRow:
    tokens: list[int]
    """From [CLS] to [SEP]"""
    drawn: np.ndarray
    """[tokens] bool"""


def caption_of(sample: Sample) -> str:
    """The text of a sample that is a caption, or the caption beside a question; empty if there is none."""
    return str(sample.answer).strip() if sample.scores.get("task") == "caption" else sample.caption.strip()


def _answered(sample: Sample, of: str) -> str:
    """The answer in words, with the question before it if that is wanted."""
    answer = sample.choices[int(sample.answer)] if sample.choices else str(sample.answer)
    return " ".join(filter(None, (sample.question.strip() if of == "question+answer" else "", answer.strip())))


def drawn_places(length: int, probability: float, seed: int, epoch: int, index: int) -> np.ndarray:
    """[length] bool: the places of a caption drawn for [MASK], but for its first one. A function of these numbers
    alone, so that any number of ranks and workers draws the same, before and after a resume."""
    drawn = np.random.Generator(np.random.PCG64((seed, epoch, index))).random(length) < probability
    drawn[0] = False
    return drawn


class WordPieces:
    """BERT's tokenizer: text -> [CLS] pieces [SEP]. What looks like a special token inside of a text is text."""

    def __init__(self, path: str | Path):
        """Raises UserError naming the file."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"tokenizer {path} does not exist; give the vocab.txt or tokenizer.json of a BERT")
        if path.suffix == ".txt":
            if path.stat().st_size > MOST:
                raise UserError(f"tokenizer {path} has {path.stat().st_size} bytes, at most {MOST} are read")
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise UserError(f"tokenizer {path} is not a vocab.txt ({error})") from None
            vocabulary = {piece: number for number, piece in enumerate(lines)}
            _check_special(vocabulary, path)
            model = tokenizers.BertWordPieceTokenizer(vocabulary, lowercase=True)
            self._encode = lambda text: model.encode(text, add_special_tokens=False).ids
            self.vocabulary = len(vocabulary)
        else:
            reader = Tokenizer(path)
            vocabulary = {piece: found for piece in SPECIAL if (found := reader.number(piece)) is not None}
            _check_special(vocabulary, path)
            self._encode = lambda text: reader.encode(text)[len(reader.front) :]
            self.vocabulary = reader.vocabulary
        self.cls, self.sep, self.unknown, self.mask, self.pad = (vocabulary[piece] for piece in SPECIAL)

    def encode(self, text: str) -> list[int]:
        return [self.cls, *self._encode(text), self.sep]


def _check_special(vocabulary: dict[str, int], path: Path) -> None:
    if missing := [piece for piece in SPECIAL if piece not in vocabulary]:
        raise UserError(f"tokenizer {path} has no {', '.join(missing)}; give the vocab.txt or tokenizer.json of a BERT")
