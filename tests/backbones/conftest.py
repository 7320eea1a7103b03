"""A recipe of two small models in Hugging Face layout, which tests may change."""

import pytest
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, LlamaConfig, LlamaForCausalLM

from dsmemvp.config.recipe import Recipe

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def small_sizes() -> dict[str, int]:
    return SIZES


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    recipe = Recipe(name="x")
    recipe.model.language_model = str(tmp_path / "language")
    recipe.model.vision_tower = str(tmp_path / "vision")
    LlamaForCausalLM(LlamaConfig(vocab_size=40, **SIZES)).save_pretrained(tmp_path / "language")
    vision = CLIPVisionConfig(image_size=16, patch_size=8, **SIZES)
    # a whole CLIP model, as OpenAI's are published: the text tower in it is passed over
    whole = CLIPConfig(text_config={"vocab_size": 40, **SIZES}, vision_config=vision.to_dict())
    CLIPModel(whole).save_pretrained(tmp_path / "vision")
    return recipe
