"""`dsmemvp export --peft`: input_space's LoRA as a folder that `peft` loads onto transformers' model of the base.

    FOLDER/adapter_config.json         peft's LoraConfig
           adapter_model.safetensors   A and B of every layer, under peft's names

The projector of image features has no place in it, nor have vision adapters: with the folder alone the language model
answers texts. `dsmemvp export --out` keeps all of it.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from dsmemvp.config.hub import repository_of
from dsmemvp.config.recipe import Recipe
from dsmemvp.errors import UserError

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
OURS = re.compile(r"language\.(layers\.\d+\.\w+\.\w+)\.lora_([ab])\.weight")


def write_peft(folder: Path, recipe: Recipe, trained: dict[str, torch.Tensor]) -> str:
    """-> a line about it. `trained` are all tensors of a checkpoint. Raises UserError if there is no LoRA among them or
    the folder holds other things, OSError."""
    found = {match: tensor for name, tensor in trained.items() if (match := OURS.fullmatch(name))}
    if not found:
        raise UserError(f"--peft: method {recipe.method.name} trains no LoRA on the language model; input_space does")
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - {CONFIG, TENSORS}):
        raise UserError(f"{folder} is there already and holds other things than a PEFT adapter; give another one")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.model.{match[1]}.lora_{match[2].upper()}.weight": tensor.contiguous()
        for match, tensor in found.items()
    }
    method = recipe.method
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": repository_of(recipe.model.language_model),
        "r": method.lora_rank,
        "lora_alpha": method.lora_alpha,
        "lora_dropout": method.dropout,
        "target_modules": sorted(method.lora_targets),
        "bias": "none",
        "inference_mode": True,
    }
    save_file(tensors, folder / TENSORS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    left = sorted({name.split(".")[0] for name in trained} - {"language"})
    beside = f"; without what was trained beside the language model ({', '.join(left)})" if left else ""
    return f"{sum(t.numel() for t in tensors.values()):,} parameters of LoRA -> {folder}{beside}"
