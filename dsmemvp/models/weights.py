"""Frozen weights out of Hugging Face folders (config.json, safetensors) into a model, whole or partitioned.

Every tensor the model has must be in the folder in its shape, and the folder may hold no other than the known extras.
A partitioned parameter takes only its own range of elements; nothing is sent between ranks.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPConfig, CLIPVisionConfig, LlamaConfig

from dsmemvp.models.joined import Configs, VisualLanguageModel
from dsmemvp.models.partitioned import element_range, fill, whole_shape
from dsmemvp.models.shapes import language_config, vision_config
from dsmemvp.recipe import Recipe

INDEX = "model.safetensors.index.json"
SHAPE_KEYS = {
    "language": ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "vision": ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size"),
}


def read_configs(recipe: Recipe) -> Configs:
    """The two models' configurations, from the recipe's folders or, where a folder is not given, its shapes. Raises
    FileNotFoundError or ValueError naming the key."""
    model = recipe.model
    language = _folder_config(model.language_model, "model.language_model", LlamaConfig)
    vision = _folder_config(model.vision_tower, "model.vision_tower", CLIPVisionConfig)
    for part, found, shape, named in (
        ("language", language, model.language_shape, language_config),
        ("vision", vision, model.vision_shape, vision_config),
    ):
        if shape and found is not None:
            wanted = named(shape)
            wrong = [k for k in SHAPE_KEYS[part] if getattr(found, k) != getattr(wanted, k)]
            if wrong:
                values = ", ".join(f"{k} {getattr(found, k)} instead of {getattr(wanted, k)}" for k in wrong)
                raise ValueError(f"model.{part}_shape: the folder's config.json is not of shape {shape!r}: {values}")
        elif found is None and not shape:
            raise ValueError(f"model.{part}_shape: give a folder of weights or the name of a shape")
    return Configs(
        language or language_config(model.language_shape),
        vision or vision_config(model.vision_shape),
    )


def configs_of_shapes(recipe: Recipe) -> Configs:
    """The configurations named by the recipe's shapes, without looking for weights."""
    return Configs(language_config(recipe.model.language_shape), vision_config(recipe.model.vision_shape))


def _folder_config(folder: str, key: str, kind: Any) -> Any:
    if not folder:
        return None
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{key}: {path} does not exist")
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{key}: {path} is not JSON: {error}") from None
    if kind is CLIPVisionConfig and content.get("model_type") == "clip":
        return CLIPConfig.from_dict(content).vision_config
    if content.get("model_type") != kind.model_type:
        raise ValueError(f"{key}: {path} is a {content.get('model_type')!r} model, not {kind.model_type!r}")
    return kind.from_dict(content)


def load_frozen(model: VisualLanguageModel, recipe: Recipe) -> None:
    """Fill the frozen parameters of `model` from the recipe's folders. Raises ValueError listing what is missing, left
    over or of another shape."""
    tied = model.language.config.tie_word_embeddings
    load_folder(model.language, recipe.model.language_model, "model.language_model", _language_name, tied)
    if model.vision is not None:
        load_folder(model.vision, recipe.model.vision_tower, "model.vision_tower", _vision_name)


def load_folder(module: nn.Module, folder: str, key: str, our_name, tied: bool = False) -> None:
    """`our_name` turns a name in the file into the module's own, or None for a known extra."""
    if not folder:
        raise ValueError(f"{key}: give the folder of its weights")
    files = tensor_files(Path(folder), key)
    names = {ours: theirs for theirs in files if (ours := our_name(theirs, module)) is not None}
    parameters = dict(module.named_parameters())  # a tied parameter appears once
    if tied:
        names.pop("lm_head.weight", None)
    missing, extra = sorted(parameters.keys() - names.keys()), sorted(names.keys() - parameters.keys())
    if missing or extra:
        raise ValueError(
            f"{key}: {folder} does not fit its config.json; missing: {_some(missing)}; left over: {_some(extra)}"
        )
    for path in sorted(set(files.values())):
        try:
            with safe_open(path, framework="pt") as tensors:
                for name, parameter in parameters.items():
                    if files[names[name]] == path:
                        _fill_from(tensors, names[name], parameter, f"{key}: {path}")
        except SafetensorError as error:
            raise ValueError(f"{key}: {path} is not a readable safetensors file ({error})") from None


def _fill_from(tensors, name: str, parameter: nn.Parameter, where: str) -> None:
    stored = tensors.get_slice(name)
    shape, (start, stop) = tuple(stored.get_shape()), element_range(parameter)
    wanted = whole_shape(parameter)
    if shape != wanted:
        raise ValueError(f"{where}: {name} has shape {shape}, the model wants {wanted}")
    row = max(1, torch.Size(shape[1:]).numel())
    first, last = start // row, -(-stop // row)
    flat = stored[first:last].reshape(-1)  # only the rows that hold the wanted elements are read
    fill(parameter, flat[start - first * row : stop - first * row])


def tensor_files(folder: Path, key: str) -> dict[str, Path]:
    """Tensor name -> file that holds it. Raises FileNotFoundError or ValueError naming `key`."""
    if (folder / INDEX).is_file():
        names = json.loads((folder / INDEX).read_bytes())["weight_map"]
        files = {name: folder / file for name, file in names.items()}
        for path in set(files.values()):
            if not path.is_file():
                raise FileNotFoundError(f"{key}: {path} is named in {INDEX} but does not exist")
        return files
    path = folder / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{key}: {folder} has neither model.safetensors nor {INDEX}")
    try:
        with safe_open(path, framework="pt") as tensors:
            return dict.fromkeys(tensors.keys(), path)
    except SafetensorError as error:
        raise ValueError(f"{key}: {path} is not a readable safetensors file ({error})") from None


def _language_name(name: str, module: nn.Module) -> str | None:
    if name.endswith("rotary_emb.inv_freq"):  # older files hold this table, which follows from the config
        return None
    return name.removeprefix("model.")


def _vision_name(name: str, module: Any) -> str | None:
    """Files of whole CLIP models hold the text tower too; the last vision block is not used (models/vision.py)."""
    if name.startswith(("text_model.", "text_projection.", "visual_projection.", "logit_scale")):
        return None
    name = name.removeprefix("vision_model.").removeprefix("encoder.")
    if name.startswith(f"layers.{len(module.layers)}.") or name == "embeddings.position_ids":
        return None
    return name


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"
