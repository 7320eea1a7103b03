"""The demo's tiny models, made from shards in a few steps: they load as what they claim to be."""

import subprocess
import sys

import torch
from transformers import CLIPVisionModel, LlamaForCausalLM

from dsmemvp.models.joined import build_frozen
from dsmemvp.models.weights import load_frozen, read_configs
from dsmemvp.recipe import Recipe


def test_the_folders_load_in_transformers_and_here(demo_shards, tmp_path):
    steps = ["--language-steps", "2", "--vision-steps", "2", "--tokenizer-vocabulary", "380"]
    command = [sys.executable, "-m", "data_prep.tiny_models", "--data", str(demo_shards.parent), "--out", str(tmp_path)]
    done = subprocess.run([*command, *steps], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "language model: step 2" in done.stdout and "vision tower: step 2" in done.stdout

    recipe = Recipe(name="x")
    recipe.model.language_model = str(tmp_path / "language_model")
    recipe.model.vision_tower = str(tmp_path / "vision_tower")
    model = build_frozen(recipe, read_configs(recipe))
    load_frozen(model, recipe)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "language_model")
    assert torch.equal(theirs.model.layers[1].mlp.up_proj.weight, model.language.layers[1].mlp.up_proj.weight)
    pixels = torch.randn(1, 3, 64, 64)
    tower = CLIPVisionModel.from_pretrained(tmp_path / "vision_tower").eval()
    with torch.no_grad():
        expected = tower.post_layernorm(tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:])
        torch.testing.assert_close(model.vision(pixels), expected, atol=1e-5, rtol=1e-5)
