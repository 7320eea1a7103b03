"""Pictures with the words of their answers as captions."""

from making import picture
from prepared import here, samples

from data_prep import answer_captions
from data_prep.shards import Row, write_shards
from dsmemvp.data.captions import caption_of
from dsmemvp.data.sample import DESCRIBE

RED, BLUE, GREY = (picture(colour=colour) for colour in ((200, 0, 0), (0, 0, 200), (90, 90, 90)))


def test_every_picture_has_the_words_of_its_answers_once(tmp_path, monkeypatch, capsys):
    asked = [
        (RED, "What colour?", "red"),
        (BLUE, "What colour?", "blue"),
        (RED, "Which shape?", "circle"),
        (GREY, "Is it red?", "no"),
        (None, "What is 1 + 1?", "two"),
    ]
    rows = [Row(f"q{i}", {"question": q, "answer": a, "task": "vqa"}, image) for i, (image, q, a) in enumerate(asked)]
    rows.append(Row("c", {"question": "Which?", "choices": ["x", "square"], "answer": 1}, BLUE, "bmp"))
    write_shards(rows, tmp_path / "in", "train", per_shard=2)
    code, said, _ = here(answer_captions, monkeypatch, capsys, "--shards", tmp_path / "in", "--out", tmp_path / "out")
    assert (code, said) == (0, f"2 pictures -> {tmp_path / 'out'}\n")
    found = samples(tmp_path / "out")
    assert [(sample.image, caption_of(sample)) for sample in found] == [(RED, "circle red"), (BLUE, "blue square")]
    assert all(sample.question == DESCRIBE for sample in found)


def test_data_without_such_a_picture_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    write_shards([Row("a", {"question": "?", "answer": "b", "task": "vqa"})], tmp_path / "in", "train")
    code, _, err = here(answer_captions, monkeypatch, capsys, "--shards", tmp_path / "in", "--out", tmp_path / "out")
    assert code == 1 and "there is no row to write" in err and err.count("\n") == 1
