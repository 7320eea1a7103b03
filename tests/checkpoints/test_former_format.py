"""What users hold from earlier versions: a checkpoint and an exported folder of the format before methods had settings
of their own (tests/golden/README.md) are read, compared and refused as those of today."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dsmemvp.backbones.fingerprint import fingerprint
from dsmemvp.backbones.weights import Base
from dsmemvp.checkpoints.checkpoint import read_checkpoint
from dsmemvp.checkpoints.choosing import newest_checkpoint
from dsmemvp.checkpoints.loading import load_run
from dsmemvp.config.reading import as_dict, read_recipe
from dsmemvp.data.datasets import open_training_data
from dsmemvp.errors import UserError
from dsmemvp.export.export import export

GOLDEN = Path("tests/golden")
RUN = GOLDEN / "checkpoint-v5"
MEMVP = {"name", "hidden", "slots", "visual_scale", "output_scale", "dropout", "class_token", "scores"}
BASE = [
    f"model.{key}={GOLDEN}/base/{name}"
    for key, name in (
        ("language_model", "language_model"),
        ("vision_tower", "vision_tower"),
        ("tokenizer", "tokenizer.model"),
    )
]


@pytest.fixture(autouse=True)
def _at_the_root(repository, monkeypatch):
    """Paths in the stored recipe are relative to it."""
    monkeypatch.chdir(repository)


def test_it_holds_the_keys_of_all_methods_and_is_read_by_those_of_its_own():
    found, complaints = newest_checkpoint(RUN)
    assert found is not None and not complaints and {"slots", "lora_rank"} <= found.state.recipe["method"].keys()
    recipe, opened, _ = load_run(RUN)
    assert recipe == read_recipe(f"{GOLDEN}/base/recipe.yaml", ["training.stop_at_step=4", "training.recompute=none"])
    assert as_dict(recipe)["method"].keys() == MEMVP
    assert (opened.state.step, opened.state.epoch, recipe.method.slots) == (4, 2, 6)


def test_a_run_may_resume_from_it():
    recipe = read_recipe(f"{GOLDEN}/base/recipe.yaml")
    found, _ = newest_checkpoint(RUN)
    assert found is not None
    found.check_method(as_dict(recipe))
    found.check_order(open_training_data(recipe).identity)
    found.check_base(fingerprint(Base(recipe)))
    shapes = {name: tuple(t.shape) for name, t in load_file(found.trained).items()}
    assert len(found.values(shapes)) == len(shapes) and len(found.moments(shapes)) == 2 * len(shapes)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.slots=7", r"^method\.slots: is 7, but .* was trained with 6"),
        ("method.output_scale=2", r"^method\.output_scale: is 2\.0, but .* was trained with 1\.0"),
        ("method.name=input_space", r"^method\.name: is input_space, but .* was trained with memvp"),
        ("vision.adapter_dim=3", r"^vision\.adapter_dim: is 3, but .* was trained with 2"),
    ],
)
@pytest.mark.parametrize("folder", [RUN, GOLDEN / "export-v2"])
def test_another_setting_of_its_method_is_refused(folder, override, message):
    with pytest.raises(UserError, match=message):
        load_run(folder, [*BASE, override])


def test_an_exported_folder_is_opened_onto_its_base():
    recipe, found, _ = load_run(GOLDEN / "export-v2", BASE)
    assert recipe.method == read_recipe(f"{GOLDEN}/base/recipe.yaml").method
    shapes = {name: tuple(t.shape) for name, t in load_file(found.trained).items()}
    assert found.values(shapes).keys() == shapes.keys()
    with pytest.raises(UserError, match=r"^model\.tokenizer: .* goes with a copy of its base"):
        load_run(GOLDEN / "export-v2", BASE[:2])


def test_what_is_exported_from_it_holds_its_own_settings_alone(tmp_path):
    run = shutil.copytree(RUN, tmp_path / "run")
    export(run, tmp_path / "out")
    known = read_checkpoint(GOLDEN / "export-v2")
    found = read_checkpoint(tmp_path / "out")
    assert found.state.base == known.state.base
    assert found.trained.read_bytes() == known.trained.read_bytes()
    recipe, *_ = load_run(tmp_path / "out", BASE)
    assert recipe.method == load_run(RUN)[0].method
