"""A folder of photographs becomes two splits: answers from the folders' names, sides from the photographs' content."""

import json
import shutil

import pytest
from making import picture
from PIL import Image
from prepared import here, samples

from data_prep import photos as program

CLASSES = {"daisy": 10, "001.Black_footed_Albatross": 10, "golden_retriever": 5}


def _photo(path, number, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size)
    image.putdata([((x * number) % 256, number % 256, 90) for x in range(size[0] * size[1])])
    image.save(path)


@pytest.fixture
def folder(tmp_path):
    number = 0
    for name, count in CLASSES.items():
        for i in range(count):
            number += 1
            _photo(tmp_path / "photos" / name / ("deep" if i == 3 else "") / f"{i}.{'JPG' if i % 2 else 'png'}", number)
    (tmp_path / "photos" / "daisy" / "notes.txt").write_text("no photograph")
    (tmp_path / "photos" / "daisy" / ".hidden.jpg").write_text("no photograph")
    return tmp_path / "photos"


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    def prepare(source, *options):
        code, out, err = here(program, monkeypatch, capsys, "--photos", source, "--out", tmp_path / "out", *options)
        found = [samples(tmp_path / "out" / split) for split in ("train", "test")] if code == 0 else []
        return code, out, err, found

    return prepare


def test_classes_become_answers_and_a_share_of_each_is_held_out(folder, prepare):
    code, out, _, (train, test) = prepare(folder, "--held-out", "0.2")
    assert code == 0 and "no photographs of a class: 1 .txt" in out
    answers = [[sample.answer for sample in split] for split in (train, test)]
    names = ("daisy", "Black footed Albatross", "golden retriever")
    assert [answers[0].count(name) for name in names] == [8, 8, 4]
    assert [answers[1].count(name) for name in names] == [2, 2, 1]
    assert {sample.question for sample in train + test} == {program.QUESTION} and not train[0].choices
    assert all(Image.open(_file(sample)).size == (224, 224) for sample in train + test)
    assert answers[0] != sorted(answers[0])  # neighbours are of several classes


def _file(sample):
    import io

    return io.BytesIO(sample.image)


def test_the_side_follows_from_the_content(folder, prepare, tmp_path):
    _, _, _, (_, test) = prepare(folder, "--held-out", "5")
    held = {sample.image for sample in test}
    assert len(test) == 5
    for path in sorted(folder.rglob("*.png")):
        path.rename(path.with_name(f"x{path.name}"))
    some = next(path for path in folder.rglob("*.JPG"))
    shutil.copy(some, some.with_name("copy.jpg"))
    _, _, _, (train, test) = prepare(folder, "--held-out", "5", "--question", "What is it?")
    assert len(train) + len(test) == 26 and test[0].question == "What is it?"
    # a copy is one photograph: it stands on one side
    assert {s.image for s in test} == held and not {s.image for s in train} & held


def test_rows_of_questions_and_their_choices_in_words(prepare, tmp_path):
    rows = []
    for i in range(8):
        _photo(tmp_path / "images" / f"{i}.jpg", i + 1)
        for question in ("Which?", "Where?"):
            rows.append(
                {"image": f"images/{i}.jpg", "question": question, "choices": ["left", "right"], "answer": i % 2}
            )
    rows.append({"question": "Without?", "answer": "yes"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for source in (tmp_path / "rows.jsonl", tmp_path):
        code, _, err, (train, test) = prepare(source, "--held-out", "0.25")
        assert (code, err) == (0, "")
        assert (len(train), len(test)) == (13, 4)
        assert {sample.answer for sample in train} == {"left", "right", "yes"} and not any(s.choices for s in train)
        assert not {s.image for s in train} & {s.image for s in test}


def test_what_cannot_be_prepared_is_told_in_a_line(folder, prepare, tmp_path):
    (tmp_path / "empty").mkdir()
    shutil.copytree(folder / "daisy", tmp_path / "flat")
    (tmp_path / "two").mkdir()
    for name in "ab":
        (tmp_path / "two" / f"{name}.jsonl").write_text("{}")
    for source, options, why in [
        (tmp_path / "none", (), "does not exist"),
        (tmp_path / "empty", (), "has 0 subfolders with photographs"),
        (tmp_path / "flat", (), "has 1 subfolder with photographs"),
        (tmp_path / "two", (), "has a.jsonl, b.jsonl; name one of them"),
        (folder, ("--held-out", "25"), "take fewer"),
        (folder, ("--held-out", "0"), "take fewer, but some"),
        (folder, ("--held-out", "0.001"), "is none; take more"),
    ]:
        code, _, err, _ = prepare(source, *options)
        assert code == 1 and why in err and len([line for line in err.splitlines() if "error" in line]) == 1, err


def test_a_damaged_photograph_is_told_or_left_out(folder, prepare):
    (folder / "daisy" / "broken.jpg").write_bytes(picture()[:30])
    assert "cannot be decoded" in prepare(folder)[2]
    code, out, _, (train, test) = prepare(folder, "--on-bad-row", "skip")
    assert code == 0 and len(train) + len(test) == 25 and "left out" in out


def test_long_names_in_any_script_become_keys(prepare, tmp_path):
    for number, name in enumerate(("золотистый_ретривер", "黄金猎犬")):
        for i in range(3):
            _photo(tmp_path / "photos" / name / f"{name * 3}{i}.png", 10 * number + i)
    code, _, err, (train, test) = prepare(tmp_path / "photos", "--held-out", "0.3")
    assert (code, err) == (0, "") and len(train + test) == 6
