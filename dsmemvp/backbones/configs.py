"""The configurations of the two frozen models, out of their folders' config.json."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsmemvp.backbones.decoder import DecoderTower
from dsmemvp.backbones.families import DECODERS
from dsmemvp.backbones.text_encoder import ENCODERS, TextEncoder
from dsmemvp.backbones.vision import VisionTower
from dsmemvp.backbones.vision_families import TOWERS, square, vision_family
from dsmemvp.config.methods import VisionFeatures
from dsmemvp.config.paths import model_config_file
from dsmemvp.config.yaml_text import shown
from dsmemvp.errors import UserError
from dsmemvp.json_text import read_json

LANGUAGE_CONFIGS = {name: family.config for name, family in DECODERS.items()} | ENCODERS
VISION_CONFIGS: dict[str, Any] = {name: family.config for name, family in TOWERS.items()}
VISION_CONFIGS |= {family.with_text.model_type: family.with_text for family in TOWERS.values() if family.with_text}
"""By model_type; those of whole models with a text tower, too, of which the vision tower's is taken."""

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "mlp_ratio"),
)
MOST = dict.fromkeys(SIZES, 1 << 24) | {"num_hidden_layers": 1000, "mlp_ratio": 100}
MOST_PATCHES = 1 << 16
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Those whose frequencies follow from the configuration alone. Of the others (dynamic, longrope) they change with the
longest text so far, which in a packed batch is another sample's."""
EPSILONS, DROPOUTS = ("rms_norm_eps", "layer_norm_eps"), ("attention_dropout", "hidden_dropout_prob", "drop_path_rate")
"""Sizes beyond those of any model, which otherwise would only show when memory for them is missing."""


@dataclass(frozen=True)
class Configs:
    language: Any
    """Of a family in families.py."""
    vision: Any
    """Of a family in vision_families.py."""
    side: int = 0
    """vision.resolution; 0 for the tower's own."""

    @property
    def resolution(self) -> int:
        """Height and width of the vision tower's input. Raises UserError for one that patches do not divide."""
        patch = square(self.vision.patch_size)
        if self.side % patch:
            near = max(1, round(self.side / patch)) * patch
            raise UserError(
                f"vision.resolution: {self.side} is no multiple of the vision tower's patches of {patch} pixels, as"
                f" {near} is"
            )
        return self.side or square(self.vision.image_size)

    @property
    def image_tokens(self) -> int:
        """Patches of an image."""
        return (self.resolution // square(self.vision.patch_size)) ** 2

    def features(self, wanted: VisionFeatures) -> tuple[int, int]:
        """[P, v] of what the tower makes of an image, tokens before the patches counted if they are wanted."""
        extra = vision_family(self.vision).dropped(self.vision) if wanted.class_token else 0
        return self.image_tokens + extra, self.vision.hidden_size


def folder_config(folder: str, key: str, kinds: Mapping[str, Any]) -> Any:
    """The folder's configuration, of one of transformers' classes `kinds` by their model_type; None without a folder.
    Raises UserError naming the key."""
    if not folder:
        return None
    path = model_config_file(Path(folder), key)
    try:
        content = read_json(path)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None
    named = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(named, str) or named not in kinds:
        raise UserError(f"{key}: {path} is a {named!r} model, not one of {', '.join(kinds)}")
    try:
        _check_supported(content)
        config = kinds[named].from_dict(content)
        config = getattr(config, "vision_config", config)
        check_config(config)
    except Exception as error:  # transformers raises many kinds
        said = " ".join(str(error).split())
        if isinstance(error, LookupError | AttributeError):  # whose text alone is a name
            said = f"{type(error).__name__}: {said}"
        raise UserError(f"{key}: {path} is no usable configuration ({said or type(error).__name__})") from None
    return config


def _check_supported(content: dict[str, Any]) -> None:
    """What a config.json asks for and a tower does not do. Raises UserError."""
    if quantised := content.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise UserError(f"quantised weights ({method}) are not read; take the model as it was before")
    for name in ("rope_scaling", "rope_parameters"):
        rope = content.get(name)
        kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else "default"
        if kind not in ROPE_TYPES:
            raise UserError(f"{name} of type {shown(kind)} is not supported; known: {', '.join(ROPE_TYPES)}")


def check_config(config: Any) -> None:
    """Check that a model can be built of a configuration: its sizes, and one layer tried without memory. Raises
    UserError, and what transformers raises."""
    for name in SIZES:
        number = getattr(config, name, 1)
        if number is not None and not (type(number) is int and 0 < number <= MOST[name]):
            raise UserError(f"{name} is {number}, no number from 1 to {MOST[name]}")
    for name in EPSILONS:
        number = getattr(config, name, 0.0)
        if not 0 <= number <= 1:
            raise UserError(f"{name} is {number}, no number from 0 to 1")
    for name in DROPOUTS:
        number = getattr(config, name, 0.0)
        if number is not None and not 0 <= number < 1:
            raise UserError(f"{name} is {number}, no number from 0 to below 1")
    heads = config.num_attention_heads
    if heads % (getattr(config, "num_key_value_heads", None) or heads):
        raise UserError(f"num_attention_heads is {heads}, num_key_value_heads {config.num_key_value_heads}")
    small = deepcopy(config)
    with torch.device("meta"):
        if small.model_type in ENCODERS:
            small.num_hidden_layers = 1
            TextEncoder(small)
        elif small.model_type in LANGUAGE_CONFIGS:
            small.num_hidden_layers = 1
            # on the CPU: these few numbers are looked at
            cos_11h, _ = DecoderTower(small).rotary(torch.ones(1, device="cpu"), torch.float32)
            if not cos_11h.isfinite().all():
                raise UserError(f"rotary positions are not finite, by {config.rope_parameters}")
        else:
            small.num_hidden_layers = 2
            check_patches(square(small.image_size), small)
            VisionTower(small)


def check_patches(side: int, config: Any) -> None:
    """Raises UserError for images of more patches than any model has."""
    patches = (side // max(1, square(config.patch_size))) ** 2
    registers = getattr(config, "num_register_tokens", 0)
    if not 0 < patches <= MOST_PATCHES or not 0 <= registers <= MOST_PATCHES:
        raise UserError(f"image_size and patch_size make {patches} patches, at most {MOST_PATCHES} are taken")
    if config.hidden_size % config.num_attention_heads:
        raise UserError(f"hidden_size {config.hidden_size} is no multiple of {config.num_attention_heads} heads")
