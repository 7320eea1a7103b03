"""The recorded numbers of MITP's port to CLIP and LLaMA (mitp_reference.safetensors) as a recipe, a model and batches
of ours."""

from pathlib import Path

import torch
from recording import Recording
from transformers import CLIPVisionConfig, LlamaConfig

from dsmemvp.config.methods import method_settings
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import Batch, Item
from dsmemvp.data.layout import Reserved
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText

FILE = Path("reference") / "mitp_reference.safetensors"
SAMPLES = (0, 1, 2, 3)


class MitpRecording(Recording):
    file = FILE

    def write(self) -> None:
        for part, before, after, config in (
            ("language", "language.", "", LlamaConfig(**self.spec["language"])),
            ("vision", "vision.", "vision_model.", CLIPVisionConfig(**self.spec["vision"])),
        ):
            named = {after + n.removeprefix(before): t for n, t in self.tensors.items() if n.startswith(before)}
            self.write_part(part, config, named)

    def recipe(self, **settings) -> Recipe:
        recipe = Recipe(name="reference", output=str(self.folder))
        recipe.model.language_model, recipe.model.vision_tower = (str(self.folder / p) for p in ("language", "vision"))
        recipe.model.dtype = "fp32"
        recipe.vision.adapter_dim = 0
        given = {name: self.spec[name] for name in ("prompt_len", "rank", "tau", "text_points", "vision_points")}
        recipe.method = method_settings("mitp", **given | settings)
        return recipe

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
