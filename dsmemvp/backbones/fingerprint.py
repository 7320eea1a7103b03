"""What the frozen base is known by, so that trained tensors are never put on another one.

What counts is what is computed with: the tensors that are loaded, under this package's names, each by its shape and a
sample of its values, and the configuration's settings. A 13B model is known after reading some megabytes. What does not
count: how tensors are spread over files, names with or without a prefix, the text tower beside a vision tower, and the
type, as long as it holds the same values.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig

from dsmemvp.backbones.reading import sampled
from dsmemvp.backbones.safetensors_file import StoredTensor
from dsmemvp.backbones.weights import folder_config, language_tensors, vision_tensors
from dsmemvp.config.recipe import Recipe
from dsmemvp.errors import UserError

LANGUAGE = (
    *("hidden_act", "rms_norm_eps", "rope_parameters", "tie_word_embeddings"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
VISION = ("hidden_act", "layer_norm_eps", "num_attention_heads", "image_size", "patch_size")
"""Settings that a model computes with and that no tensor's shape tells."""
ROTARY = (
    *("rope_type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
)
"""Of rope_parameters, what counts where it is given: another version of transformers may add keys of its own."""


def base_fingerprint(recipe: Recipe) -> dict[str, str]:
    """Digests by the recipe's keys; the vision tower counts where the method looks at images. Raises FileNotFoundError
    or ValueError for folders that cannot be read."""
    model, key = recipe.model, "model.language_model"
    language = _config(model.language_model, key, LlamaConfig)
    found = {key: _digest(language_tensors(model.language_model, language), language, LANGUAGE, key)}
    if recipe.method.name != "none":
        key = "model.vision_tower"
        vision = _config(model.vision_tower, key, CLIPVisionConfig)
        found[key] = _digest(vision_tensors(model.vision_tower, vision), vision, VISION, key)
    tokenizer = Path(model.tokenizer)
    if not tokenizer.is_file():
        what = "is a folder; give a file" if tokenizer.is_dir() else "does not exist"
        raise UserError(f"model.tokenizer: {tokenizer} {what}")
    return {**found, "model.tokenizer": hashlib.sha256(tokenizer.read_bytes()).hexdigest()}


def _config(folder: str, key: str, kind: Any) -> Any:
    if not folder:
        raise UserError(f"{key}: give the folder of its weights")
    return folder_config(folder, key, kind)


def _digest(tensors: dict[str, StoredTensor], config: Any, settings: tuple[str, ...], key: str) -> str:
    values = {name: hashlib.sha256(sampled(tensor, key)).hexdigest() for name, tensor in tensors.items()}
    known = {
        "settings": {name: _plain(getattr(config, name)) for name in settings},
        "tensors": {name: [tensor.shape, values[name]] for name, tensor in tensors.items()},
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """10000 and 10000.0 are one number."""
    if isinstance(value, dict):
        return {name: _plain(value[name]) for name in ROTARY if value.get(name) is not None}
    return float(value) if isinstance(value, int | float) else value
