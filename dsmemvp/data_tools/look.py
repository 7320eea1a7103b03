"""What tools that look at samples need: the collator as a run would make it, and the right answer in words."""

from dataclasses import replace

from dsmemvp.backbones.weights import read_configs
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.collator import Collator, recipe_collator
from dsmemvp.data.sample import Sample
from dsmemvp.model import sizes_of
from dsmemvp.prompts import build_method


def collator_of(recipe: Recipe) -> Collator:
    """The collator of a training run. Only the models' config.json are read, or the shapes where no folder is given."""
    configs = read_configs(recipe)
    collator = recipe_collator(recipe, configs.resolution, configs.language.vocab_size)
    return replace(collator, reserved=tuple(build_method(recipe.method, sizes_of(configs)).reserved()))


def right_answer(sample: Sample) -> str:
    """As in "B (blue)", or an open answer's text."""
    return f"{sample.letter} ({sample.choices[int(sample.answer)]})" if sample.choices else str(sample.answer)
