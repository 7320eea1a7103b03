"""What tools that look at samples need: the encoder as a run would make it, and the right answer in words."""

from dataclasses import replace

from dsmemvp.data.encoder import Encoder, recipe_encoder
from dsmemvp.data.sample import Sample
from dsmemvp.models.weights import read_configs
from dsmemvp.prompts import build_method
from dsmemvp.recipe import Recipe


def encoder_of(recipe: Recipe) -> Encoder:
    """The encoder of a training run. Only the models' config.json are read, or the shapes where no folder is given."""
    configs = read_configs(recipe)
    encoder = recipe_encoder(recipe, configs.resolution, configs.language.vocab_size)
    return replace(encoder, slots=build_method(recipe.method, configs.sizes).slots)


def right_answer(sample: Sample) -> str:
    """As in "B (blue)", or an open answer's text."""
    return f"{sample.letter} ({sample.choices[int(sample.answer)]})" if sample.choices else str(sample.answer)
