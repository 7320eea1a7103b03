"""Questions and pictures -> answers in text: what `dsmemvp generate` and `dsmemvp.load` use."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from dsmemvp.checkpoints.loading import LoadedRun, load_run
from dsmemvp.data.batch import Item
from dsmemvp.data.letters import longest_letter
from dsmemvp.data.packing import make_batch
from dsmemvp.data.sample import Sample, is_text
from dsmemvp.data.text import LETTER, EncodedText, chosen, encode_for_answer
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.distributed.ranks import Ranks, own_device
from dsmemvp.errors import UserError
from dsmemvp.generation.decoder import build_decoder
from dsmemvp.generation.generate import Sampling, generate, once
from dsmemvp.inputs import open_inputs
from dsmemvp.prompts.interface import State
from dsmemvp.training.inference import open_for_inference

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
"""Of Pillow's images, those that a PNG holds as they are."""


@dataclass(frozen=True)
class Picture:
    """An image as the model has seen it."""

    pixels: torch.Tensor
    """[3, R, R] uint8"""
    state: State | None
    """What the method made of it, once for all questions; None if every forward makes it: with weights that are cut
    over ranks, or a method that runs the decoder's blocks among the vision tower's."""


class Answerer:
    """A trained model that answers questions. Without `ranks` this process holds the whole model, on its own device;
    the ranks of a launcher hold it as the recipe's training.deepspeed says, and must all ask the same."""

    def __init__(self, run: LoadedRun, ranks: Ranks | None = None):
        recipe, whole, ranks = run.recipe, ranks is None, ranks or Ranks(0, 1, own_device())
        if recipe.method.classifies():
            raise UserError(f"method.name: {recipe.method.name} classifies and writes no text; use dsmemvp evaluate")
        opened = open_for_inference(
            recipe, ranks, run.checkpoint, whole, open_inputs(recipe, run.base, run.checkpoint.state.stage)
        )
        self._tokenizer, self._transform = Tokenizer(recipe.model.tokenizer), opened.collator.image
        self._max_length, self._method = recipe.data.max_length, recipe.method.name
        self._model = opened.model
        self._decoder = build_decoder(opened.model, opened.forward, ranks, self._tokenizer.eos)
        self._whole = whole

    def see(self, image: str | Path | bytes | Image.Image) -> Picture:
        """Look at a picture: a file, an encoded image, or Pillow's. Raises OSError or UserError."""
        if self._model.vision is None:
            raise UserError(f"method.name: {self._method!r} looks at no images")
        where = str(image) if isinstance(image, str | Path) else "image"
        pixels = self._transform(encoded(image), where)
        if not self._whole:
            return Picture(pixels, None)
        items = [Item(0, EncodedText([0], 1, False, cue=1), pixels)]
        prompt = make_batch(items, self._transform.resolution, self._model.method.reserved())
        with torch.no_grad():
            return Picture(pixels, self._model.look(prompt.batch.to(self._decoder.device)))

    def answer(
        self,
        questions: str | Sequence[str],
        picture: Picture | str | Path | bytes | Image.Image | None = None,
        *,
        choices: Sequence[str] = (),
        context: str = "",
        free: bool = False,
        **sampling: Any,
    ) -> Any:
        """The answer to a question, or a list of them to several; `sampling` as in `Sampling`. A picture that was not
        given to `see` before is looked at for this call alone.

        The prompt is that of training. An answer follows "The answer is", which is left out with the full stop at its
        end; with `free` it stands by itself, as captions and conversations were trained. With `choices` it is one of
        these, or empty if the model names none of their letters. Raises UserError."""
        if isinstance(questions, str):
            return self.answer([questions], picture, choices=choices, context=context, free=free, **sampling)[0]
        samples, settings = check_asked(questions, choices, context, free, **sampling)
        if choices and "max_new_tokens" not in sampling:
            needed = longest_letter(self._tokenizer, len(choices))
            settings = replace(settings, max_new_tokens=max(settings.max_new_tokens, needed))
        if picture is not None and not isinstance(picture, Picture):
            picture = self.see(picture)
        prompts = [encode_for_answer(self._tokenizer, s, captions=False, most=self._max_length) for s in samples]
        pixels = picture.pixels if picture else None
        items = [Item(i, text, pixels) for i, text in enumerate(prompts)]
        batch = make_batch(items, self._transform.resolution, self._model.method.reserved(), last_only=True)
        done = once(LETTER, self._tokenizer) if choices else None
        tokens = generate(self._decoder, batch, settings, done, picture.state if picture else None)
        texts = [self._tokenizer.decode(new).strip() for new in tokens]
        if choices:
            return [_choice(text, choices) for text in texts]
        return texts if free else [text.removesuffix(".") for text in texts]


def load(folder: str | Path, checkpoint: str | Path | None, overrides: Mapping[str, Any]) -> Answerer:
    """The model of a folder that load_run knows, on this process's own device, whole; `overrides` are keys of its
    recipe. Raises UserError."""
    given = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    return Answerer(load_run(folder, given, checkpoint))


def check_asked(
    questions: Sequence[str], choices: Sequence[str], context: str, free: bool, **sampling: Any
) -> tuple[list[Sample], Sampling]:
    """What `answer` is asked, ready to be answered. Raises UserError."""
    if free and choices:
        raise UserError("free and choices exclude each other: a choice is a letter")
    samples = [_sample(question, choices, context, free) for question in questions]
    return samples, Sampling(**{**({"max_new_tokens": 4} if choices else {}), **sampling})


def _sample(question: str, choices: Sequence[str], context: str, free: bool) -> Sample:
    if not question.strip():
        raise UserError("a question has no words")
    for text in (question, context, *choices):
        if not is_text(text):
            raise UserError(f"{text!r} is not text that UTF-8 can write")
    if isinstance(choices, str):
        raise UserError("choices: give a list of texts")
    if len(choices) > 26:
        raise UserError(f"{len(choices)} choices: at most 26 have letters, A to Z")
    scores = {"task": "conversation"} if free else {}
    return Sample(question, 0, tuple(choices), context, scores=scores, where=f"question {question[:40]!r}")


def _choice(text: str, choices: Sequence[str]) -> str:
    number = chosen(text, len(choices))
    return "" if number is None else choices[number]


def encoded(image: str | Path | bytes | Image.Image) -> bytes:
    """As a file holds it. Raises UserError, or TypeError for what is no picture."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        path = Path(image)
        if not path.is_file():
            raise UserError(f"image {path} {'is a folder; give a file' if path.is_dir() else 'does not exist'}")
        return path.read_bytes()
    if not isinstance(image, Image.Image):
        raise TypeError(f"a picture is a path, an encoded image or one of Pillow's, not a {type(image).__name__}")
    out = io.BytesIO()
    image = ImageOps.exif_transpose(image)  # as a file of it is seen; PNG would lose how it is to be turned
    (image if image.mode in PNG_MODES else image.convert("RGB")).save(out, "PNG")
    return out.getvalue()
