"""convert and export as they are typed: what they print, and errors in one line."""

import pytest
import torch
from stand_ins import openai_tensors, write_meta
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from dsmemvp.backbones.weights import read_configs
from dsmemvp.cli import main as cli
from dsmemvp.config.recipe import Recipe

SIZES = {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}


def _fails(capsys, *arguments) -> str:
    assert cli.main([str(a) for a in arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"dsmemvp {arguments[0]}: error: ") and err.count("\n") == 1
    return err


@pytest.fixture(autouse=True)
def as_the_first_rank(monkeypatch):
    monkeypatch.delenv("DSMEMVP_TRACEBACK", raising=False)
    monkeypatch.delenv("RANK", raising=False)


def test_downloads_become_folders_that_a_recipe_can_name(tmp_path, capsys):
    write_meta(
        LlamaForCausalLM(LlamaConfig(vocab_size=40, **{**SIZES, "intermediate_size": 352})), tmp_path / "meta", 2
    )
    torch.save(
        openai_tensors(CLIPVisionModel(CLIPVisionConfig(image_size=16, patch_size=8, **SIZES))), tmp_path / "clip.pt"
    )
    folders = {"meta": tmp_path / "llama", "clip.pt": tmp_path / "clip"}
    for source, folder in folders.items():
        options = ["--dtype", "bf16", "--shard-size", "200kB"]
        assert cli.main(["convert", str(tmp_path / source), "--out", str(folder), *options]) == 0
        assert f"-> {folder}\n" in capsys.readouterr().out
        assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    recipe = Recipe(name="x")
    recipe.model.language_model, recipe.model.vision_tower = map(str, folders.values())
    configs = read_configs(recipe)
    assert (configs.language.vocab_size, configs.resolution) == (40, 16)


def test_errors_end_in_one_line(tmp_path, capsys):
    (tmp_path / "file.pth").write_bytes(b"no weights")
    for source, part in (("nowhere", "nowhere does not exist"), ("file.pth", "file.pth cannot be read as weights")):
        assert part in _fails(capsys, "convert", tmp_path / source, "--out", tmp_path / "out")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "params.json").write_text('{"dim": 32, "n_layers": 2, "n_heads": 4, "norm_eps": 1e-5}')
    error = _fails(capsys, "convert", tmp_path / "meta", "--out", tmp_path / "out")
    assert "consolidated.00.pth does not exist" in error
    assert "is no size" in _fails(
        capsys, "convert", tmp_path / "meta", "--out", tmp_path / "out", "--shard-size", "big"
    )
    assert "holds no intact checkpoint" in _fails(capsys, "export", "--run", tmp_path, "--out", tmp_path / "out")
