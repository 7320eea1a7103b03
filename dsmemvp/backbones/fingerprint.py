"""Fingerprint of the frozen base, so that trained tensors are never put on another one.

What counts is what is computed with: the tensors that are loaded, under this package's names, each by its shape and a
sample of its values, and the configuration's settings. A 13B model is known after reading some megabytes. What does not
count: how tensors are spread over files, names with or without a prefix, the text tower beside a vision tower, and the
type, as long as it holds the same values.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from dsmemvp.backbones.reading import sampled
from dsmemvp.backbones.stored import Stored
from dsmemvp.backbones.text_encoder import ENCODERS
from dsmemvp.backbones.weights import LANGUAGE_KEY, VISION_KEY, Base
from dsmemvp.config.hub import local
from dsmemvp.config.methods import method_module
from dsmemvp.config.paths import check_tokenizer_file

LANGUAGE = (
    *("hidden_act", "rms_norm_eps", "rope_parameters", "tie_word_embeddings"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
VISION = ("hidden_act", "layer_norm_eps", "num_attention_heads", "image_size", "patch_size")
"""Settings that a model computes with and that no tensor's shape shows."""
FIRST_FAMILIES = ("llama", "clip_vision_model")
"""Checkpoints hold digests of these as they were made before there were others; those of all later families begin with
their own name and say more."""
MORE = ("model_type", "sliding_window")
ROTARY = (
    *("rope_type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
)
"""Of rope_parameters, what counts if it is given: another version of transformers may add keys of its own."""


def fingerprint(base: Base) -> dict[str, str]:
    """Digests by the recipe's keys; the vision tower counts if the method looks at images. Raises UserError for folders
    that cannot be read."""
    recipe, key = base.recipe, LANGUAGE_KEY
    found = {key: _digest(base.language_tensors, base.language_config, LANGUAGE, key)}
    if method_module(recipe.method.name).Method.sees_images:
        key = VISION_KEY
        found[key] = _digest(base.vision_tensors, base.vision_config, VISION, key)
    tokenizer = Path(local(recipe.model.tokenizer, "model.tokenizer"))
    check_tokenizer_file(tokenizer)
    return {**found, "model.tokenizer": hashlib.sha256(tokenizer.read_bytes()).hexdigest()}


def _digest(tensors: Stored, config: Any, settings: tuple[str, ...], key: str) -> str:
    if config.model_type not in FIRST_FAMILIES:
        settings += MORE
    if config.model_type in ENCODERS:
        settings += ("layer_norm_eps",)
    values = sampled(tensors.values(), key)
    known = {
        "settings": {name: _plain(getattr(config, name, None)) for name in settings},
        "tensors": {
            name: [tensor.shape, hashlib.sha256(value).hexdigest()]
            for (name, tensor), value in zip(tensors.items(), values, strict=True)
        },
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """10000 and 10000.0 are one number."""
    if isinstance(value, dict):
        return {name: _plain(value[name]) for name in ROTARY if value.get(name) is not None}
    return float(value) if isinstance(value, int | float) else value
