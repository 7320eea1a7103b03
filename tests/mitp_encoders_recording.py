"""The recorded numbers of MITP with two encoders (mitp_encoders_reference.safetensors) as a recipe, a model and batches
of ours."""

from pathlib import Path

import torch
from recording import Recording
from transformers import BertConfig, ViTConfig

from dsmemvp.config.methods import method_settings
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import Batch, Item, Labels
from dsmemvp.data.layout import Reserved
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText

FILE = Path("reference") / "mitp_encoders_reference.safetensors"
SAMPLES = (0, 1, 2, 3)


class EncodersRecording(Recording):
    file = FILE

    def write(self) -> None:
        spec = self.spec
        sizes = {"hidden_size": spec["width"], "num_hidden_layers": spec["blocks"]}
        sizes |= {"num_attention_heads": spec["heads"], "intermediate_size": spec["intermediate"]}
        text = BertConfig(
            **sizes,
            vocab_size=spec["vocab_size"],
            max_position_embeddings=spec["max_positions"],
            layer_norm_eps=spec["bert_eps"],
        )
        vision = ViTConfig(
            **sizes,
            image_size=spec["image_size"],
            patch_size=spec["patch_size"],
            layer_norm_eps=spec["vit_eps"],
            hidden_act=spec["hidden_act"],
        )
        for part, config in (("text", text), ("vision", vision)):
            named = {n.removeprefix(f"{part}."): t for n, t in self.tensors.items() if n.startswith(f"{part}.")}
            self.write_part(part, config, named)

    def recipe(self, **settings) -> Recipe:
        recipe = Recipe(name="reference", output=str(self.folder))
        recipe.model.language_model, recipe.model.vision_tower = (str(self.folder / p) for p in ("text", "vision"))
        recipe.model.dtype = "fp32"
        recipe.vision.adapter_dim, recipe.data.max_length = 0, self.spec["max_positions"]
        given = {name: self.spec[name] for name in ("prompt_len", "points", "tau", "classes")}
        recipe.method = method_settings("mitp_encoders", **given | settings)
        return recipe

    def trained(self) -> dict[str, torch.Tensor]:
        return {_ours(n, "trainable."): t for n, t in self.tensors.items() if n.startswith("trainable.")}

    def gradients(self, several: bool = False) -> dict[str, torch.Tensor]:
        beginning = "grad_binary." if several else "grad."
        return {_ours(n, beginning): t for n, t in self.tensors.items() if n.startswith(beginning)}

    def items(self, samples: tuple[int, ...] = SAMPLES, several: bool = False) -> list[Item]:
        items = []
        for b in samples:
            tokens = self.tensors["in.input_ids"][b, self.tensors["in.attention_mask"][b].bool()].tolist()
            several_labels = tuple(self.tensors["in.multi_label"][b].nonzero()[:, 0].tolist())
            labels = several_labels if several else (int(self.tensors["in.label"][b]),)
            text = EncodedText(tokens, len(tokens), False, bos=0)
            items.append(Item(b, text, self.tensors["in.pixel_values"][b], labels=labels))
        return items

    def batch(self, samples: tuple[int, ...] = SAMPLES, several: bool = False, prompts: bool = True) -> Batch:
        return self.pack(self.items(samples, several), several, prompts)

    def pack(self, items: list[Item], several: bool = False, prompts: bool = True) -> Batch:
        reserved = [self.reserved] if prompts else []
        return make_batch(items, self.spec["image_size"], reserved, labels=Labels(self.spec["classes"], several)).batch

    @property
    def reserved(self) -> Reserved:
        return Reserved("prompts", self.spec["prompt_len"], "start", without_image=True)


def _ours(name: str, beginning: str) -> str:
    name = name.removeprefix(beginning)
    return f"method.classifier.{name}" if name.startswith("head") else f"method.{name}"
