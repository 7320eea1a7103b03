"""A leak that was planted is found; pictures are told apart by their pixels."""

import io
import random
import shutil
from dataclasses import replace

import pytest
from PIL import Image, ImageEnhance
from safetensors.torch import load_file, save_file

from data_prep.demo import sample
from data_prep.shards import write_shards
from dsmemvp.comparison import guards
from dsmemvp.comparison.content import content_of, near_duplicates
from dsmemvp.comparison.guards import check_study
from dsmemvp.comparison.running import check_data, write_study
from dsmemvp.comparison.study import read_study
from dsmemvp.data.manifest import read_manifest
from dsmemvp.errors import UserError


def _rows(seed, first, number):
    rng = random.Random(seed)
    return [sample(rng, f"{seed}{i:03d}", with_picture=True) for i in range(first, first + number)]


@pytest.fixture
def study_path(recipe_path, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(f"recipe: {recipe_path}\ncontenders: {{memvp: {{}}, none: {{method: {{name: none}}}}}}\n")
    return path


def _study(path, tmp_path, train, test, *more):
    for name, rows in (("train", train), ("test", test)):
        write_shards(iter(rows), tmp_path / name, name, per_shard=8)
    return read_study(path, tmp_path / "out", [*_folders(tmp_path), *more])


def _folders(tmp_path):
    return [f"data.train={tmp_path / 'train'}", f"data.test={tmp_path / 'test'}"]


def test_a_planted_leak_is_refused_with_its_place_or_reported(study_path, tmp_path):
    train, test = _rows("train", 0, 12), _rows("test", 0, 6)
    study = _study(study_path, tmp_path, train, [*test, train[5]])
    with pytest.raises(UserError, match=r"1 test sample of 7 also in the data of training.* train005, which is .*005$"):
        check_study(study, tmp_path / "out")
    study.settings.leaks = "report"
    assert any(r.startswith("1 test sample of 7 also") for r in check_study(study, tmp_path / "out").remarks)


def test_pictures_in_another_format_are_the_same_and_brighter_ones_nearly(study_path, tmp_path):
    def again(row, change):
        image = change(Image.open(io.BytesIO(row.image)))
        into = io.BytesIO()
        image.save(into, "BMP")
        fields = {**row.fields, "question": "Another question?"}
        return replace(row, fields=fields, image=into.getvalue(), ending="bmp")

    train = _rows("train", 0, 8)
    test = [again(train[0], lambda i: i), again(train[1], lambda i: ImageEnhance.Brightness(i).enhance(0.9))]
    remarks = check_study(_study(study_path, tmp_path, train, test), tmp_path / "out").remarks
    assert remarks[0].startswith("None of 2 different test samples")
    assert remarks[1].startswith("1 picture of 2 in the test data") and "2 nearly so" in remarks[1]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_damaged_picture_ends_a_study_before_its_hours_unless_it_may_be_skipped(split, study_path, tmp_path):
    rows = {"train": _rows("train", 0, 12), "test": _rows("test", 0, 4)}
    rows[split][1] = replace(rows[split][1], image=rows[split][1].image[:40])
    study = _study(study_path, tmp_path, rows["train"], rows["test"])
    for _ in range(2):  # as hashed now, and as kept
        with pytest.raises(UserError, match=rf"{split}/000000.tar, sample {split}001: image cannot be.*=skip$"):
            check_study(study, tmp_path / "out")
    study = read_study(study_path, tmp_path / "out", ["data.on_bad_sample=skip", *_folders(tmp_path)])
    left = 3 if split == "test" else 4
    assert check_study(study, tmp_path / "out").remarks[0].startswith(f"None of {left}")


def test_a_contender_that_cannot_train_on_features_ends_a_study_at_once(study_path, tmp_path):
    text = study_path.read_text().replace("memvp: {}", "mitp: {method: {name: mitp}}")
    study_path.write_text(text + "set: {vision: {adapter_dim: 0, cache_features: features}}\n")
    study = _study(study_path, tmp_path, _rows("train", 0, 8), _rows("test", 0, 3))
    with pytest.raises(UserError, match=r"^contender mitp: vision\.cache_features: method mitp acts inside"):
        check_study(study, tmp_path / "out")


def test_settings_in_which_contenders_differ_are_said_unless_they_are_tuned(study_path, tmp_path):
    own = "b: {method: {hidden: 8}, training: {learning_rate: 0.5, weight_decay: 0.25}}"
    tune = "tune: {training.weight_decay: [0.1, 0.2]}\nset: {data.validation: VALIDATION}\n"
    study_path.write_text(study_path.read_text().replace("none:", f"{own}, none:") + tune)
    write_shards(iter(_rows("validation", 0, 3)), tmp_path / "validation", "validation", per_shard=8)
    study_path.write_text(study_path.read_text().replace("VALIDATION", str(tmp_path / "validation")))
    study = _study(study_path, tmp_path, _rows("train", 0, 8), _rows("test", 0, 3), "data.max_length=400")
    said = [remark for remark in check_study(study, tmp_path / "out").remarks if "differs" in remark]
    rate = study.contenders[0].recipe.training.learning_rate
    assert said == [f"training.learning_rate differs: {rate} (memvp), 0.5 (b)"]


def test_a_base_that_was_exchanged_is_noticed(study_path, tmp_path):
    study = _study(study_path, tmp_path, _rows("train", 0, 8), _rows("test", 0, 3))
    known = check_study(study, tmp_path / "out").data
    assert known.keys() > {"model.language_model", "model.vision_tower", "model.tokenizer"}
    write_study(study, tmp_path / "out", known)
    model = study.contenders[0].recipe.model
    tensors = load_file(f"{model.vision_tower}/model.safetensors")
    tensors = {name: tensor + 1 for name, tensor in tensors.items()}
    other = tmp_path / "other"
    shutil.copytree(model.vision_tower, other)
    save_file(tensors, other / "model.safetensors")
    model.vision_tower = str(other)
    now = check_study(study, tmp_path / "out").data
    with pytest.raises(
        UserError, match=r"^model\.vision_tower: holds another model than when .*study\.json was written"
    ):
        check_data(now, tmp_path / "out")
    assert {key for key in known if known[key] != now[key]} == {"model.vision_tower"}


def test_near_is_two_bits_of_64():
    assert near_duplicates([0b0, 0b1111], [0b11, 1 << 63]) == 2
    assert near_duplicates([0b111000], [0b0]) == 0
    assert near_duplicates([], [1]) == 0


def test_content_is_counted_once_and_computed_once(tmp_path):
    rows = _rows("train", 0, 20)
    write_shards(iter([*rows, *rows[:4]]), tmp_path / "train", "train", per_shard=8)
    manifest = read_manifest(tmp_path / "train")
    content = content_of([manifest] * 2, 10**6, tmp_path / "content", begin=0.5)
    assert len(content.samples) == len(content.pictures) == 20
    (damaged, *_) = (tmp_path / "content").iterdir()
    for shard in manifest.shards:
        (tmp_path / "train" / shard.name).rename(tmp_path / shard.name)
    assert content_of([manifest] * 2, 10**6, tmp_path / "content") == content  # without a look at the shards
    for content_now in ('{"samples": [', "{}", "[]"):
        damaged.write_text(content_now)
        with pytest.raises(OSError, match="tar"):
            content_of([manifest], 10**6, tmp_path / "content")
    for shard in manifest.shards:
        (tmp_path / shard.name).rename(tmp_path / "train" / shard.name)
    assert content_of([manifest] * 2, 10**6, tmp_path / "content") == content


def test_a_sample_that_one_contender_cannot_be_asked_is_named(study_path, tmp_path, monkeypatch):
    """Contenders of one recipe are asked alike: one of them is made to leave the third sample out."""
    study = _study(study_path, tmp_path, _rows("train", 0, 8), _rows("test", 0, 6))
    asked = guards.prompts_of

    def all_but_one(contender, samples):
        found = asked(contender, samples)
        return [None if i == 2 and contender.name == "none" else own for i, own in enumerate(found)]

    monkeypatch.setattr(guards, "prompts_of", all_but_one)
    with pytest.raises(UserError, match=r"test002: contenders memvp and none: only memvp can be asked this"):
        check_study(study, tmp_path / "out")


def test_samples_that_cannot_be_used_are_left_to_training_and_evaluation(study_path, tmp_path):
    """A damaged picture, and a question over data.max_length."""
    train, test = _rows("train", 0, 8), _rows("test", 0, 6)
    test[1] = replace(test[1], image=test[1].image[:40])
    test[2] = replace(test[2], fields={**test[2].fields, "question": "word " * 3000})
    study = _study(study_path, tmp_path, train, test, "data.on_bad_sample=skip")
    checked = check_study(study, tmp_path / "out")
    assert checked.remarks[0].startswith("None of 5 different test samples") and 20 < checked.prompt_tokens < 200
