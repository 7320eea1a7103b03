"""What a recipe's model reads: its configs and the collator that makes its batches, without any weights."""

from dataclasses import dataclass, replace

import torch

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.weights import read_configs
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.collator import Collator, recipe_collator
from dsmemvp.model import sizes_of
from dsmemvp.prompts import VisualPrompt, build_method


@dataclass(frozen=True)
class Inputs:
    configs: Configs
    collator: Collator
    """For training, with the places that the method reserves."""
    method: VisualPrompt
    """On the meta device: what it reserves and its stages, not its values."""


def open_inputs(recipe: Recipe) -> Inputs:
    """Reads only the models' config.json (the shapes, if no folder is given) and the tokenizer. Raises UserError."""
    configs = read_configs(recipe)
    with torch.device("meta"):
        method = build_method(recipe.method, sizes_of(configs))
    collator = recipe_collator(recipe, configs.resolution, configs.language.vocab_size)
    return Inputs(configs, replace(collator, reserved=tuple(method.reserved())), method)
