"""Read what the files of a folder hold of a tower, under the names of the tower's parameters.

A name that this does not know stays as it is and is then found to be left over (filling.py).
"""

import math
from dataclasses import replace
from typing import Any

from dsmemvp.backbones.reading import sampled
from dsmemvp.backbones.safetensors_file import StoredTensor
from dsmemvp.backbones.vision_families import VisionFamily, built_blocks, vision_family
from dsmemvp.errors import UserError

Stored = dict[str, StoredTensor]
MOST_CLAIMED = 16
"""Times the parameters in the files that a config.json may claim."""


def decoder_tensors(files: Stored, config: Any, folder: str, key: str) -> Stored:
    """Under the names of backbones/decoder.py. Raises UserError, also if the configuration ties embeddings that are
    two."""
    # older files hold the table of rotary frequencies, which follows from the configuration
    stored = _once(
        [{name.removeprefix("model."): t} for name, t in files.items() if not name.endswith("rotary_emb.inv_freq")],
        folder,
        key,
    )
    rows = config.intermediate_size * config.num_hidden_layers + config.vocab_size
    _check_claim(stored, rows * config.hidden_size, folder, key)
    head, embedding = stored.get("lm_head.weight"), stored.get("embed_tokens.weight")
    if config.tie_word_embeddings and head:
        if embedding and (head.shape != embedding.shape or len(set(sampled([head, embedding], key))) > 1):
            raise UserError(
                f"{key}: {folder}/config.json says tie_word_embeddings, but lm_head.weight is another tensor than"
                " embed_tokens.weight; set it to false there"
            )
        del stored["lm_head.weight"]
    return stored


def encoder_tensors(files: Stored, config: Any, folder: str, key: str) -> Stored:
    """Under the names of backbones/text_encoder.py: pooler and heads are left out. Raises UserError."""
    named = []
    for name, tensor in files.items():
        name = name.removeprefix("bert.").replace("encoder.layer.", "layers.", 1)
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if not name.startswith(("pooler.", "cls.", "classifier.", "embeddings.position_ids")):
            named.append({name: tensor})
    stored = _once(named, folder, key)
    rows = config.intermediate_size * config.num_hidden_layers + config.vocab_size
    _check_claim(stored, rows * config.hidden_size, folder, key)
    return stored


def vision_tensors(files: Stored, config: Any, folder: str, key: str, block: int = 0) -> Stored:
    """Under the names of backbones/vision.py; `block` is that of VisionFeatures. Raises UserError."""
    family = vision_family(config)
    built = built_blocks(config, block)
    beyond = tuple(f"layers.{n}." for n in range(built, config.num_hidden_layers))
    named = [_our_names(name, t, family) for name, t in files.items() if not name.startswith(family.not_loaded)]
    stored = {name: t for name, t in _once(named, folder, key).items() if not name.startswith(beyond)}
    stored.pop("embeddings.position_ids", None)  # in older files: they number the patches
    rows = getattr(config, "intermediate_size", None) or int(config.hidden_size * config.mlp_ratio)
    _check_claim(stored, rows * built * config.hidden_size, folder, key)
    return stored


def _once(named: list[Stored], folder: str, key: str) -> Stored:
    """All in one. Raises UserError for two tensors of one name: which one is meant cannot be known."""
    found: Stored = {}
    for tensors in named:
        for name, tensor in tensors.items():
            if name in found:
                raise UserError(f"{key}: {folder} holds {name} twice, with and without a prefix; take one of them out")
            found[name] = tensor
    return found


def _our_names(name: str, tensor: StoredTensor, family: VisionFamily) -> Stored:
    for theirs, ours in family.stored_names.items():
        name = name.replace(theirs, ours, 1)
    for theirs, (first, second) in family.stored_halves.items():
        if theirs in name and tensor.shape and tensor.shape[0] % 2 == 0:
            shape, middle = (tensor.shape[0] // 2, *tensor.shape[1:]), (tensor.start + tensor.stop) // 2
            return {
                name.replace(theirs, first): replace(tensor, shape=shape, stop=middle),
                name.replace(theirs, second): replace(tensor, shape=shape, start=middle),
            }
    return {name: tensor}


def _check_claim(stored: Stored, claimed: int, folder: str, key: str) -> None:
    """Whether config.json claims a model many times as large as the files, for which no memory must be taken. What does
    not fit by less is listed name by name later. Raises UserError."""
    held = sum(math.prod(tensor.shape) for tensor in stored.values())
    if claimed > MOST_CLAIMED * max(held, 1):
        raise UserError(
            f"{key}: {folder} does not fit its config.json, which claims {claimed} parameters; the files hold {held}"
        )
