"""The trained tokenizer: LLaMA's conventions, and no piece over the border between prompt and target."""

import pytest
import sentencepiece
from making import fields, good_shards
from prepared import here

from data_prep import tokenizer as program
from data_prep.shards import Row, write_shards
from data_prep.tokenizer import texts_of, train_tokenizer
from dsmemvp.errors import UserError

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
    with pytest.raises(UserError, match="of 5000 pieces is too large for these texts: they give 270"):
        train_tokenizer(["ab"], tmp_path / "x.model", 5000)
    assert not (tmp_path / "x.model").exists()


def test_the_command_trains_on_the_texts_of_shards_as_a_model_sees_them(demo_shards, tmp_path, monkeypatch, capsys):
    write_shards([Row("a", fields(0, context="C", caption="D"))], tmp_path / "one", "train")
    assert list(texts_of([tmp_path / "one"])) == [
        "Question: Which number is 0?\nContext: C D\nOptions: (A) no (B) yes\nResponse:The answer is A."
    ]
    out = tmp_path / "t.model"
    code, told, _ = here(
        program, monkeypatch, capsys, "--data", demo_shards, tmp_path / "one", "--out", out, "--vocabulary", 350
    )
    assert (code, told) == (0, f"350 pieces -> {out}\n")
    train_tokenizer(texts_of([demo_shards, tmp_path / "one"]), tmp_path / "same", 350)
    assert out.read_bytes() == (tmp_path / "same").read_bytes()
    assert sentencepiece.SentencePieceProcessor(model_file=str(out)).GetPieceSize() == 350


def test_what_keeps_the_command_from_training_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    given = ["--out", tmp_path / "t.model", "--vocabulary", 300]
    code, _, err = here(program, monkeypatch, capsys, "--data", tmp_path, *given)
    assert code == 1 and err.startswith(f"data_prep.tokenizer: error: {tmp_path / 'dataset.json'} does not exist")
    manifest = good_shards(tmp_path / "damaged", 2)
    content = bytearray(manifest.path(0).read_bytes())
    content[520] ^= 1
    manifest.path(0).write_bytes(content)
    code, _, err = here(program, monkeypatch, capsys, "--data", tmp_path / "damaged", *given)
    assert code == 1 and "sample s000: its checksum" in err and err.count("\n") == 1
    assert not (tmp_path / "t.model").exists()
