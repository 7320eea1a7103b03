"""`dsmemvp data show` and `dsmemvp data check`: what they print is what a run will see."""

import re
import shutil

import pytest
from making import as_json, fields, good_shards, manifest_of, picture, write_tar
from PIL import Image

from dsmemvp.cli import main as cli
from dsmemvp.data.index import index_shard
from dsmemvp.data.manifest import read_manifest, write_manifest
from dsmemvp.data.order import Order, Source
from dsmemvp.data.sample import EncodedSample, read_sample
from dsmemvp.data.stream import read_all
from dsmemvp.data.text import prompt_text, target_text


@pytest.fixture
def data(capsys, recipe_path, tmp_path):
    def data(look, *arguments):
        code = cli.main(["data", look, str(recipe_path), *map(str, arguments)])
        return code, *capsys.readouterr()

    return data


def test_show_prints_the_first_samples_of_the_run_with_the_supervised_part_marked(data, demo_shards, tmp_path):
    sheet = tmp_path / "sheet.png"
    code, out, _ = data("show", "--samples", 6, "--sheet", sheet)
    assert code == 0
    manifest = read_manifest(demo_shards)
    read = [read_sample(entry) for entry in read_all(manifest) if isinstance(entry, EncodedSample)]
    order = Order([Source(manifest.counts)], 0, 16, 8)
    numbers = [12 * place.shard + place.sample for place in order.batch(0)[:6]]
    for number in numbers:
        expected = f"<s>{prompt_text(read[number], False)}[[{target_text(read[number])}</s>]]"
        assert f"--- {number}: {read[number].where}: " in out and expected in out
    pictures = sum(read[number].image is not None for number in numbers)
    assert f"{pictures} pictures -> {sheet}" in out
    with Image.open(sheet) as image:
        columns, rows = min(4, pictures), -(-pictures // 4)
        assert image.width == 224 * columns + 8 * (columns - 1) and image.height >= (224 + 3 * 16) * rows


def test_show_prints_samples_by_number_and_those_of_the_test_split(data, demo_shards, tmp_path):
    sheet = tmp_path / "sheet.png"
    _, out, _ = data("show", "--numbers", 47, 0, "--sheet", sheet)
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("---")] == ["--- 47", "--- 0"]
    _, out, _ = data("show", "--test", "--samples", 3, "--sheet", sheet)
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("---")] == ["--- 0", "--- 1", "--- 2"]
    code, _, err = data("show", "--numbers", 48)
    assert code == 1 and "there is no sample 48, they run from 0 to 47" in err


def test_the_sheet_shows_the_picture_as_the_tower_gets_it(data, tmp_path):
    write_tar(tmp_path / "s" / "x.tar", [("a.json", as_json(fields())), ("a.png", picture(colour=(250, 20, 90)))])
    cli.main(["index", str(tmp_path / "s")])
    _, out, _ = data(
        "show", "--sheet", tmp_path / "sheet.png", f"data.train={tmp_path / 's'}", "data.last_batch=repeat"
    )
    assert "1 picture ->" in out
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.getpixel((100, 120)) == (250, 20, 90)


@pytest.mark.parametrize(
    "changed", [{"question": "Which else?"}, {"answer": 1}, {"choices": None, "answer": "x" * 400}]
)
def test_the_sheet_has_question_and_right_answer_under_every_picture(data, tmp_path, changed):
    sheets = []
    for name, row in (("one", fields()), ("two", fields(**changed))):
        write_tar(tmp_path / name / "x.tar", [("a.json", as_json(row)), ("a.png", picture())])
        cli.main(["index", str(tmp_path / name)])
        settings = [f"data.train={tmp_path / name}", "data.last_batch=repeat", "data.max_length=2000"]
        data("show", "--sheet", tmp_path / f"{name}.png", *settings)
        sheets.append(Image.open(tmp_path / f"{name}.png").convert("L"))
    one, two = sheets
    above, below = (0, 0, 224, 16 + 224), (0, 16 + 224, 224, one.height)
    assert one.width == two.width == 224 and one.crop(above) == two.crop(above)
    assert min(one.crop(below).getdata()) < 128 and one.crop(below) != two.crop(below)
    assert two.height <= 16 + 224 + 6 * 16 + 8  # long texts are cut


def test_places_of_a_picture_in_the_text_and_a_cut_context_are_shown(data, tmp_path):
    row = fields(context="very long indeed " * 100)
    write_tar(tmp_path / "s" / "x.tar", [("a.json", as_json(row)), ("a.png", picture())])
    cli.main(["index", str(tmp_path / "s")])
    settings = [f"data.train={tmp_path / 's'}", "data.last_batch=repeat", "method.name=input_space"]
    _, out, _ = data("show", "--sheet", tmp_path / "sheet.png", *settings)
    assert "<s>[16 places of the picture]Question:" in out and "context cut" in out


def test_check_counts_what_there_is(data, demo_shards):
    code, out, _ = data("check", "--ranks", 2)
    assert code == 0
    assert f"train: {demo_shards}: 48 samples, 24 with a picture (48 scienceqa)" in out
    assert "4 shards of 12 to 12 samples" in out and "0 contexts are cut" in out
    assert "epoch: 48 samples, 6 global batches of 8; 0 left out" in out
    assert "balanced over 2 ranks in 2 micro-steps: the slowest rank computes 1." in out


def test_check_tells_the_shares_of_a_mixture(data, demo_shards):
    _, out, _ = data("check", f"data.train=[{demo_shards}, {demo_shards}]", "data.passes=[1, 0.5]", "data.test=")
    assert "48 samples of it in an epoch (1.0 passes), 66.7%" in out
    assert "24 samples of it in an epoch (0.5 passes), 33.3%" in out
    assert "epoch: 72 samples, 9 global batches" in out and "test:" not in out


def test_check_names_what_would_be_left_out_and_fails_where_a_run_would(data, demo_shards, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(demo_shards, folder)
    members = [
        ("a.json", as_json(fields())),
        ("a.png", b"no picture"),
        ("b.json", b"{"),
        ("c.json", as_json(fields(1))),
    ]
    write_tar(folder / "000002.tar", members)
    manifest = read_manifest(demo_shards)
    line = index_shard(folder / "000002.tar")
    write_manifest(type(manifest)(folder, "train", (*manifest.shards[:2], line, manifest.shards[3])))
    for setting, expected in (("fail", 1), ("skip", 0)):
        code, out, err = data("check", f"data.train={folder}", "data.test=", f"data.on_bad_sample={setting}")
        assert code == expected
        assert "2 samples cannot be used:" in out
        assert "sample a: image cannot be decoded" in out and "sample b: json member cannot be read" in out
        assert ("dsmemvp data check: error: 2 samples cannot be used" in err) == (expected == 1)


def test_what_ends_a_run_at_its_start_ends_a_check(data, tmp_path):
    assert "does not exist" in data("check", f"data.train={tmp_path / 'none'}")[2]
    assert "is more than the 48 samples" in data("check", "training.global_batch=64", "training.micro_batch=64")[2]
    assert "samples cannot be shared by 99 ranks" in data("check", "--ranks", 99)[2]


LONG = " ".join(f"word{i}" for i in range(60))


@pytest.fixture
def too_long(tmp_path):
    """Four samples of which the second is too long for 160 tokens, with any context; the third is cut."""
    rows = [fields(0), fields(1, question=LONG), fields(2, context=LONG), fields(3)]
    members = [(f"s{i}.json", as_json(row)) for i, row in enumerate(rows)]
    manifest_of(write_tar(tmp_path / "long" / "000000.tar", members))
    return tmp_path / "long"


def test_check_names_the_length_that_a_sample_needs(data, too_long):
    settings = [f"data.train={too_long}", "data.test=", "training.global_batch=2"]
    code, out, _ = data("check", *settings)
    assert code == 1 and "question and options alone are longer than data.max_length = 160 tokens; it needs" in out
    needed = int(re.search(r"000000\.tar, sample s1: .* it needs data\.max_length=(\d+)", out)[1])
    assert f"1 sample is longer than data.max_length = 160 without any context; data.max_length={needed} would" in out
    assert data("check", *settings, f"data.max_length={needed - 1}")[0] == 1
    code, out, _ = data("check", *settings, f"data.max_length={needed}")
    assert code == 0 and "longer than" not in out and "skipped" not in out


def test_check_takes_skipped_samples_out_of_the_epoch(data, demo_shards, too_long):
    settings = ["data.on_bad_sample=skip", "data.test=", "training.global_batch=2"]
    code, out, _ = data("check", *settings, f"data.train={too_long}")
    assert code == 0 and "epoch: 4 samples, 2 global batches of 2; 0 left out" in out
    assert "  1 of these samples cannot be used and are skipped, which leaves 3; a skipped sample keeps its" in out
    mixed = [f"data.train=[{demo_shards}, {too_long}]", "data.passes=[1, 2]"]
    assert "  2 of these samples cannot be used and are skipped, which leaves 54" in data("check", *settings, *mixed)[1]
    mixed[1] = "data.passes=[1, 0.5]"
    assert "  about 0.5 of these samples" in data("check", *settings, *mixed)[1]


def test_a_test_sample_needs_no_room_for_its_answer(data, too_long, tmp_path):
    """An evaluation reads it to where the answer begins."""
    settings = ["data.train=[]", f"data.test={too_long}"]
    needed = int(re.search(r"it needs data\.max_length=(\d+)", data("check", *settings)[1])[1])
    code, _, _ = data("check", *settings, f"data.max_length={needed}")
    assert code == 0
    trained = ["data.test=", f"data.train={too_long}", "training.global_batch=2"]
    assert data("check", *trained, f"data.max_length={needed}")[0] == 1


def test_check_tells_how_long_answers_are_against_the_limits_of_an_evaluation(data, tmp_path, tokenizer):
    answers = ["red", "a red circle and a blue square", "no"]
    rows = [fields(i, choices=None, answer=answer) for i, answer in enumerate(answers)]
    rows.append(fields(3, choices=None, answer="a circle", task="caption"))
    manifest_of(write_tar(tmp_path / "open" / "0.tar", [(f"s{i}.json", as_json(row)) for i, row in enumerate(rows)]))
    whole = len(tokenizer.encode(f"The answer is {answers[1]}.")) - len(tokenizer.encode("The answer is"))
    settings = [f"data.test={tmp_path / 'open'}", "data.train=[]"]
    _, out, _ = data("check", *settings, f"evaluation.max_new_tokens={whole - 1}", "evaluation.caption_tokens=1")
    assert f" to {whole}, 99 % up to {whole} tokens; evaluation.max_new_tokens = {whole - 1}" in out
    assert f"warning: 1 of 3 answers are longer than evaluation.max_new_tokens = {whole - 1}" in out
    assert f"evaluation.max_new_tokens={whole} takes all" in out and "warning: 1 of 1 captions are longer than" in out
    assert "warning" not in data("check", *settings, f"evaluation.max_new_tokens={whole}")[1]


def test_multiple_choice_of_anybody_is_called_so(data, tmp_path):
    """Also in shards that were written when all of it was called scienceqa."""
    plain = {"task": "scienceqa", "subject": None, "grade": None}
    rows = [fields(0, **plain), fields(1, task="scienceqa"), fields(2, **plain), fields(3, choices=None, answer="red")]
    manifest_of(write_tar(tmp_path / "own" / "0.tar", [(f"s{i}.json", as_json(row)) for i, row in enumerate(rows)]))
    _, out, _ = data("check", f"data.test={tmp_path / 'own'}", "data.train=[]")
    assert "(2 multiple choice, 1 scienceqa, 1 open answer)" in out


def test_check_looks_at_the_validation_data(data, demo_shards, too_long):
    code, out, _ = data("check", "data.test=", f"data.validation={too_long}")
    assert code == 1 and f"validation: {too_long}: 4 samples" in out and "1 sample cannot be used" in out


def test_check_reads_what_a_search_scores_on(data, demo_shards, tmp_path):
    good_shards(tmp_path / "search", 6)
    code, out, _ = data("check", f"data.search={tmp_path / 'search'}")
    assert code == 0 and "search: 6 samples" in out
    assert "data.search: has the samples of" in data("check", f"data.search={demo_shards}")[2]


@pytest.mark.parametrize("name", ["sheet", "sheet.pictures"])
def test_a_sheet_of_no_picture_s_ending_is_refused_at_once(data, tmp_path, name):
    code, out, err = data("show", "--sheet", tmp_path / name)
    assert code == 1 and out == "" and f"--sheet: {tmp_path / name} must end in one of .png" in err
