"""Frozen weights out of Hugging Face folders (config.json, safetensors) into a model, whole or partitioned.

Every tensor the model has must be in the folder in its shape, and the folder may hold no other than the known extras.
A partitioned parameter takes only its own range of elements; nothing is sent between ranks.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.partitioned import held_pieces, whole_shape
from dsmemvp.backbones.reading import TYPES, Reader, sampled
from dsmemvp.backbones.safetensors_file import StoredTensor, folder_tensors, some
from dsmemvp.backbones.shapes import language_config, vision_config
from dsmemvp.backbones.vision import square
from dsmemvp.config.recipe import Recipe
from dsmemvp.errors import UserError
from dsmemvp.json_text import read_json

SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
MOST = dict.fromkeys(SIZES, 1 << 24) | {"num_hidden_layers": 1000}
MOST_PATCHES = 1 << 16
"""Sizes beyond those of any model, which otherwise would only show when memory for them is missing."""
MOST_CLAIMED = 16
"""Times the parameters in the files that a config.json may claim."""
SHAPE_KEYS = {
    "language": ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "vision": ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size"),
}


def read_configs(recipe: Recipe) -> Configs:
    """The two models' configurations, from the recipe's folders or, where a folder is not given, its shapes. Raises
    UserError naming the key."""
    model = recipe.model
    language = folder_config(model.language_model, "model.language_model", LlamaConfig)
    vision = folder_config(model.vision_tower, "model.vision_tower", CLIPVisionConfig)
    for part, found, shape, named in (
        ("language", language, model.language_shape, language_config),
        ("vision", vision, model.vision_shape, vision_config),
    ):
        if shape and found is not None:
            wanted = named(shape)
            wrong = [k for k in SHAPE_KEYS[part] if getattr(found, k) != getattr(wanted, k)]
            if wrong:
                values = ", ".join(f"{k} {getattr(found, k)} instead of {getattr(wanted, k)}" for k in wrong)
                raise UserError(f"model.{part}_shape: the folder's config.json is not of shape {shape!r}: {values}")
        elif found is None and not shape:
            raise UserError(f"model.{part}_shape: give a folder of weights or the name of a shape")
    return Configs(
        language or language_config(model.language_shape),
        vision or vision_config(model.vision_shape),
    )


def configs_of_shapes(recipe: Recipe) -> Configs:
    """The configurations named by the recipe's shapes, without looking for weights."""
    return Configs(language_config(recipe.model.language_shape), vision_config(recipe.model.vision_shape))


def folder_config(folder: str, key: str, kind: Any) -> Any:
    """The folder's configuration, of transformers' class `kind`; None without a folder. Raises FileNotFoundError or
    ValueError naming the key."""
    if not folder:
        return None
    path = Path(folder) / "config.json"
    if not path.is_file():
        missing = path if path.parent.is_dir() else f"folder {folder}"
        raise UserError(f"{key}: {missing} does not exist{'' if path.is_absolute() else f' in {Path.cwd()}'}")
    try:
        content = read_json(path)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None
    named = content.get("model_type") if isinstance(content, dict) else None
    whole = kind is CLIPVisionConfig and named == CLIPConfig.model_type
    if named != kind.model_type and not whole:
        raise UserError(f"{key}: {path} is a {named!r} model, not {kind.model_type!r}")
    try:
        config = CLIPConfig.from_dict(content).vision_config if whole else kind.from_dict(content)
        check_config(config)
    except Exception as error:  # transformers raises many kinds
        said = " ".join(str(error).split())
        raise UserError(f"{key}: {path} is no usable configuration ({said or type(error).__name__})") from None
    return config


def check_config(config: Any) -> None:
    """Whether a model can be built of a LlamaConfig or CLIPVisionConfig: its sizes, and one layer tried without memory.
    Raises UserError, and what transformers raises."""
    for name in SIZES:
        number = getattr(config, name, 1)
        if number is not None and not (type(number) is int and 0 < number <= MOST[name]):
            raise UserError(f"{name} is {number}, no number from 1 to {MOST[name]}")
    heads = config.num_attention_heads
    if heads % (getattr(config, "num_key_value_heads", None) or heads):
        raise UserError(f"num_attention_heads is {heads}, num_key_value_heads {config.num_key_value_heads}")
    small = deepcopy(config)
    small.num_hidden_layers = 1
    with torch.device("meta"):
        if small.model_type == LlamaConfig.model_type:
            LlamaForCausalLM(small)
        else:
            patches = (square(small.image_size) // max(1, square(small.patch_size))) ** 2
            if patches > MOST_PATCHES:
                raise UserError(f"image_size and patch_size make {patches} patches, at most {MOST_PATCHES} are taken")
            CLIPVisionModel(small)


def load_frozen(model: Any, recipe: Recipe, tell: bool = False) -> int:
    """Fill the frozen parameters of `model` from the recipe's folders and return the bytes that this process read for
    it; with `tell` it says how far it is. Nothing is read before all of it is found. Raises UserError listing what is
    missing, left over, of another shape or of a type that is not read, FileNotFoundError for a file that is not there.
    """
    folder, key = recipe.model.language_model, "model.language_model"
    pairs = _matched(model.language, language_tensors(folder, model.language.config), folder, key)
    if model.vision is not None:
        folder, key = recipe.model.vision_tower, "model.vision_tower"
        pairs += _matched(model.vision, vision_tensors(folder, model.vision.config), folder, key)
    return _read(pairs, tell)


def language_tensors(folder: str, config: LlamaConfig) -> dict[str, StoredTensor]:
    """A folder's tensors under the names of backbones/decoder.py. Raises UserError, also where the
    configuration ties embeddings that are two."""
    key = "model.language_model"
    stored = _renamed(folder, key, _language_name)
    rows = config.intermediate_size * config.num_hidden_layers + config.vocab_size
    _check_claim(stored, rows * config.hidden_size, folder, key)
    head, embedding = stored.get("lm_head.weight"), stored.get("embed_tokens.weight")
    if config.tie_word_embeddings and head:
        if embedding and (head.shape != embedding.shape or sampled(head, key) != sampled(embedding, key)):
            raise UserError(
                f"{key}: {folder}/config.json says tie_word_embeddings, but lm_head.weight is another tensor than"
                " embed_tokens.weight; set it to false there"
            )
        del stored["lm_head.weight"]
    return stored


def vision_tensors(folder: str, config: CLIPVisionConfig) -> dict[str, StoredTensor]:
    """A folder's tensors under the names of backbones/vision.py. Raises UserError."""
    key = "model.vision_tower"
    stored = _renamed(folder, key, partial(_vision_name, layers=config.num_hidden_layers))
    rows = config.intermediate_size * (config.num_hidden_layers - 1)
    _check_claim(stored, rows * config.hidden_size, folder, key)
    return stored


def _check_claim(stored: dict[str, StoredTensor], claimed: int, folder: str, key: str) -> None:
    """Whether config.json claims a model many times as large as the files, for which no memory must be taken. What does
    not fit by less is listed name by name later. Raises UserError."""
    held = sum(math.prod(tensor.shape) for tensor in stored.values())
    if claimed > MOST_CLAIMED * max(held, 1):
        raise UserError(
            f"{key}: {folder} does not fit its config.json, which claims {claimed} parameters; the files hold {held}"
        )


def _renamed(folder: str, key: str, our_name: Callable[[str], str | None]) -> dict[str, StoredTensor]:
    """`our_name` turns a name in the files into the module's own, or None for a known extra."""
    if not folder:
        raise UserError(f"{key}: give the folder of its weights")
    return {ours: tensor for name, tensor in folder_tensors(Path(folder), key).items() if (ours := our_name(name))}


def tensor_files(folder: Path, key: str) -> dict[str, Path]:
    """Tensor name -> file that holds it. Raises UserError naming `key`."""
    return {name: tensor.path for name, tensor in folder_tensors(folder, key).items()}


def _matched(
    module: nn.Module, stored: dict[str, StoredTensor], folder: str, key: str
) -> list[tuple[StoredTensor, nn.Parameter]]:
    """Every parameter beside its tensor."""
    parameters = dict(module.named_parameters())  # a tied parameter appears once
    both = sorted(parameters.keys() & stored.keys())
    shapes = {name: (stored[name].shape, whole_shape(parameters[name])) for name in both}
    problems = {
        "missing": sorted(parameters.keys() - stored.keys()),
        "left over": sorted(stored.keys() - parameters.keys()),
        "of another shape": [f"{n} {has} instead of {wants}" for n, (has, wants) in shapes.items() if has != wants],
        f"of a type other than {', '.join(TYPES)}": [
            f"{name} ({stored[name].dtype})" for name in both if stored[name].dtype not in TYPES
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{what}: {some(names)}" for what, names in problems.items() if names)
        raise UserError(f"{key}: {folder} does not fit its config.json; {listed}")
    return [(stored[name], parameters[name]) for name in both]


def _read(pairs: list[tuple[StoredTensor, nn.Parameter]], tell: bool) -> int:
    """In the order of the files, each from its beginning to its end."""
    wanted = [(stored, held_pieces(parameter)) for stored, parameter in pairs]
    wanted.sort(key=lambda each: (each[0].path, each[0].start))
    total = sum(pieces[0][1].numel() * TYPES[stored.dtype].itemsize for stored, pieces in wanted)
    with torch.no_grad(), Reader(total, tell) as reader:
        for stored, (own, *inside) in wanted:
            reader.read(stored, *own)
            for piece in inside:
                _read_beside(reader, stored, own, piece)
    return reader.count


def _read_beside(
    reader: Reader, stored: StoredTensor, own: tuple[int, torch.Tensor], piece: tuple[int, torch.Tensor]
) -> None:
    """hpZ's second piece: what it has in common with the first, which is there already, is not read again."""
    (held, values), (start, into) = own, piece
    low, high = max(held, start), min(held + len(values), start + len(into))
    if low >= high:
        reader.read(stored, start, into)
        return
    reader.read(stored, start, into[: low - start])
    into[low - start : high - start] = values[low - held : high - held]
    reader.read(stored, high, into[high - start :])


def _language_name(name: str) -> str | None:
    if name.endswith("rotary_emb.inv_freq"):  # older files hold this table, which follows from the config
        return None
    return name.removeprefix("model.")


def _vision_name(name: str, layers: int) -> str | None:
    """Files of whole CLIP models hold the text tower too; the last vision block is not used (backbones/vision.py)."""
    if name.startswith(("text_model.", "text_projection.", "visual_projection.", "logit_scale")):
        return None
    name = name.removeprefix("vision_model.").removeprefix("encoder.")
    if name.startswith(f"layers.{layers - 1}.") or name == "embeddings.position_ids":
        return None
    return name
