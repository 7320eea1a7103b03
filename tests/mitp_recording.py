"""The recorded numbers of MITP's port to CLIP and LLaMA (mitp_reference.safetensors) as a recipe, a model and batches
of ours."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig

from dsmemvp.backbones.weights import Base, read_configs
from dsmemvp.config.methods import method_settings
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import Batch, Item, Reserved, make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.model import VisualLanguageModel, add_trainables, build_frozen

FILE = Path("reference") / "mitp_reference.safetensors"
SAMPLES = (0, 1, 2, 3)


class MitpRecording:
    """`folder` receives the frozen weights in Hugging Face layout."""

    def __init__(self, shared: Path, folder: Path):
        self.tensors, self.folder = load_file(shared / FILE), folder
        with safe_open(shared / FILE, "pt") as file:
            self.spec = json.loads(file.metadata()["spec"])

    def write(self) -> None:
        for part, before, after, config in (
            ("language", "language.", "", LlamaConfig(**self.spec["language"])),
            ("vision", "vision.", "vision_model.", CLIPVisionConfig(**self.spec["vision"])),
        ):
            folder = self.folder / part
            folder.mkdir(parents=True)
            config.save_pretrained(folder)
            named = {after + n.removeprefix(before): t for n, t in self.tensors.items() if n.startswith(before)}
            save_file(named, folder / "model.safetensors")

    def recipe(self, **settings) -> Recipe:
        recipe = Recipe(name="reference", output=str(self.folder))
        recipe.model.language_model, recipe.model.vision_tower = (str(self.folder / p) for p in ("language", "vision"))
        recipe.model.dtype = "fp32"
        recipe.vision.adapter_dim = 0
        given = {name: self.spec[name] for name in ("prompt_len", "rank", "tau", "text_points", "vision_points")}
        recipe.method = method_settings("mitp", **given | settings)
        return recipe

    def model(self, dtype: torch.dtype = torch.float32, **settings) -> VisualLanguageModel:
        recipe = self.recipe(**settings)
        configs = read_configs(recipe)
        model = build_frozen(recipe, configs)
        Base(recipe).load(model)
        add_trainables(model, recipe, configs)
        trained = self.trained()
        for name, parameter in model.trainables().items():
            parameter.data.copy_(trained[name])
        return model.to(dtype)

    def trained(self) -> dict[str, torch.Tensor]:
        values = {_ours(n, "trainable."): t for n, t in self.tensors.items() if n.startswith("trainable.")}
        return values | {"method.queries.weight": self.tensors["variant.vision_cached.queries"]}

    def gradients(self) -> dict[str, torch.Tensor]:
        return {_ours(n, "grad."): t for n, t in self.tensors.items() if n.startswith("grad.")}

    def items(self, samples: tuple[int, ...] = SAMPLES, answers: bool = True, images: bool = True) -> list[Item]:
        items = []
        for b in samples:
            body, tail, answer = (self._tokens(part, b) for part in ("body", "tail", "answer"))
            text = EncodedText(
                [*body, *tail, *(answer if answers else [])], len(body) + len(tail), False, cue=len(tail)
            )
            has_image = images and self.tensors["in.has_image"][b]
            items.append(Item(b, text, self.tensors["in.pixel_values"][b] if has_image else None))
        return items

    def batch(self, samples: tuple[int, ...] = SAMPLES, images: bool = True) -> Batch:
        return make_batch(self.items(samples, images=images), self.spec["vision"]["image_size"], [self.reserved]).batch

    @property
    def reserved(self) -> Reserved:
        return Reserved("prompts", self.spec["prompt_len"], "before_cue", without_image=True)

    def rows(self, name: str, samples: tuple[int, ...] = SAMPLES) -> torch.Tensor:
        """Of a recorded tensor over supervised tokens, those of these samples, in the order given."""
        of = self.tensors["out.logits_sample"]
        return torch.cat([self.tensors[name][of == b] for b in samples])

    def _tokens(self, part: str, sample: int) -> list[int]:
        return self.tensors[f"in.{part}_ids"][sample, : self.tensors[f"in.{part}_len"][sample]].tolist()


def _ours(name: str, beginning: str) -> str:
    name = name.removeprefix(beginning)
    return f"method.{name}" if name == "text_prompt" else f"method.hub.{name}"
