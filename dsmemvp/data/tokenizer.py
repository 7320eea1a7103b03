"""Text <-> tokens: a sentencepiece model (LLaMA 1 and 2), or a tokenizer.json (Hugging Face; LLaMA 3 has only that).

A text starts with BOS if the tokenizer has one (LLaMA, Mistral; not Qwen), a target ends with EOS. What looks like a
special token inside of a text is text like any other.
"""

import re
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

from dsmemvp.config.hub import local
from dsmemvp.config.paths import check_tokenizer_file
from dsmemvp.errors import UserError
from dsmemvp.json_text import read_json

MOST = 64 << 20
"""Bytes of a tokenizer's file; LLaMA 3's has 9 million."""
KNOWN = {
    "bos": ("<s>", "<|begin_of_text|>", "[CLS]"),
    "eos": ("</s>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "[SEP]"),
}
"""LLaMA's, Qwen's and BERT's names, for a tokenizer.json without the files that name them."""
PADDED = 1024
"""Rows of the model's embedding beyond the tokenizer's pieces that are taken for padding (to multiples of 64 and the
like); more of them, and the tokenizer is another model's."""


class Tokenizer:
    """The file that `model.tokenizer` names. Beside a tokenizer.json its folder's tokenizer_config.json,
    special_tokens_map.json or config.json say which pieces are BOS and EOS."""

    def __init__(self, path: str | Path):
        """`path` may be a name on the hub (config/hub.py). Raises UserError naming the file."""
        path = Path(local(str(path), "model.tokenizer"))
        check_tokenizer_file(path)
        if path.stat().st_size > MOST:
            raise UserError(f"tokenizer {path} has {path.stat().st_size} bytes, at most {MOST} are read")
        content = path.read_bytes()
        self._model: _SentencePiece | _Json = (
            _Json(content, path) if content.lstrip()[:1] == b"{" else _SentencePiece(content, path)
        )
        if self._model.eos is None:
            raise UserError(f"tokenizer {path} has no EOS piece; {self._model.remedy}")
        self.bos, self.eos, self.vocabulary = self._model.bos, self._model.eos, self._model.vocabulary
        self.front: list[int] = [] if self.bos is None else [self.bos]
        """What stands in front of every text: BOS, or nothing."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, BOS first if there is one."""
        return [*self.front, *self._model.encode(text)]

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens as above, and of each the characters [start, stop) of the text that it stands for; BOS is (0, 0). Of a
        character that is several tokens, some of them may be empty, at its start."""
        tokens, spans = self._model.encode_spans(text)
        return [*self.front, *tokens], [*((0, 0) for _ in self.front), *spans]

    def decode(self, tokens: list[int]) -> str:
        """BOS, EOS and what the model has beyond the tokenizer's pieces are left out."""
        return self._model.decode([t for t in tokens if t not in (self.bos, self.eos) and t < self.vocabulary])

    def number(self, piece: str) -> int | None:
        """Of a piece; None if there is none."""
        return self._model.number(piece)

    def check_fits(self, rows: int, path: str) -> None:
        """`rows` is the language model's vocabulary. Raises UserError if it is another one than the tokenizer's."""
        if not self.vocabulary <= rows <= self.vocabulary + PADDED:
            raise UserError(
                f"model.tokenizer: {path} has {self.vocabulary} pieces, the language model {rows}; take the tokenizer"
                f" that the model came with (up to {PADDED} more in the model are taken for padding)"
            )


class _SentencePiece:
    remedy = "train it with one"

    def __init__(self, content: bytes, path: Path):
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(content)
        except (RuntimeError, UnicodeDecodeError):
            if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", content):
                raise UserError(
                    f"tokenizer {path} is a tiktoken file, as Meta's LLaMA 3 has; give the tokenizer.json of the same"
                    " model's Hugging Face folder in model.tokenizer"
                ) from None
            raise UserError(f"tokenizer {path} is not a sentencepiece model") from None
        self.bos, self.eos = (i if i >= 0 else None for i in (self._model.bos_id(), self._model.eos_id()))
        self.vocabulary: int = self._model.GetPieceSize()

    def encode(self, text: str) -> list[int]:
        return self._model.EncodeAsIds(text)

    def number(self, piece: str) -> int | None:
        found = self._model.PieceToId(piece)
        return found if self._model.IdToPiece(found) == piece else None

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        mapping = self._model.EncodeAsOffsetMapping(text)
        return mapping["ids"], mapping["offsets"]

    def decode(self, tokens: list[int]) -> str:
        return self._model.DecodeIds(tokens)


class _Json:
    remedy = "name it in a tokenizer_config.json beside it (eos_token)"

    def __init__(self, content: bytes, path: Path):
        try:
            self._model = tokenizers.Tokenizer.from_buffer(content)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises no narrower one, and if it panics not even an Exception
            raise UserError(f"tokenizer {path} is not a tokenizer.json ({error})") from None
        self._model.no_truncation()
        self._model.no_padding()
        self._model.encode_special_tokens = True  # as text
        self.vocabulary = max(self._model.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.bos, self.eos = (self._special(path.parent, which) for which in ("bos", "eos"))

    def _special(self, folder: Path, which: str) -> int | None:
        config = _read(folder / "tokenizer_config.json")
        # Qwen has no BOS, and says so here alone: its config.json has a bos_token_id
        if config.get(f"add_{which}_token", True) is False and which == "bos":
            return None
        if f"{which}_token" in config and config[f"{which}_token"] is None:
            return None
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            named = _read(folder / file).get(f"{which}_token")
            named = named.get("content") if isinstance(named, dict) else named
            if isinstance(named, str) and (found := self._model.token_to_id(named)) is not None:
                return found
        number = _read(folder / "config.json").get(f"{which}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int) and 0 <= number < self.vocabulary:
            return number
        found_ids = map(self._model.token_to_id, KNOWN[which])
        return next((found for found in found_ids if found is not None), None)

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids

    def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = self._model.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, tokens: list[int]) -> str:
        return self._model.decode(tokens, skip_special_tokens=True)

    def number(self, piece: str) -> int | None:
        return self._model.token_to_id(piece)


def _read(path: Path) -> dict[str, Any]:
    """Empty if there is no such file. Raises UserError."""
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
    except ValueError as error:
        raise UserError(f"{error}; it names the tokenizer's BOS and EOS") from None
    return content if isinstance(content, dict) else {}
