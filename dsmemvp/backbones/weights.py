"""The frozen base that a recipe names: its folders' config.json, the headers of their safetensors files, and their
weights into a model.

`Base` reads each configuration and each header once and keeps them, for whoever needs them next: the configurations to
build the model, the tensors to know the base (fingerprint.py) and to load it.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

from dsmemvp.backbones.configs import LANGUAGE_CONFIGS, VISION_CONFIGS, Configs, check_patches, folder_config
from dsmemvp.backbones.families import check_window
from dsmemvp.backbones.filling import fill_from_files, matched
from dsmemvp.backbones.safetensors_file import folder_tensors
from dsmemvp.backbones.shapes import language_config, vision_config
from dsmemvp.backbones.stored import Stored, decoder_tensors, encoder_tensors, vision_tensors
from dsmemvp.backbones.text_encoder import ENCODERS
from dsmemvp.config.hub import local
from dsmemvp.config.recipe import Recipe
from dsmemvp.errors import UserError

LANGUAGE_KEY, VISION_KEY = "model.language_model", "model.vision_tower"
SHAPE_KEYS = {
    "language": (
        *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "num_key_value_heads"),
    ),
    "vision": (
        *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size"),
    ),
}


class Base:
    """Everything is read when it is first asked for, and raises UserError naming the recipe's key."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    @cached_property
    def configs(self) -> Configs:
        """From the recipe's folders or, if a folder is not given, its shapes."""
        model = self.recipe.model
        language = _or_shape("language", self.language_config, model.language_shape, language_config)
        vision = _or_shape("vision", self.vision_config, model.vision_shape, vision_config)
        return _checked(Configs(language, vision, self.recipe.vision.resolution), self.recipe)

    @cached_property
    def language_config(self) -> Any:
        """None without a folder."""
        return folder_config(local(self.recipe.model.language_model, LANGUAGE_KEY), LANGUAGE_KEY, LANGUAGE_CONFIGS)

    @cached_property
    def vision_config(self) -> Any:
        """None without a folder."""
        return folder_config(local(self.recipe.model.vision_tower, VISION_KEY), VISION_KEY, VISION_CONFIGS)

    @cached_property
    def language_tensors(self) -> Stored:
        """Under the names of backbones/decoder.py or text_encoder.py."""
        folder, config = _given(self.recipe.model.language_model, LANGUAGE_KEY), self.language_config
        tensors = encoder_tensors if config.model_type in ENCODERS else decoder_tensors
        return tensors(folder_tensors(Path(folder), LANGUAGE_KEY), config, folder, LANGUAGE_KEY)

    @cached_property
    def vision_tensors(self) -> Stored:
        """Under the names of backbones/vision.py."""
        folder, config = _given(self.recipe.model.vision_tower, VISION_KEY), self.vision_config
        block = self.recipe.method.vision_features().block
        return vision_tensors(folder_tensors(Path(folder), VISION_KEY), config, folder, VISION_KEY, block)

    def load(self, model: Any, tell: bool = False) -> int:
        """Fill the frozen parameters of `model` and return the bytes that this process read for it; with `tell` it says
        how far it is. Nothing is read before all of it is found. Raises UserError listing what is missing, left over,
        of another shape or of a type that is not read."""
        named = self.recipe.model
        pairs = []
        if model.language is not None:
            pairs += matched(model.language, self.language_tensors, named.language_model, LANGUAGE_KEY)
        if model.vision is not None:
            pairs += matched(model.vision, self.vision_tensors, named.vision_tower, VISION_KEY)
        return fill_from_files(pairs, tell)


def read_configs(recipe: Recipe) -> Configs:
    """The two models' configurations, for those who need nothing else of the base. Raises UserError naming the key."""
    return Base(recipe).configs


def configs_of_shapes(recipe: Recipe) -> Configs:
    """The configurations named by the recipe's shapes, without looking for weights."""
    model = recipe.model
    found = Configs(language_config(model.language_shape), vision_config(model.vision_shape), recipe.vision.resolution)
    return _checked(found, recipe)


def tensor_files(folder: Path, key: str) -> dict[str, Path]:
    """Tensor name -> file that holds it. Raises UserError naming `key`."""
    return {name: tensor.path for name, tensor in folder_tensors(folder, key).items()}


def _given(folder: str, key: str) -> str:
    if not folder:
        raise UserError(f"{key}: give the folder of its weights")
    return local(folder, key)


def _or_shape(part: str, found: Any, shape: str, named: Any) -> Any:
    """The folder's configuration, which must be of the shape if the recipe names one; without a folder the shape's."""
    if found is None and not shape:
        raise UserError(f"model.{part}_shape: give a folder of weights or the name of a shape")
    if found is None or not shape:
        return found or named(shape)
    wanted = named(shape)
    pairs = {k: (getattr(found, k, None), getattr(wanted, k, None)) for k in SHAPE_KEYS[part]}
    wrong = [f"{k} {has} instead of {wants}" for k, (has, wants) in pairs.items() if has != wants]
    if wrong:
        raise UserError(f"model.{part}_shape: the folder's config.json is not of shape {shape!r}: {', '.join(wrong)}")
    return found


def _checked(configs: Configs, recipe: Recipe) -> Configs:
    """Check what the recipe asks of the two models. Raises UserError."""
    check_window(configs.language, recipe.data.max_length)
    encodes = configs.language.model_type in ENCODERS
    if encodes != (recipe.method.text_tower() == "encoder"):
        wanted = "a text encoder (BERT)" if not encodes else "a decoder"
        raise UserError(
            f"method.name: {recipe.method.name} needs {wanted} in model.language_model, which is of a"
            f" {configs.language.model_type!r} model"
        )
    if encodes and recipe.data.max_length > configs.language.max_position_embeddings:
        raise UserError(
            f"data.max_length: {recipe.data.max_length} tokens are more than the"
            f" {configs.language.max_position_embeddings} positions of the text encoder"
        )
    check_patches(configs.resolution, configs.vision)
    return configs
