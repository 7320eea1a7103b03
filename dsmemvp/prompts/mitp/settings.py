"""MITP's keys, and at which blocks it acts."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass

from dsmemvp.config.fields import CONFIG, FROM_TEXT, Blocks, Factor, Text, Width
from dsmemvp.config.methods import MethodSettings
from dsmemvp.counting import counted
from dsmemvp.data.text import CUE
from dsmemvp.errors import UserError
from dsmemvp.prompts.interface import Sizes

POINTS = 5
"""Text points that are taken by default, in a decoder deep enough."""


@dataclass(config=CONFIG)
class Settings(MethodSettings):
    prompt_len: Annotated[int, Field(ge=1, le=2**10)] = 8
    """Prompts in each tower: slots in the sequence, and tokens before the vision tower's."""
    prompt_std: Factor = 0.02
    """Standard deviation of the first text prompts' initial values."""
    text_points: Blocks = field(default_factory=list)
    """Blocks of the language model, from 0, that the slots are written into, increasing. None given: five, from the
    middle to the last one, such as 16, 20, 24, 28, 31 of 32."""
    vision_points: Blocks = field(default_factory=list)
    """Blocks of the vision tower that see prompts, increasing: one fewer than text points. None given: spread over the
    upper half up to the last one that is run, such as 13, 16, 19, 22 of CLIP ViT-L/14's 24."""
    rank: Width = 128
    """Width in which the hub compares and mixes."""
    tau: Annotated[float, Field(gt=0, le=1000), FROM_TEXT] = 0.1
    """Temperature that a cosine is divided by."""
    sim: Literal["cos", "dot"] = "cos"
    """Similarity: the cosine / tau, or the product / sqrt(rank)."""
    activation: Literal["gelu", "none"] = "gelu"
    """On what the hub has mixed."""
    carry: bool = True
    """Whether the hub adds to the prompts as a block has left them (true), or to the first ones."""
    hub: Literal["similarity", "uniform", "off"] = "similarity"
    """Weights of the hub: by similarity, or 1 / prompt_len; `off`: prompts are passed on as they are, images unseen."""
    vision: Literal["two_way", "cached"] = "two_way"
    """`two_way`: prompts in both towers; `cached`: learned queries read what the unchanged vision tower gives."""
    cue: Text = CUE
    """What stands between the slots and the answer: the end of every prompt. It must not be empty, since the place
    before the answer predicts its first token, which a slot cannot: it was written anew at the last text point."""

    @field_validator("cue")
    @classmethod
    def _real(cls, cue: str) -> str:
        if not cue:
            raise ValueError(
                f"must not be empty: a slot cannot predict the answer's first token; {CUE!r} ends a prompt"
            )
        if cue != CUE:
            raise ValueError(f"must be {CUE!r}, which ends every prompt, not {cue[:80]!r}")
        return cue


@dataclass
class Points:
    """Blocks of the two towers, from 0. The r-th vision point meets the r-th text point; the last text point has no
    partner."""

    text: tuple[int, ...]
    vision: tuple[int, ...]


def points_of(settings: Settings, sizes: Sizes) -> Points:
    """Raises UserError for points that the towers do not have, or that do not go together."""
    text, vision = tuple(settings.text_points), tuple(settings.vision_points)
    if not text:
        most = (len(vision) or min(POINTS - 1, sizes.vision_blocks)) + 1
        text = _text_points(sizes.decoder_blocks, most)
    if len(text) < 2:
        raise UserError(
            f"method.text_points: two are needed, for the prompts of one to be read at the next; here is"
            f" {counted(len(text), 'point')} in {counted(sizes.decoder_blocks, 'block')}"
        )
    if text[-1] >= sizes.decoder_blocks:
        raise UserError(
            f"method.text_points: the language model has no block {text[-1]}; they run from 0 to"
            f" {sizes.decoder_blocks - 1}"
        )
    if not vision and len(text) - 1 <= sizes.vision_blocks:
        vision = _vision_points(sizes.vision_blocks, len(text) - 1)
    if len(vision) != len(text) - 1:
        raise UserError(
            f"method.vision_points: {counted(len(vision), 'point')} in the vision tower for the"
            f" {len(text)} of method.text_points, which need {len(text) - 1}: the last one has no partner"
        )
    if vision[-1] >= sizes.vision_blocks:
        raise UserError(
            f"method.vision_points: block {vision[-1]} of the vision tower is not run; they run from 0 to"
            f" {sizes.vision_blocks - 1}"
        )
    return Points(text, vision)


def _text_points(depth: int, most: int) -> tuple[int, ...]:
    """From the middle to the last block; in a shallow one from the second to last."""
    first = min(depth // 2, max(depth - 2, 0))
    even = {min(first + n * (depth - first) // (POINTS - 1), depth - 1) for n in range(POINTS)}
    return tuple(sorted(even)[-most:])


def _vision_points(depth: int, number: int) -> tuple[int, ...]:
    """An eighth of the depth apart, up to the last block."""
    step = max(1, min(round(depth / 8), (depth - 1) // max(number - 1, 1)))
    return tuple(depth - 1 - step * n for n in reversed(range(number)))
