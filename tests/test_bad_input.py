"""What a user hands over and cannot be used: one clear line on stderr, exit code 1, no traceback."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsmemvp.backbones.fingerprint import fingerprint
from dsmemvp.backbones.weights import Base, read_configs
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.checkpoints.checkpoint import State, save_checkpoint
from dsmemvp.cli import main as cli
from dsmemvp.config.reading import as_dict, read_recipe
from dsmemvp.export.export import export


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs a command in this process, as its only rank, and returns its one line."""
    from dsmemvp.distributed import ranks

    monkeypatch.setattr(ranks, "join_ranks", lambda seconds, stop: ranks.Ranks(0, 1, torch.device("cpu")))
    for name in ("DSMEMVP_TRACEBACK", "RANK"):
        monkeypatch.delenv(name, raising=False)

    def refused(command, *arguments) -> str:
        capsys.readouterr()
        code = cli.main([command, *map(str, arguments)])
        out, err = capsys.readouterr()
        assert code == 1 and out == "" and err.count("\n") == 1, (code, out, err)
        return err.removeprefix(f"dsmemvp {command}: error: ").strip()

    return refused


@pytest.fixture
def language(tiny_models, tmp_path) -> Path:
    """A copy of the language model to spoil."""
    return shutil.copytree(tiny_models / "language_model", tmp_path / "language")


@pytest.fixture
def train(refused, recipe_path, repository, language):
    replicated = f"training.deepspeed={repository / 'ds_configs' / 'replicated.json'}"
    return lambda *more: refused("train", recipe_path, replicated, f"model.language_model={language}", *more)


def test_a_truncated_file_of_weights(train, language):
    path = language / "model.safetensors"
    os.truncate(path, path.stat().st_size - 100)
    said = train()
    assert said.startswith(f"model.language_model: {path} is not a readable safetensors file (its tensors end at byte")


def test_a_folder_with_one_file_missing(train, language):
    tensors = load_file(language / "model.safetensors")
    (language / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    save_file({n: tensors[n] for n in names[::2]}, language / "model-00001-of-00002.safetensors")
    (language / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert "model-00002-of-00002.safetensors named in model.safetensors.index.json but not there" in train()


def test_tensors_that_are_not_what_the_configuration_says(train, language):
    path = language / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 3, "intermediate_size": 96}))
    said = train()
    assert said.startswith(f"model.language_model: {language} does not fit its config.json; missing: layers.2.")
    assert "of another shape: layers.0.mlp.down_proj.weight (32, 88) instead of (32, 96)" in said


def test_a_tokenizer_of_another_vocabulary(train, language):
    path = language / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 300}))
    assert train().startswith("model.tokenizer: ")


@pytest.fixture
def run(recipe_path) -> Path:
    """A run's folder with a checkpoint of initial values."""
    recipe = read_recipe(recipe_path)
    configs = read_configs(recipe)
    model = build_frozen(recipe, configs)
    add_trainables(model, recipe, configs)
    values = {name: p.detach() for name, p in model.trainables().items()}
    folder = Path(recipe.output) / recipe.name
    save_checkpoint(folder, State(step=3, recipe=as_dict(recipe), base=fingerprint(Base(recipe))), values, {})
    (folder / "recipe.json").write_text(json.dumps(as_dict(recipe)))
    return folder


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(train, run):
    """Its record, and what may be saved of the checkpoints, would be overwritten."""
    path = run / "checkpoints" / "step-00000003" / "trained.safetensors"
    os.truncate(path, 100)
    said = train()
    assert said.startswith(f"{path} is damaged") and "no other checkpoint of the run is left" in said
    assert path.stat().st_size == 100


@pytest.mark.parametrize("command", ["evaluate", "generate"])
def test_a_damaged_checkpoint_that_is_named_is_not_used(refused, run, recipe_path, tmp_path, command):
    export(run, tmp_path / "out")
    for folder in (run / "checkpoints" / "step-00000003", tmp_path / "out"):
        path = folder / "trained.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        what = [recipe_path] if command == "evaluate" else ["--run", run, "What is it?"]
        assert refused(command, *what, "--checkpoint", folder).startswith(f"{path} is damaged: ")


def test_an_exported_folder_on_another_base(refused, run, language, recipe_path, tmp_path):
    export(run, tmp_path / "out")
    tensors = load_file(language / "model.safetensors")
    tensors["model.norm.weight"] *= 2
    save_file(tensors, language / "model.safetensors")
    model = read_recipe(recipe_path).model
    base = {"language_model": language, "vision_tower": model.vision_tower, "tokenizer": model.tokenizer}
    given = [part for key, place in base.items() for part in ("--set", f"model.{key}={place}")]
    said = refused("generate", "--run", tmp_path / "out", *given, "What is it?")
    assert said.startswith(f"model.language_model: {tmp_path / 'out'} was trained on another one")


@pytest.mark.parametrize("command", ["generate", "inspect"])
def test_an_image_that_does_not_decode(refused, run, tmp_path, command):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"no picture" * 9)
    said = refused(command, "--run", run, "--image", tmp_path / "a.png", "What is it?")
    assert "a.png: image cannot be decoded" in said


def test_a_shard_that_is_gone_ends_training_and_evaluation_before_they_begin(
    train, refused, recipe_path, demo_shards, tmp_path
):
    folder = shutil.copytree(demo_shards, tmp_path / "shards")
    gone = sorted(folder.glob("*.tar"))[-1]
    gone.unlink()
    told = f"{gone} is in dataset.json but does not exist"
    assert train(f"data.train={folder}", f"output={tmp_path}") == told
    assert train(f"data.validation={folder}", f"output={tmp_path}") == told
    assert refused("evaluate", recipe_path, f"data.test={folder}", f"output={tmp_path}") == told
