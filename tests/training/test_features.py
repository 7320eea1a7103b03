"""vision.cache_features: the losses of training on pixels, without a tower; features are computed once, checked, shared
by ranks, and refused where they follow from something else."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from faulty import numbers, run

NAME = "features"


class Case:
    """The tiny recipe without adapters, on shards of its own beside which a run may write."""

    def __init__(self, recipe_path: Path, shards: Path, folder: Path):
        self.folder, self.data = folder, folder / "data"
        shutil.copytree(shards, self.data)
        self._recipe = yaml.safe_load(recipe_path.read_text())
        self._recipe["vision"] = {"adapter_dim": 0}
        self._recipe["data"] |= {"train": str(self.data), "validation": str(self.data)}
        self._recipe["method"]["dropout"] = 0.1
        self._recipe["training"]["epochs"] = 1

    def start(self, name: str, *overrides: str, ranks: int = 1):
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(self._recipe))
        given = ["train", str(path), f"name={name}", *overrides]
        return run(given, self.folder / f"logs-{name}", ranks=ranks)

    def train(self, name: str, *overrides: str, ranks: int = 1) -> dict[str, dict[int, float]]:
        done = self.start(name, *overrides, ranks=ranks)
        assert set(done.codes) == {0}, done.text
        return {what: numbers(self.folder / "runs" / name, what) for what in ("loss/train", "loss/validation")}

    def files(self) -> dict[str, int]:
        """Name -> time of the last change."""
        return {path.name: path.stat().st_mtime_ns for path in (self.data / NAME).iterdir()}


@pytest.fixture
def case(recipe_path, demo_shards, tmp_path) -> Case:
    return Case(recipe_path, demo_shards, tmp_path)


def test_losses_are_those_of_pixels_and_nothing_is_computed_twice(case, tiny_models, tmp_path):
    pixels = case.train("pixels", "training.micro_batch=8")
    cached = case.train("cached", "training.micro_batch=8", f"vision.cache_features={NAME}")
    assert cached == pixels and len(pixels["loss/train"]) == 6
    files = case.files()
    assert len(files) == 2 * 4
    (case.data / NAME / "000002.tar.json").unlink()  # as if a run had been cut off before its end
    again = case.train("again", "training.micro_batch=8", "data.workers=1", f"vision.cache_features={NAME}")
    assert again == cached
    changed = {name for name, time in case.files().items() if files[name] != time}
    assert {path.suffix for path in map(Path, changed)} == {".json", ".features"}
    assert all(name.startswith("000002.tar.") for name in changed) and len(changed) == 2


def test_two_ranks_share_the_work_and_agree_with_one(case):
    one = case.train("one", f"vision.cache_features={NAME}")
    shutil.rmtree(case.data / NAME)
    two = case.train("two", f"vision.cache_features={NAME}", ranks=2)
    assert len(case.files()) == 2 * 4
    for step, loss in one["loss/train"].items():
        assert two["loss/train"][step] == pytest.approx(loss, abs=1e-5)


def test_a_run_on_features_answers_about_pictures(case):
    """Evaluation runs the tower, and a run that was trained on pixels can continue on features."""
    case.train("run", "model.dtype=bf16", "training.stop_at_step=3")
    given = ["name=run", "model.dtype=bf16", f"vision.cache_features={NAME}", "evaluation.captions=[false]"]
    assert len(case.train("run", *given[1:])["loss/train"]) == 6
    done = run(["evaluate", str(case.folder / "recipe.yaml"), *given], case.folder / "logs-evaluate", ranks=1)
    assert done.codes == [0], done.text


def test_other_settings_and_damage_are_refused(case):
    case.train("first", f"vision.cache_features={NAME}")
    for override, why in {
        "vision.statistics=clip": "holds features of mean",
        "vision.resolution=16": "holds features of resolution 32 instead of 16, tokens 16 instead of 4",
        "model.dtype=bf16": "holds features of dtype 'fp32' instead of 'bf16'",
        "vision.adapter_dim=4": "features change while adapters are trained",
        "vision.cache_features=../x": "give a name that can be a folder",
        "vision.cache_features=000000.tar": f"vision.cache_features: {case.data}/000000.tar is not a folder",
    }.items():
        done = case.start("other", f"vision.cache_features={NAME}", override)
        assert done.codes == [1] and why in done.text and "Traceback" not in done.text, done.text
        assert "is damaged" not in done.text
    (rows,) = (case.data / NAME).glob("000000.tar.*.features")
    content = bytearray(rows.read_bytes())
    content[5::1000] = bytes(255 - b for b in content[5::1000])
    rows.write_bytes(content)
    done = case.start("damaged", f"vision.cache_features={NAME}")
    assert done.codes == [1] and f"{rows} is damaged" in done.text, done.text
    rows.write_bytes(content[:-1])
    done = case.start("short", f"vision.cache_features={NAME}")
    assert done.codes == [1] and "has not the" in done.text, done.text


def test_another_tower_is_refused(case, tiny_models):
    from safetensors.torch import load_file, save_file

    case.train("first", f"vision.cache_features={NAME}")
    other = case.folder / "tower"
    shutil.copytree(tiny_models / "vision_tower", other)
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.0.mlp.fc1.weight"))
    tensors[name] = tensors[name] + 0.5
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    done = case.start("other", f"vision.cache_features={NAME}", f"model.vision_tower={other}")
    assert done.codes == [1] and "holds features of another vision tower; remove that folder" in done.text, done.text


def test_a_method_that_acts_in_the_tower_is_refused(case):
    case._recipe["method"] = {"name": "mitp"}
    done = case.start("mitp", f"vision.cache_features={NAME}", "training.recompute=none")
    assert done.codes == [1] and "method mitp acts inside of the vision tower" in done.text, done.text


def test_an_image_that_cannot_be_decoded_is_left_out_as_without(case, tmp_path):
    from data_prep.shards import Row, write_shards

    rows = [
        Row(f"r{i}", {"question": f"Which is {i}?", "choices": ["a", "b"], "answer": 0}, _png(i)) for i in range(16)
    ]
    rows[3] = Row("r3", rows[3].fields, b"no picture")
    shutil.rmtree(case.data)
    write_shards(rows, case.data, "train", per_shard=8)
    given = ["data.on_bad_sample=skip", "data.validation="]
    pixels = case.start("pixels", *given)
    cached = case.start("cached", f"vision.cache_features={NAME}", *given)
    assert pixels.codes == cached.codes == [0], cached.text
    skipped = [(case.folder / "runs" / name / "skipped.jsonl").read_text() for name in ("pixels", "cached")]
    assert skipped[0] == skipped[1] and "cannot be decoded" in skipped[0]
    assert len(json.loads((case.data / NAME / "000000.tar.json").read_text())["images"]) == 7


def _png(number: int) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (32, 32), (number * 9, 80, 20)).save(out, "PNG")
    return out.getvalue()
