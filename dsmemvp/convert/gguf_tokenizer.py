"""The vocabulary of a GGUF file -> the tokenizer's files of a Hugging Face folder: tokenizer.json for byte-level pieces
with merges ("gpt2"), tokenizer.model for sentencepiece's pieces with scores ("llama")."""

import importlib
import json
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from dsmemvp.convert.gguf_file import Gguf
from dsmemvp.errors import UserError

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Kinds of pieces, the same numbers in GGUF and in sentencepiece."""
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _byte_level(use_regex: bool = True) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


CUTS = {
    # tokenizer.ggml.pre -> how a text is cut into words, as the models' own tokenizer.json have it
    "default": _byte_level,
    "gpt-2": _byte_level,
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()]),
    "llama-bpe": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), _byte_level(use_regex=False)]
    ),
}


def tokenizer_files(file: Gguf) -> tuple[dict[str, bytes], str]:
    """Names and contents of the files, and a word to the user if there are none. Raises UserError for a vocabulary that
    is damaged."""
    kind, pieces = _setting(file, "model"), _setting(file, "tokens")
    if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
        return {}, "the file has no vocabulary; a recipe needs the model's tokenizer.json or tokenizer.model"
    kinds = _setting(file, "token_type") or [1] * len(pieces)
    if len(kinds) != len(pieces) or len(set(pieces)) != len(pieces):
        raise UserError(f"{file.path} is damaged: {len(pieces)} pieces, {len(kinds)} kinds of pieces, or one twice")
    if kind == "gpt2" and _setting(file, "pre") in (None, *CUTS):
        return _byte_level_files(file, pieces, kinds), ""
    if kind == "llama":
        return _sentencepiece_files(file, pieces, kinds), ""
    cut = _setting(file, "pre")
    return {}, f"its tokenizer ({kind!r:.40}, {cut!r:.40}) is not read; a recipe needs the model's own tokenizer.json"


def _setting(file: Gguf, name: str) -> Any:
    return file.settings.get(f"tokenizer.ggml.{name}")


def _byte_level_files(file: Gguf, pieces: list[str], kinds: list[int]) -> dict[str, bytes]:
    cut = _setting(file, "pre") or "default"
    merges = [tuple(merge.split(" ")) for merge in _setting(file, "merges") or []]
    try:
        model = models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, ignore_merges=cut == "llama-bpe")
    except Exception as error:  # the library raises no narrower one
        raise UserError(f"{file.path} is damaged: its merges are not of its pieces ({error})") from None
    made: Any = tokenizers.Tokenizer(model)
    made.pre_tokenizer, made.decoder = CUTS[cut](), decoders.ByteLevel()
    special = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind in (UNKNOWN, CONTROL)]
    made.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    own = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == USER_DEFINED]
    made.add_tokens([AddedToken(piece, normalized=False) for piece in own])
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {f"{which}_token": _piece(file, pieces, which) for which in ("bos", "eos")}
    config["add_bos_token"] = bool(_setting(file, "add_bos_token"))
    if isinstance(chat := file.settings.get("tokenizer.chat_template"), str):
        config["chat_template"] = chat
    written = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
    return {"tokenizer.json": made.to_str().encode(), "tokenizer_config.json": written.encode()}


def _piece(file: Gguf, pieces: list[str], which: str) -> str | None:
    number = _setting(file, f"{which}_token_id")
    return pieces[number] if type(number) is int and 0 <= number < len(pieces) else None


def _sentencepiece_files(file: Gguf, pieces: list[str], kinds: list[int]) -> dict[str, bytes]:
    """As LLaMA's own: byte-pair merges by score, unknown characters as bytes, nothing normalised."""
    layout: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    scores = _setting(file, "scores")
    if not isinstance(scores, list) or len(scores) != len(pieces):
        raise UserError(f"{file.path} is damaged: {len(pieces)} pieces without as many scores")
    made = layout.ModelProto()
    for piece, score, kind in zip(pieces, scores, kinds, strict=True):
        made.pieces.add(piece=piece, score=score, type=kind)
    trained = made.trainer_spec
    trained.model_type, trained.vocab_size, trained.byte_fallback = trained.BPE, len(pieces), True
    for which, name in (("unk_id", "unknown"), ("bos_id", "bos"), ("eos_id", "eos")):
        number = _setting(file, f"{name}_token_id")
        setattr(trained, which, number if type(number) is int else kinds.index(UNKNOWN) if name == "unknown" else -1)
    front = _setting(file, "add_space_prefix")
    made.normalizer_spec.name = "identity"
    made.normalizer_spec.add_dummy_prefix = True if front is None else bool(front)
    made.normalizer_spec.remove_extra_whitespaces = False
    return {"tokenizer.model": made.SerializeToString()}
