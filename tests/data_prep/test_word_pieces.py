"""The trained word pieces: BERT's conventions, from the captions of shards."""

import pytest
from making import fields
from prepared import here

from data_prep import word_pieces as program
from data_prep.shards import Row, write_shards
from data_prep.word_pieces import train_word_pieces
from dsmemvp.data.captions import WordPieces
from dsmemvp.errors import UserError

CAPTIONS = ("A red circle, at the left.", "a blue star at the top.", "Träume in Blau")


@pytest.fixture
def shards(tmp_path):
    rows = [Row(f"k{i}", {"caption": caption}) for i, caption in enumerate(CAPTIONS)]
    write_shards([*rows, Row("q", fields(0))], tmp_path / "in", "train")  # a question without a caption
    return tmp_path / "in"


def test_the_pieces_read_every_caption_as_bert_s_tokenizer_does(shards, tmp_path, monkeypatch, capsys):
    out = tmp_path / "new" / "vocab.txt"
    code, said, _ = here(program, monkeypatch, capsys, "--data", shards, "--out", out, "--vocabulary", 100)
    pieces = out.read_text().splitlines()
    assert (code, said) == (0, f"{len(pieces)} pieces -> {out}\n") and 50 < len(pieces) <= 100
    assert pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    reader = WordPieces(out)
    assert (reader.pad, reader.unknown, reader.cls, reader.sep, reader.mask) == (0, 1, 2, 3, 4)
    read = ("a red circle , at the left .", "a blue star at the top .", "traume in blau")
    for caption, words in zip(CAPTIONS, read, strict=True):
        tokens = [pieces[token] for token in reader.encode(caption)]
        assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
        assert " ".join(tokens[1:-1]).replace(" ##", "") == words


def test_the_same_captions_give_the_same_file(tmp_path):
    """Each time: the trainer by itself numbers characters at random."""
    for name in range(8):
        train_word_pieces(iter(CAPTIONS * 30), tmp_path / str(name), 60)
    assert len({(tmp_path / str(name)).read_bytes() for name in range(8)}) == 1


def test_what_keeps_the_command_from_training_is_told_in_one_line(shards, tmp_path, monkeypatch, capsys):
    given = ["--out", tmp_path / "vocab.txt", "--vocabulary", 20]
    code, _, err = here(program, monkeypatch, capsys, "--data", shards, *given)
    assert code == 1 and "a vocabulary of 20 pieces is too small: characters alone take" in err
    code, _, err = here(program, monkeypatch, capsys, "--data", tmp_path, *given)
    assert code == 1 and err.startswith(f"data_prep.word_pieces: error: {tmp_path / 'dataset.json'} does not exist")
    with pytest.raises(UserError, match="no captions"):
        train_word_pieces([""], tmp_path / "vocab.txt", 100)
    assert not (tmp_path / "vocab.txt").exists()
