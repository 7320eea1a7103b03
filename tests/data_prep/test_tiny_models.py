"""The demo's tiny models, made from shards in a few steps: they load as what they claim to be."""

import math
import subprocess
import sys

import pytest
import torch
from transformers import CLIPVisionModel, LlamaForCausalLM

from data_prep.tiny_vision import PATCH, RESOLUTION, collages, cross_entropy, flat
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


def test_a_word_is_told_when_one_patch_tells_it():
    targets = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    each_its_own = torch.tensor([[[20.0, 0, 0, 0], [0, 20.0, 0, 0]]])
    # two words that share the probability cost ln 2 at least; asked of every patch these would cost about 10
    assert cross_entropy(each_its_own, targets).item() == pytest.approx(math.log(2), abs=1e-4)
    # logsumexp over two equal patches adds ln 2 to every score, which changes nothing
    one_patch = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    total = sum(math.exp(n) for n in (1, 2, 3, 4))
    expected = pytest.approx(-(math.log(math.exp(1) / total) + math.log(math.exp(2) / total)) / 2, rel=1e-5)
    assert cross_entropy(one_patch, targets).item() == expected
    assert cross_entropy(one_patch.repeat(1, 2, 1), targets).item() == expected


def test_a_collage_keeps_a_pictures_own_patches_and_takes_the_others_from_the_one_before():
    torch.manual_seed(0)
    pixels = torch.arange(8.0)[:, None, None, None].expand(8, 3, RESOLUTION, RESOLUTION)
    mixed, own = collages(pixels)
    assert 0 < own.float().mean() < 1
    for n in range(8):
        patches = (
            mixed[n].unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
        )
        expected = torch.where(own[n], float(n), float((n - 1) % 8))
        assert torch.equal(patches, expected[:, None].expand_as(patches))


def test_a_patch_of_one_colour_is_flat_in_whatever_channel_it_would_differ():
    side = RESOLUTION // PATCH
    pixels = torch.rand(1, 3, 1, 1).expand(2, 3, RESOLUTION, RESOLUTION).clone()
    pixels[0] += torch.linspace(0, 0.15, RESOLUTION)  # faint shading within a patch
    pixels[1, 2, PATCH + 3, 2 * PATCH - 1] += 0.5
    found = flat(pixels)
    assert found[0].all() and not found[1, side + 1] and found[1].sum() == side * side - 1
