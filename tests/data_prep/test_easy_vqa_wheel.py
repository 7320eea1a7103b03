"""easy-VQA's wheel becomes two splits; the wheel here is small, and the whole one is read if it is there."""

import json
import zipfile

import pytest
from making import picture
from prepared import here, samples
from real_wheels import wheel

from data_prep import easy_vqa as program


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    def prepare(wheel, *options):
        return here(program, monkeypatch, capsys, "--wheel", wheel, "--out", tmp_path / "out", *options)

    return prepare


def _wheel(path, without=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for split, count in (("train", 10), ("test", 4)):
            rows = [[f"Is it {i}?", "yes" if i % 2 else "no", i // 2] for i in range(count)]
            if split != without:
                wheel.writestr(f"easy_vqa/data/{split}/questions.json", json.dumps(rows))
            for i in range(count // 2):
                wheel.writestr(f"easy_vqa/data/{split}/images/{i}.png", picture())
        wheel.writestr("../outside.txt", "not unpacked")


def test_the_splits_of_the_wheel_become_shards(prepare, tmp_path):
    _wheel(tmp_path / "w.whl")
    code, _, err = prepare(tmp_path / "w.whl", "--train", "5")
    assert (code, err) == (0, "")
    train, test = (samples(tmp_path / "out" / split) for split in ("train", "test"))
    assert [s.question for s in train] == [f"Is it {i}?" for i in (0, 2, 4, 6, 8)] and len(test) == 4
    assert test[3].answer == "yes" and test[3].image == picture() and not test[3].choices
    assert not list(tmp_path.rglob("outside.txt"))


def test_what_is_not_this_wheel_is_told(prepare, tmp_path):
    _wheel(tmp_path / "w.whl", without="test")
    (tmp_path / "no.whl").write_bytes(b"no wheel")
    for name, why in {"none": "does not exist", "no": "is damaged", "w": "is not that of easy-vqa 1.0"}.items():
        code, _, err = prepare(tmp_path / f"{name}.whl")
        assert code == 1 and why in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("questions", "said"),
    [
        ("{}", "is not a list"),
        ("[" * 100_000, "is not JSON"),
        ("oops", "questions.json is not JSON"),
        ('[["q", "a"]]', "question 0: is not [text, answer, number of the picture]: ['q', 'a']"),
        ('[["q", "a", "../x"]]', "question 0: is not [text, answer, number of the picture]"),
    ],
)
def test_questions_that_are_none_are_told(prepare, tmp_path, questions, said):
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as wheel:
        for split in ("train", "test"):
            wheel.writestr(f"easy_vqa/data/{split}/questions.json", questions)
    code, _, err = prepare(tmp_path / "w.whl")
    assert code == 1 and said in err and "Traceback" not in err


def test_no_questions_at_all_may_not_be_asked_for(prepare, tmp_path):
    _wheel(tmp_path / "w.whl")
    for most in ("0", "-5"):
        code, _, err = prepare(tmp_path / "w.whl", "--test", most)
        assert code == 1 and f"--test: give at least 1 question, not {most}" in err


def test_the_real_wheel_has_the_published_numbers(prepare, tmp_path):
    code, out, _ = prepare(wheel("easy_vqa-1.0"), "--train", "100")
    assert code == 0 and "9673 samples" in out
    assert len(samples(tmp_path / "out" / "train")) == 100


def test_a_start_that_was_cut_off_goes_on(prepare, tmp_path):
    """What is unpacked again is not taken for another input."""
    _wheel(tmp_path / "w.whl")
    whole = tmp_path / "out" / "train" / "dataset.json"
    whole.mkdir(parents=True)  # in the place of the last file that is written
    assert prepare(tmp_path / "w.whl")[0] == 1
    whole.rmdir()
    code, out, err = prepare(tmp_path / "w.whl")
    assert code == 0 and "anew" not in out + err and len(samples(whole.parent)) == 10
