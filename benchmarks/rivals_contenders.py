"""The contenders of rivals.py: each lays out the same samples in its own way, before the clock runs, and computes their
loss. B samples, L places of a padded row, S supervised tokens, R resolution."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import rivals_published
import torch
from rivals_published import Published
from scienceqa_lengths import Length, draw
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPVisionConfig, LlamaConfig

from dsmemvp.backbones.configs import Configs
from dsmemvp.backbones.partitioned import fill_randomly
from dsmemvp.backbones.vision import normalised
from dsmemvp.building import add_trainables, build_frozen
from dsmemvp.config.methods import method_settings
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import Item
from dsmemvp.data.images import STATISTICS
from dsmemvp.data.packing import by_image, make_batch
from dsmemvp.data.text import EncodedText
from dsmemvp.model import loss_sum


@dataclass(frozen=True)
class Shape:
    """Sizes of the models, the same for all contenders."""

    vocabulary: int
    width: int = 768
    layers: int = 8
    image: int = 224
    """Height and width; patches are of 14 pixels."""
    slots: int = 320
    vision_width: int = 128
    vision_layers: int = 9

    @property
    def patches(self) -> int:
        return (self.image // 14) ** 2

    def language(self) -> Any:
        """LLaMA's proportions, heads of width 64."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.width // 64,
            intermediate_size=self.width * 8 // 3,
            use_cache=False,
        )

    def vision(self) -> Any:
        return CLIPVisionConfig(
            image_size=self.image,
            patch_size=14,
            hidden_size=self.vision_width,
            intermediate_size=4 * self.vision_width,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_width // 64,
        )


class Sample(NamedTuple):
    length: Length
    tokens: torch.Tensor
    """[tokens] int64, from 3 to the last but one of the vocabulary"""
    image: torch.Tensor | None
    """[3, R, R] uint8"""


def samples(shape: Shape, count: int) -> list[Sample]:
    """With ScienceQA's lengths, random tokens and pixels."""
    generator = torch.Generator().manual_seed(1)
    drawn = []
    for length in draw(count):
        tokens = torch.randint(3, shape.vocabulary - 1, (length.tokens,), generator=generator)
        image = torch.randint(256, (3, shape.image, shape.image), dtype=torch.uint8, generator=generator)
        drawn.append(Sample(length, tokens, image if length.image else None))
    return drawn


class Loss(NamedTuple):
    value: torch.Tensor
    places: int
    """Of the language model's sequence, padding included."""
    logits: int
    """Rows of logits."""


class Ours:
    """This package's model, without DeepSpeed; trained weights are of the frozen ones' type, as in a run."""

    name = "dsmemvp"

    def __init__(self, shape: Shape, dtype: torch.dtype):
        recipe = Recipe("benchmark", method=method_settings("memvp", slots=shape.slots))
        configs = Configs(shape.language(), shape.vision())
        self.model: Any = build_frozen(recipe, configs)
        fill_randomly(self.model)
        add_trainables(self.model, recipe, configs)
        self.model.to(dtype)

    def lay_out(self, some: Sequence[Sample]) -> Any:
        encoded = [EncodedText(s.tokens.tolist(), s.length.prompt, False, cue=1) for s in some]
        items = [Item(i, text, s.image) for i, (s, text) in enumerate(zip(some, encoded, strict=True))]
        return make_batch(by_image(items), self.model.vision.config.image_size).batch

    def loss(self, batch: Any) -> Loss:
        logits_SV, _ = self.model(batch)
        value = loss_sum(logits_SV, batch.targets) / batch.targets.numel()
        return Loss(value, batch.tokens.numel(), logits_SV.shape[0])


class PublishedStructure:
    """rivals_published.py"""

    name = "published structure"

    def __init__(self, shape: Shape, dtype: torch.dtype):
        self.model = Published(shape.language(), shape.vision(), shape.slots, dtype)
        fill_randomly(self.model.language)
        fill_randomly(self.model.vision)
        for layer in self.model.vision.layers:
            nn.init.zeros_(layer.adapter["up"].weight)
        self.dtype, self.side = dtype, shape.image

    def lay_out(self, some: Sequence[Sample]) -> Any:
        tokens_BL, targets_BL = _padded(some, rivals_published.IGNORED)
        images_B3RR = torch.zeros(len(some), 3, self.side, self.side, dtype=self.dtype)
        for row, sample in enumerate(some):
            if sample.image is not None:
                images_B3RR[row] = _pixels(sample.image)
        return tokens_BL, images_B3RR, torch.tensor([s.length.image for s in some]), targets_BL

    def loss(self, batch: Any) -> Loss:
        *inputs, targets_BL = batch
        value = rivals_published.loss(self.model(*inputs), targets_BL)
        return Loss(value, targets_BL.numel(), targets_BL.numel())


class LlavaLora:
    """transformers' Llava with peft's LoRA of its usual size on the language model, and the projector trained."""

    name = "Llava + peft"

    def __init__(self, shape: Shape, dtype: torch.dtype):
        from peft import LoraConfig, get_peft_model
        from transformers import LlavaConfig, LlavaForConditionalGeneration

        self.image_token, self.patches = shape.vocabulary - 1, shape.patches
        config = LlavaConfig(
            text_config=shape.language(),
            vision_config=shape.vision(),
            image_token_index=self.image_token,
            image_seq_length=self.patches,
        )
        base: Any = LlavaForConditionalGeneration(config)
        lora = LoraConfig(
            r=8,
            lora_alpha=16,
            lora_dropout=0.1,
            target_modules=r".*language_model.*\.(q_proj|v_proj)",
            modules_to_save=["multi_modal_projector"],
        )
        self.model: Any = get_peft_model(base.to(dtype), lora, autocast_adapter_dtype=False).train()
        self.dtype = dtype

    def lay_out(self, some: Sequence[Sample]) -> Any:
        """As transformers' processor and a collator of its users: a place for every patch behind BOS."""
        placed = [self._with_places(sample) for sample in some]
        tokens_BL, labels_BL = _padded(placed, -100)
        lengths_B1 = torch.tensor([s.length.tokens for s in placed])[:, None]
        pixels = [_pixels(s.image) for s in some if s.image is not None]
        return {
            "input_ids": tokens_BL,
            "attention_mask": (torch.arange(tokens_BL.shape[1]) < lengths_B1).long(),
            "labels": labels_BL,
            "pixel_values": torch.stack(pixels).to(self.dtype) if pixels else None,
        }

    def loss(self, batch: Any) -> Loss:
        found = self.model(**batch)
        return Loss(found.loss, batch["input_ids"].numel(), found.logits.shape[0] * found.logits.shape[1])

    def _with_places(self, sample: Sample) -> Sample:
        if sample.image is None:
            return sample
        places = torch.full((self.patches,), self.image_token)
        length = sample.length
        longer = length._replace(tokens=length.tokens + self.patches, prompt=length.prompt + self.patches)
        return sample._replace(length=longer, tokens=torch.cat([sample.tokens[:1], places, sample.tokens[1:]]))


RIVALS: dict[str, Any] = {"published": PublishedStructure, "llava": LlavaLora}


def _padded(some: Sequence[Sample], ignored: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and targets [B, L], on the right filled up with 0 and `ignored`; prompts are ignored, too."""
    targets = [s.tokens.clone() for s in some]
    for sample, target in zip(some, targets, strict=True):
        target[: sample.length.prompt] = ignored
    tokens_BL = pad_sequence([s.tokens for s in some], batch_first=True)
    return tokens_BL, pad_sequence(targets, batch_first=True, padding_value=ignored)


def _pixels(image: torch.Tensor) -> torch.Tensor:
    return normalised(image, *STATISTICS["imagenet"])
