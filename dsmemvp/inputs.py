"""What a recipe's model reads: its configs and the collator that makes its batches, without any weights."""

from dataclasses import dataclass, replace

import torch

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.weights import Base
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.collator import Collator, recipe_collator
from dsmemvp.model import sizes_of
from dsmemvp.prompts import VisualPrompt, build_method


@dataclass(frozen=True)
class Inputs:
    base: Base
    """What has been read of the frozen models, kept for those who need it next."""
    collator: Collator
    """For training, with the places that the method reserves."""
    method: VisualPrompt
    """On the meta device: what it reserves and its stages, not its values."""

    @property
    def configs(self) -> Configs:
        return self.base.configs


def open_inputs(recipe: Recipe, base: Base | None = None) -> Inputs:
    """Reads only the models' config.json (the shapes, if no folder is given) and the tokenizer. `base` is the recipe's,
    if it was opened before. Raises UserError."""
    base = base or Base(recipe)
    configs = base.configs
    with torch.device("meta"):
        method = build_method(recipe.method, sizes_of(configs))
    collator = recipe_collator(recipe, configs.resolution, configs.language.vocab_size)
    return Inputs(base, replace(collator, reserved=tuple(method.reserved()), labels=method.labels()), method)
