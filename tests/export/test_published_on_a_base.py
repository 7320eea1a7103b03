"""The lines of docs/methods.md for a checkpoint that MemVP's authors have published, on a stand-in of its layout."""

import argparse
import json
import shlex

import pytest
import torch
from documents import run_by

from dsmemvp.backbones.weights import read_configs
from dsmemvp.cli import main as cli
from dsmemvp.config.reading import read_recipe
from dsmemvp.prompts.memvp.published import Published
from dsmemvp.stages import trainable_shapes


@pytest.fixture
def place(repository, recipe_path, tmp_path, monkeypatch):
    """A folder with the page's files in it."""
    from dsmemvp.distributed import ranks

    monkeypatch.setattr(ranks, "join_ranks", lambda seconds, stop: ranks.Ranks(0, 1, torch.device("cpu")))
    monkeypatch.delenv("RANK", raising=False)
    (tmp_path / "ds_configs").symlink_to(repository / "ds_configs")
    recipe = read_recipe(recipe_path)
    torch.manual_seed(3)
    trained = {name: torch.randn(s) for name, s in trainable_shapes(recipe, read_configs(recipe)).items()}
    options = argparse.Namespace(emb=recipe.method.slots, adapter_scale=recipe.method.output_scale, epochs=20)
    (tmp_path / "raw" / "MemVP-SQA-13B").mkdir(parents=True)
    content = {"model": Published().published_names(trained), "args": options, "epoch": 19, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "raw" / "MemVP-SQA-13B" / "checkpoint-19.pth")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "scienceqa-13b.yaml").write_text(recipe_path.read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_lines_lead_from_the_published_file_to_scores_and_answers(place, repository, capsys):
    page = run_by(repository, "tests/export/test_published_on_a_base.py")
    lines = [line for block in page["docs/methods.md"] for line in block.commands()]
    assert [line.split()[1] for line in lines] == ["convert", "export", "evaluate"]
    for line in lines:
        arguments = shlex.split(line)[1:]
        whole = ["training.deepspeed=ds_configs/replicated.json"] if arguments[0] == "evaluate" else []
        assert cli.main([*arguments, *whole]) == 0, capsys.readouterr()
    out = capsys.readouterr().out
    assert "trained with method.slots=24, method.output_scale=1.0" in out and "captions off" in out
    (scores,) = (place / "runs" / "tiny").glob("evaluation-memvp-sqa-13b-????????.json")
    assert json.loads(scores.read_text())["samples"] == 48
    base = read_recipe(place / "recipes" / "scienceqa-13b.yaml").model
    named = [f"model.{key}={getattr(base, key)}" for key in ("language_model", "vision_tower", "tokenizer")]
    named = [part for setting in named for part in ("--set", setting)]
    assert cli.main(["generate", "--run", "memvp-sqa-13b", *named, "--max-new-tokens", "3", "What is it?"]) == 0
