"""A run with MITP from training to the model card, on the tests' own data: every second sample has an image."""

import json
import re

import pytest
from launch import run_on_ranks
from making import picture

from dsmemvp.backbones.weights import read_configs
from dsmemvp.cli.main import main
from dsmemvp.config.reading import read_recipe
from dsmemvp.stages import count

MODULE = ["--module", "dsmemvp"]
MITP = ["method.name=mitp", "method.rank=8", "method.prompt_len=3"]


@pytest.fixture
def recipe(recipe_path, repository):
    """Its method in the file, as a user's would be."""
    text = re.sub(r"method:\n(  .*\n)+", "method: {name: mitp, rank: 8, prompt_len: 3}\n", recipe_path.read_text())
    recipe_path.write_text(text)
    return recipe_path


@pytest.mark.ranks
def test_it_trains_on_two_ranks_and_is_scored_inspected_and_exported(recipe, tmp_path, capsys):
    given = ["train", str(recipe), "model.dtype=bf16", "training.epochs=1", "training.warmup_epochs=0"]
    given += ["training.recompute=auto", "training.activation_budget=0.002"]
    assert "with images layers keep" in run_on_ranks(MODULE, 2, *given)
    run = tmp_path / "runs" / "tiny"
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("loss/train" in line for line in losses)

    evaluate = ["evaluate", str(recipe), "model.dtype=bf16", "evaluation.captions=[false]"]
    assert "captions off" in run_on_ranks(MODULE, 2, *evaluate)
    assert main([*evaluate, "evaluation.protocol=likelihood"]) == 0
    for name in ("captions-off", "captions-off-likelihood"):
        assert json.loads((run / f"evaluation-{name}.json").read_text())["accuracy"]

    (tmp_path / "x.png").write_bytes(picture())
    capsys.readouterr()
    asked = ["Which colour?", "--image", str(tmp_path / "x.png"), "--choice", "red", "--choice", "blue"]
    said = run_on_ranks(MODULE, 2, "inspect", "--run", str(run), *asked)
    assert "| cosine of vision and text prompts |" in said and "vision 1, text 0 |" in said
    assert (run / "inspect" / "similarity.png").stat().st_size > 0
    assert main(["inspect", "--run", str(run), *asked, "--words", "colour"]) == 1
    assert "feed-forward memory, which mitp has not" in capsys.readouterr().err

    assert main(["export", "--run", str(run), "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "re-implementation from the published description" in card
    assert "3 prompts in each tower, hub of rank 8, similarity, two_way" in card


def test_vision_adapters_are_made_in_the_blocks_that_run(recipe_path):
    """And only there: one that never runs would have no gradient."""
    recipe = read_recipe(recipe_path, [*MITP, "method.vision_points=[0]", "method.text_points=[0,1]"])
    adapters = 2 * 4 * 32
    first, _ = count(recipe, read_configs(recipe))
    recipe.method.vision_points = [1]
    both, _ = count(recipe, read_configs(recipe))
    assert both - first == adapters
    recipe.method.hub = "off"
    assert count(recipe, read_configs(recipe))[0] == 3 * 32


def test_the_plan_says_where_gradients_begin(repository, capsys):
    given = ["plan", str(repository / "recipes" / "scienceqa-7b.yaml"), "--gpus", "8", "method.name=mitp"]
    assert main([*given, "vision.adapter_dim=0"]) == 0
    assert "No gradient passes below block 16 of the language model's 32" in capsys.readouterr().out


def test_the_slots_stand_before_the_cue(recipe, capsys):
    assert main(["data", "show", str(recipe), "--samples", "2", "--sheet", str(recipe.parent / "sheet.png")]) == 0
    said = capsys.readouterr().out
    assert said.count("\n[3 places of the method]Response:[[The answer is") == 2


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["text_points=[20,16]"], "method.text_points: must be increasing, not 20, 16"),
        (["text_points=[16,16]"], "method.text_points: must be increasing"),
        (["text_points=[39]"], "method.text_points: two are needed"),
        (["text_points=[16,40]"], "method.text_points: the language model has no block 40; they run from 0 to 39"),
        (
            ["vision_points=[1,2,3,4,5]", "text_points=[1,2,3]"],
            "method.vision_points: 5 points in the vision tower for",
        ),
        (["vision_points=[1]", "text_points=[1,2,3]"], "method.vision_points: 1 point in the vision tower for the 3"),
        (["vision_points=[22,23]", "text_points=[1,2,3]"], "method.vision_points: block 23 of the vision tower is not"),
        (["cue="], "method.cue: must not be empty"),
        (["cue=Answer"], "method.cue: must be 'Response:', which ends every prompt, not 'Answer'"),
        (["tau=0"], "method.tau: must be above 0"),
        (["hub=on"], "method.hub: must be one of"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(repository, capsys, monkeypatch, settings, part):
    monkeypatch.delenv("DSMEMVP_TRACEBACK", raising=False)
    recipe = str(repository / "recipes" / "scienceqa-13b.yaml")
    assert main(["count", recipe, "method.name=mitp", *(f"method.{setting}" for setting in settings)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and part in err
