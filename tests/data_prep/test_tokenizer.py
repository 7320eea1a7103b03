"""The trained tokenizer: LLaMA's conventions, and no piece over the border between prompt and target."""

import pytest
import sentencepiece

from data_prep.tokenizer import train_tokenizer

TEXTS = [
    f"Question: Where is {n}?\nContext: N/A\nOptions: (A) here (B) there\nResponse:The answer is A." for n in range(60)
]


def test_special_pieces_stand_where_llama_has_them(tokenizer_path):
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
    assert (model.unk_id(), model.bos_id(), model.eos_id(), model.pad_id()) == (0, 1, 2, -1)
    assert model.GetPieceSize() == 400
    assert all(model.IsByte(i) for i in range(model.PieceToId("<0x00>"), model.PieceToId("<0xFF>") + 1))


def test_no_piece_spans_a_mark_at_which_texts_are_joined(tokenizer_path):
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
    pieces = [model.IdToPiece(i) for i in range(model.GetPieceSize())]
    assert not [p for p in pieces if len(p) > 1 and set(p) & set("\n:().")]


def test_the_same_texts_give_the_same_tokenizer(tmp_path):
    for name in ("a", "b"):
        train_tokenizer(iter(TEXTS), tmp_path / "new" / name, 330)
    assert (tmp_path / "new" / "a").read_bytes() == (tmp_path / "new" / "b").read_bytes()


def test_too_few_texts_are_refused_and_leave_no_file(tmp_path):
    with pytest.raises(ValueError, match="the tokenizer cannot be trained"):
        train_tokenizer(["ab"], tmp_path / "x.model", 5000)
    assert not (tmp_path / "x.model").exists()
