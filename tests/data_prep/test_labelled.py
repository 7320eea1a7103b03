"""Food-101, MM-IMDb and SNLI-VE in their published layouts, as small stand-ins -> samples with classes."""

import json

import pytest
from making import picture
from prepared import here, keys, samples

from data_prep import folder, food101, mm_imdb, snli_ve


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Runs a converter into out/."""
    return lambda converter, *options: here(converter, monkeypatch, capsys, "--out", tmp_path / "out", *options)


def put(path, content: bytes | str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_food101(convert, tmp_path):
    for number, name in enumerate(("waffles/waffles_3.jpg", "apple_pie/apple_pie_0.jpg", "sushi/x.jpg")):
        put(tmp_path / "images" / "train" / name, picture(colour=(number, 0, 0)))
    titles = 'apple_pie_0.jpg,"Grandma\'s pie, with apples",apple_pie\nwaffles_3.jpg,Waffles,waffles\n'
    given = [
        "--images",
        tmp_path / "images" / "train",
        "--titles",
        put(tmp_path / "texts" / "train_titles.csv", titles),
    ]
    code, out, err = convert(food101, *given)
    assert (code, err) == (0, "") and out.startswith("2 samples")
    first, second = samples(tmp_path / "out")
    assert keys(tmp_path / "out") == ["apple_pie_0", "waffles_3"]
    assert (first.question, first.labels, first.several) == ("Grandma's pie, with apples", (0,), False)
    assert (second.labels, second.image, second.scores["class"]) == ((2,), picture(colour=(0, 0, 0)), "waffles")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("a.jpg,title", "train_titles.csv, line 1: has 2 columns, not image, title and class"),
        ("a.jpg,title,soup", "line 1: class 'soup' has no folder of images"),
    ],
)
def test_a_bad_line_of_food101_is_told_with_its_place(convert, tmp_path, line, part):
    put(tmp_path / "images" / "pie" / "a.jpg", picture())
    given = ["--images", tmp_path / "images", "--titles", put(tmp_path / "train_titles.csv", line)]
    code, _, err = convert(food101, *given)
    assert code == 1 and part in err


def _films(tmp_path, **films):
    for name, film in films.items():
        put(tmp_path / "dataset" / f"{name}.json", json.dumps(film))
        put(tmp_path / "dataset" / f"{name}.jpeg", picture())
    splits = {"train": list(films), "dev": [], "test": []}
    return ["--films", tmp_path / "dataset", "--splits", put(tmp_path / "split.json", json.dumps(splits))]


def test_mm_imdb(convert, tmp_path):
    wars = {"plot": ["Short.", "A longer plot."], "genres": ["Sci-Fi", "Action", "News"], "title": "Star"}
    given = _films(tmp_path, t0076759=wars, t1={"plot": ["P."], "genres": ["Adult"]})
    code, _, err = convert(mm_imdb, *given, "--split", "train")
    assert (code, err) == (0, "")
    first, second = samples(tmp_path / "out")
    assert (first.question, first.labels, first.several) == ("A longer plot.", (0, 17), True)
    assert second.labels == () and first.image == picture()
    assert len(mm_imdb.GENRES) == 23 and list(mm_imdb.GENRES) == sorted(mm_imdb.GENRES)


@pytest.mark.parametrize(
    ("film", "part"),
    [
        ({"plot": ["P."], "genres": ["Opera"]}, "t1.json: genre 'Opera' is not one of the 27 published"),
        ({"plot": ["P."]}, "t1.json: has no 'genres'"),
        ({"plot": [], "genres": ["War"]}, "t1.json: has no question"),
    ],
)
def test_a_bad_film_is_told_with_its_place(convert, tmp_path, film, part):
    code, _, err = convert(mm_imdb, *_films(tmp_path, t1=film), "--split", "train")
    assert code == 1 and part in err


def test_a_split_that_is_not_there(convert, tmp_path):
    code, _, err = convert(mm_imdb, *_films(tmp_path), "--split", "val")
    assert code == 1 and "has no split 'val', but train, dev, test" in err


def _pair(**changed):
    pair = {"Flickr30K_ID": "47", "pairID": "47.jpg#2r1n", "sentence1": "Two women.", "sentence2": "They sleep."}
    return json.dumps({**pair, "gold_label": "contradiction", **changed})


def test_snli_ve(convert, tmp_path):
    put(tmp_path / "images" / "47.jpg", picture())
    lines = "\n".join([_pair(), _pair(pairID="47.jpg#2r1e", gold_label="entailment")])
    given = ["--images", tmp_path / "images", "--pairs", put(tmp_path / "snli_ve_train.jsonl", lines)]
    assert convert(snli_ve, *given)[0] == 0
    first, second = samples(tmp_path / "out")
    assert (first.question, first.labels, first.image) == ("They sleep.", (2,), picture())
    assert second.labels == (0,) and "Two women." not in str(first)


def test_a_pair_without_a_gold_label_is_told_with_its_place(convert, tmp_path):
    pairs = put(tmp_path / "pairs.jsonl", _pair(gold_label="-"))
    code, _, err = convert(snli_ve, "--images", tmp_path, "--pairs", pairs)
    assert code == 1 and "pairs.jsonl, line 1: gold_label '-' is none of entailment, neutral, contradiction" in err


def test_any_rows_with_label_or_labels(convert, tmp_path):
    rows = [{"question": "a", "label": 3}, {"question": "b", "labels": [2, 0]}]
    path = put(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, rows)))
    assert convert(folder, "--images", tmp_path, "--rows", path)[0] == 0
    assert [(s.labels, s.several) for s in samples(tmp_path / "out")] == [((3,), False), ((2, 0), True)]


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"label": -1}, "label is not the number of a class"),
        ({"label": True}, "label is not the number of a class"),
        ({"labels": 3}, "labels no list of such numbers"),
        ({"labels": [1, 1]}, "names a class twice"),
        ({"label": 1, "labels": [1]}, "has both label and labels"),
        ({"label": 1, "answer": "yes"}, "has both an answer and a class"),
    ],
)
def test_a_row_whose_class_cannot_be_used_is_told_with_its_place(convert, tmp_path, row, part):
    path = put(tmp_path / "rows.jsonl", json.dumps({"question": "a", **row}))
    code, _, err = convert(folder, "--images", tmp_path, "--rows", path)
    assert code == 1 and "rows.jsonl, line 1: " in err and part in err
