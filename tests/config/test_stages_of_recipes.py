"""What a recipe says of a method's stages: read, checked, written down."""

import pytest
import torch
import yaml

from dsmemvp.cli.main import main
from dsmemvp.config.methods import method_names, method_settings
from dsmemvp.config.reading import as_dict, read_recipe, recipe_of
from dsmemvp.config.stages import check_stage, stage_recipe
from dsmemvp.errors import UserError
from dsmemvp.prompts import Sizes, build_method

STAGES = """
training: {epochs: 3, warmup_epochs: 0, learning_rate: 1e-3}
data: {train: all}
stages:
  text: {data: {train: [a, b], passes: [1, 0.5]}, training: {epochs: 5, learning_rate: 1e-4}}
  align: {start_from: runs/other, training: {global_batch: 64}}
"""


@pytest.fixture
def read(tmp_path):
    def read(text: str, *overrides: str):
        path = tmp_path / "recipe.yaml"
        path.write_text("name: test\nmethod: {name: pformer}\n" + text)
        return read_recipe(path, overrides)

    return read


def test_a_stage_has_its_own_values_and_the_runs_otherwise(read):
    recipe = read(STAGES, "stages.align.training.micro_batch=2")
    text, align, other = (stage_recipe(recipe, name) for name in ("text", "align", "generate"))
    assert (text.data.train, text.data.passes, text.training.epochs) == (["a", "b"], [1.0, 0.5], 5)
    assert (text.training.learning_rate, text.training.global_batch) == (1e-4, recipe.training.global_batch)
    assert (align.data.train, align.training.epochs, align.training.global_batch) == (["all"], 3, 64)
    assert align.training.micro_batch == 2 and recipe.stages["align"]["start_from"] == "runs/other"
    assert other == recipe
    assert recipe_of(as_dict(recipe), "stored") == recipe
    assert read(yaml.safe_dump({k: v for k, v in as_dict(recipe).items() if k not in ("name", "method")})) == recipe


def test_a_recipe_without_stages_is_written_down_as_before(read):
    for text in ("", "stages:", "stages: {}"):
        assert "stages" not in as_dict(read(text))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("stages: 3", ["line 3", "stages is a group of keys, such as stages.NAME.training.epochs"]),
        ("stages: {text: 3}", ["line 3", "stages.text is a group of keys, such as stages.text.training.epochs"]),
        ("stages:\n  text: {training: {epoch: 3}}", ["line 4", "did you mean 'stages.text.training.epochs'?"]),
        ("stages: {text: {epochs: 3}}", ["did you mean 'stages.text.training.epochs'?"]),
        ("stages: {text: {model: {dtype: fp32}}}", ["unknown key 'stages.text.model.dtype'"]),
        ("stages: {text: {training: {log_every: 3}}}", ["unknown key 'stages.text.training.log_every'"]),
        ("stages: {text: {training: {epochs: 0}}}", ["stages.text.training.epochs: must be above 0"]),
        ("stages: {text: {data: {train: 7}}}", ["stages.text.data.train: must be a list, not 7"]),
        ("stages: {text: {start_from: 7}}", ["stages.text.start_from: must be the path"]),
        (
            "stages: {text: {training: {epochs: 1}}}",
            ["stages.text: training.warmup_epochs: 2.0 is more than training.epochs = 1"],
        ),
        ("stages: {text: {training: {global_batch: 2}}}", ["stages.text: training.micro_batch: 4 is more than"]),
    ],
)
def test_mistakes_are_told_with_place_and_key(read, text, parts):
    with pytest.raises(UserError) as caught:
        read(text)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("genrate", "pformer", "stages.genrate: method pformer has no such stage; did you mean 'generate'?"),
        ("7", "pformer", "its stages are text, align, generate, finetune"),
        ("generate", "memvp", "stages.generate: method memvp has no such stage; its stages are train"),
    ],
)
def test_a_stage_that_the_method_does_not_have_is_refused_by_every_command(tmp_path, capsys, name, method, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: test\nmethod: {{name: {method}}}\nstages: {{{name}: {{training: {{global_batch: 64}}}}}}\n")
    for command in ("recipe", "count", "evaluate", "train"):
        assert main([command, str(path)]) == 1
        error = capsys.readouterr().err
        assert f"{path}: stages.{name}" in error and message in error and error.count("\n") == 1, error


def test_a_stage_that_other_settings_would_add_is_passed_over(read):
    recipe = read(STAGES, "method.stages=[align]")
    assert recipe.method.stage_names() == ("align",) and set(recipe.stages) == {"text", "align"}
    for name, wanted in (("text", "its stages are align"), ("algn", "did you mean 'align'")):
        with pytest.raises(UserError, match=f"--stage: the method has no stage '{name}'; {wanted}"):
            check_stage(recipe, name)
    check_stage(recipe, "align")
    check_stage(recipe, "")


@pytest.mark.parametrize("name", method_names())
def test_the_settings_of_every_method_give_the_names_of_its_stages(name):
    settings = method_settings(name, **({"classes": 3} if name == "mitp_encoders" else {}))
    with torch.device("meta"):
        method = build_method(settings, Sizes(9, 32, 32, 12, 12))
    assert tuple(stage.name for stage in method.stages()) == settings.stage_names()
    assert set(settings.stage_names()) <= set(settings.known_stages())
