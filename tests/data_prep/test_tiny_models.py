"""The demo's tiny models, made from shards in a few steps: they load as what they claim to be."""

import math
import subprocess
import sys

import pytest
import torch
from transformers import CLIPVisionModel, LlamaForCausalLM

from data_prep.tiny_vision import PATCH, REACH, RESOLUTION, collages, cross_entropy
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


def test_a_collage_tells_which_patches_have_kept_all_beside_them():
    torch.manual_seed(0)
    side, images = RESOLUTION // PATCH, 40
    pixels = torch.arange(float(images))[:, None, None, None].expand(images, 3, RESOLUTION, RESOLUTION)
    mixed, same = collages(pixels)
    assert 0 < same.float().mean() < 1
    for n in range(images):
        patches = mixed[n].unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)  # [3, side, side, PATCH, PATCH]
        assert ((patches == n) | (patches == (n - 1) % images)).all()
        own = (patches == n).all(-1).all(-1).all(0)
        assert torch.equal(own, (patches == n).any(-1).any(-1).any(0))  # whole patches
        for y in range(side):
            for x in range(side):
                beside = own[max(0, y - REACH) : y + REACH + 1, max(0, x - REACH) : x + REACH + 1]
                assert bool(beside.all()) == bool(same[n, y * side + x])
