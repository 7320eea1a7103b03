"""A Hugging Face folder whose weights lie in pytorch_model*.bin, as those of older ones do -> tensors under the names
that its safetensors would have."""

from pathlib import Path

from transformers import CLIPConfig, CLIPVisionConfig, LlamaConfig, PretrainedConfig

from dsmemvp.backbones.configs import folder_config
from dsmemvp.config.yaml_text import shown
from dsmemvp.convert.files import tensors_in
from dsmemvp.convert.lazy import Tensors
from dsmemvp.errors import UserError
from dsmemvp.json_text import read_json

WEIGHTS = "pytorch_model*.bin"
BESIDE = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""What goes along to the new folder."""
CONVERTED = (LlamaConfig, CLIPVisionConfig, CLIPConfig)
NOT_LOADED = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
"""What a whole CLIP holds beside its vision tower."""


def is_torch_folder(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob(WEIGHTS))


def torch_folder_model(folder: Path) -> tuple[str, Tensors, PretrainedConfig, list[Path]]:
    """ "language_model" or "vision_tower", its tensors and configuration, and the files beside. Raises
    UserError."""
    tensors: Tensors = {}
    for path in sorted(folder.glob(WEIGHTS)):
        tensors |= tensors_in(path)
    beside = [folder / name for name in BESIDE if (folder / name).is_file()]
    kind = _model_type(folder)
    if kind is not None and kind != LlamaConfig.model_type and "clip" not in kind:
        raise UserError(f"source: {folder / 'config.json'} is of a {shown(kind)} model, neither LLaMA nor CLIP")
    language = kind == LlamaConfig.model_type
    config = folder_config(str(folder), "source", {each.model_type: each for each in CONVERTED})
    if language:
        kept = {name: t for name, t in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
        if config.tie_word_embeddings:
            kept.pop("lm_head.weight", None)
        return "language_model", kept, config, beside
    tower = {name.removeprefix("vision_model."): t for name, t in tensors.items() if not name.startswith(NOT_LOADED)}
    tower.pop("embeddings.position_ids", None)
    return "vision_tower", tower, config, []


def _model_type(folder: Path) -> str | None:
    """What config.json calls it; None if that cannot be read, which folder_config says better."""
    try:
        content = read_json(folder / "config.json")
    except ValueError:
        return None
    kind = content.get("model_type") if isinstance(content, dict) else None
    return kind if isinstance(kind, str) else None
