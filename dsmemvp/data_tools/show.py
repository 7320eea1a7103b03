"""`dsmemvp data show RECIPE`: a few samples as the model will see them: their text with the supervised part marked, and
their pictures, squashed as the vision tower gets them, on one sheet with question and answer."""

import bisect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from dsmemvp.config.recipe import Recipe
from dsmemvp.config.stages import stage_recipe
from dsmemvp.counting import counted
from dsmemvp.data.batch import Item
from dsmemvp.data.collator import Collator
from dsmemvp.data.datasets import data_of, open_test_data, open_training_data
from dsmemvp.data.manifest import Manifest, check_files
from dsmemvp.data.order import FileOrder, Place
from dsmemvp.data.sample import BadSample, Sample, SampleError, label_text, read_sample
from dsmemvp.data.stream import Reader, first_numbers
from dsmemvp.data.tokenizer import Tokenizer
from dsmemvp.data_tools.answers import right_answer
from dsmemvp.data_tools.lettering import LINE, find_font, wrapped
from dsmemvp.errors import UserError
from dsmemvp.inputs import open_inputs, stage_folders

COLUMNS, CELL, GAP = 4, 224, 8
"""Of the sheet: pictures in a row, the least width of one, and what is between two, in pixels."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
QUESTION, ANSWER = 4, 2
"""Lines of each that are written under a picture at most."""


def show(recipe: Recipe, samples: int, numbers: Sequence[int], test: bool, sheet: Path, stage: str = "") -> list[str]:
    """Text of the first `samples` that a run will see in a stage (empty: the last), or of data.test, or of those with
    the given running numbers; writes the pictures to `sheet`. Raises UserError."""
    if samples < 1:
        raise UserError(f"--samples: must be at least 1, is {samples}")
    if sheet.suffix.lower() not in PICTURES:
        raise UserError(f"--sheet: {sheet} must end in one of {', '.join(PICTURES)}")
    recipe = stage_recipe(recipe, stage)
    inputs = open_inputs(recipe, stage=stage)
    if test:
        manifests: Sequence[Manifest] = [open_test_data(recipe)]
        places = FileOrder(manifests[0].counts)[:samples]
    else:
        data = data_of(open_training_data(recipe), recipe, stage_folders(recipe, inputs.stage))
        manifests = data.manifests
        places = [data.order.place(0, turn) for turn in range(min(samples, data.order.samples))]
    if numbers:
        places = [_place(manifests, number) for number in numbers]
    check_files(*manifests)
    collator, reader = inputs.collator, Reader(manifests, indexes=8)
    tokenizer = Tokenizer(collator.tokenizer_path)
    found = reader.read(places)
    lines, pictures = [], []
    for place in places:
        entry = found[place]
        try:
            if isinstance(entry, BadSample):
                raise entry.error
            sample = read_sample(entry)
            item = collator.item(tokenizer, sample)
        except SampleError as error:
            lines += [f"--- {entry.index}: cannot be used: {error}", ""]
            continue
        lines += [f"--- {entry.index}: {entry.where}: {_about(item)}", _text(item, collator, tokenizer), ""]
        if item.image is not None:
            pictures.append((sample, item.image))
    if pictures:
        _sheet(pictures).save(sheet)
        lines.append(f"{counted(len(pictures), 'picture')} -> {sheet}")
    return lines


def _place(manifests: Sequence[Manifest], number: int) -> Place:
    samples = sum(manifest.samples for manifest in manifests)
    if not 0 <= number < samples:
        raise UserError(f"--numbers: there is no sample {number}, they run from 0 to {samples - 1}")
    firsts = first_numbers(manifests)
    source = bisect.bisect_right([int(shards[0]) for shards in firsts], number) - 1
    shard = int(np.searchsorted(firsts[source], number, side="right")) - 1
    return Place(source, shard, number - int(firsts[source][shard]))


def _about(item: Item) -> str:
    supervised = len(item.text.tokens) - item.text.prompt
    cut = ", context cut" if item.text.cut else ""
    image = ", with a picture" if item.image is not None else ""
    return f"{counted(len(item.text.tokens), 'token')}, {supervised} of them supervised{cut}{image}"


def _text(item: Item, collator: Collator, tokenizer: Tokenizer) -> str:
    """<s> and </s> are written out for BOS and EOS; [[ ]] encloses what is supervised."""
    tokens, prompt = item.text.tokens, item.text.prompt
    whole, *heads = (tokenizer.decode(tokens[:stop]) for stop in (len(tokens), prompt - item.text.cue, prompt))
    before, head = heads
    places = {"start": "", "front": "", "before_cue": "", "after_question": ""}
    for reserved in collator.reserved:
        if reserved.without_image or item.image is not None:
            of = "the method" if reserved.without_image else "the picture"
            places[reserved.anchor] += f"[{counted(reserved.count, 'place')} of {of}]"
    start, end = "<s>" if item.text.bos else "", "</s>" if tokens[-1] == tokenizer.eos else ""
    if collator.labels is not None:
        return f"{places['start']}{start}{places['front']}{whole}{end} -> class {label_text(item.labels)}"
    asked = f"{places['front']}{before}{places['before_cue']}{head[len(before) :]}{places['after_question']}"
    return f"{places['start']}{start}{asked}[[{whole[len(head) :]}{end}]]"


def _sheet(pictures: list[tuple[Sample, torch.Tensor]]) -> Image.Image:
    """The pictures in rows, each with its sample's running number above it, question and right answer below."""
    side, font = max(CELL, pictures[0][1].shape[-1]), find_font()
    texts = [
        [*wrapped(sample.question, font, side, QUESTION), *wrapped(f"-> {right_answer(sample)}", font, side, ANSWER)]
        for sample, _ in pictures
    ]
    rows = [range(at, min(at + COLUMNS, len(pictures))) for at in range(0, len(pictures), COLUMNS)]
    heights = [side + LINE * (1 + max(len(texts[at]) for at in row)) + GAP for row in rows]
    sheet = Image.new("RGB", (len(rows[0]) * (side + GAP) - GAP, sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        y = sum(heights[:number])
        for column, at in enumerate(row):
            x, (sample, image) = column * (side + GAP), pictures[at]
            picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
            sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y + LINE))
            for line, text in enumerate([str(sample.index), *texts[at]]):
                pen.text((x, y + line * LINE + (side if line else 0)), text, fill="black", font=font)
    return sheet
