"""Vision tower + visual prompting method + language model: the module that is trained.

Building is in two phases, so that the frozen part can be partitioned and loaded by itself: `build_frozen`, then
`add_trainables`, which draws the trainable values from the recipe's seed.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, LlamaConfig

from dsmemvp.backbones.language import LanguageModel, Step
from dsmemvp.backbones.vision import VisionTower, image_tokens, square
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import Batch
from dsmemvp.prompts import Sizes, VisualPrompt, build_method
from dsmemvp.prompts.interface import State


@dataclass(frozen=True)
class Configs:
    language: LlamaConfig
    vision: CLIPVisionConfig

    @property
    def resolution(self) -> int:
        """Height and width of the vision tower's input."""
        return square(self.vision.image_size)

    @property
    def sizes(self) -> Sizes:
        return Sizes(image_tokens(self.vision), self.vision.hidden_size, self.language.hidden_size)


class VisualLanguageModel(nn.Module):
    """A batch -> float32 logits [S, vocabulary] at its supervised places."""

    def __init__(self, configs: Configs, sees_images: bool):
        super().__init__()
        self.vision = VisionTower(configs.vision) if sees_images else None
        self.language = LanguageModel(configs.language)
        self.method = VisualPrompt()

    def forward(self, batch: Batch, step: Step | None = None) -> Any:
        """-> the logits; for a step of decoding, (logits, what its later steps take as their `state`)."""
        if step is None:
            return self.language(batch, self.see(batch), self.method)
        state = self.see(batch) if step.state is None else step.state
        return self.language(batch, state, self.method, step), self.method.for_later_steps(state)

    def see(self, batch: Batch) -> State:
        """What the method makes of the batch's images."""
        features = None
        if self.vision is not None:
            images = batch.images
            if images.shape[0] == 0:
                # every rank runs the same modules in every micro-step; the method gives the dummy row weight zero
                images = images.new_zeros(1, *images.shape[1:])
            features = self.vision(images.to(self.vision.pre_layrnorm.weight.dtype))
        return self.method(features, batch)

    def trainables(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def loss_sum(logits_SV: torch.Tensor, targets_S: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over supervised tokens, float32."""
    return F.cross_entropy(logits_SV, targets_S, reduction="sum")


def build_frozen(recipe: Recipe, configs: Configs) -> VisualLanguageModel:
    """The model without anything trainable, on torch's default device and in its default type."""
    model = VisualLanguageModel(configs, sees_images=recipe.method.name != "none")
    return model.requires_grad_(False)


def build_empty(recipe: Recipe, configs: Configs, device: torch.device) -> VisualLanguageModel:
    """As `build_frozen`, with parameters on the meta device, which take no memory and no time, and all else on
    `device`."""
    with torch.device("meta"):
        model = build_frozen(recipe, configs)
    if model.vision is not None:  # its numbering of patches is computed, not loaded
        embeddings: Any = model.vision.embeddings
        embeddings.position_ids = torch.arange(embeddings.num_positions, device=device)[None]
    empty = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    assert not empty, f"buffers without values: {empty}"
    return model


def add_trainables(model: VisualLanguageModel, recipe: Recipe, configs: Configs) -> None:
    """Attach the method and the vision adapters, the same values on every rank and for any number of ranks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model.method = build_method(recipe.method, configs.sizes)
        if model.vision is not None:
            model.vision.add_adapters(recipe.vision)
        model.language.apply_replacements(model.method)
    for part in (model.language, model.vision):
        if part is not None:
            part.recompute = recipe.training.recompute == "full"


def trainable_shapes(recipe: Recipe, configs: Configs) -> dict[str, tuple[int, ...]]:
    """Of every trainable tensor by its name, without memory."""
    with torch.device("meta"):
        model = build_frozen(recipe, configs)
        add_trainables(model, recipe, configs)
    return {name: tuple(p.shape) for name, p in model.trainables().items()}


def count(recipe: Recipe, configs: Configs) -> tuple[int, int]:
    """(trainable parameters, frozen parameters of the language model), counted without memory."""
    with torch.device("meta"):
        model = build_frozen(recipe, configs)
        frozen = sum(p.numel() for p in model.language.parameters())
        add_trainables(model, recipe, configs)
    return sum(p.numel() for p in model.trainables().values()), frozen
