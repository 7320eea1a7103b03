"""A small picture-question set with ScienceQA's fields, drawn here: python -m data_prep.demo --out data/demo

Splits: `train` and `test` (half of the questions are about a picture), `text`, questions without pictures whose
captions stand in the context, on which the tiny frozen language model is made, and `pairs`, pictures with their
captions alone, for recipes/pformer-demo.yaml. Pictures show one coloured shape in one place; questions without a
picture are answered from a hint or from knowledge.
"""

import argparse
import io
import random
from math import cos, pi, sin
from pathlib import Path

from PIL import Image, ImageDraw

from data_prep.shards import Row, write_shards
from dsmemvp.counting import counted

COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 210),
    "yellow": (240, 210, 40),
    "purple": (130, 50, 160),
    "orange": (240, 130, 30),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "star")
PLACES = {"left": (0.25, 0.5), "right": (0.75, 0.5), "top": (0.5, 0.25), "bottom": (0.5, 0.75)}
NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix")
KINDS = {
    "animal": ("cat", "dog", "horse", "bird", "fish"),
    "fruit": ("apple", "banana", "pear", "cherry", "plum"),
    "tool": ("hammer", "saw", "drill", "wrench", "knife"),
    "metal": ("iron", "gold", "copper", "silver", "tin"),
    "drink": ("water", "milk", "tea", "juice", "coffee"),
}
SIDE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the splits' folders")
    parser.add_argument("--train", type=int, default=6000, help="samples to train on (default: 6000)")
    parser.add_argument("--test", type=int, default=600, help="samples to evaluate on (default: 600)")
    parser.add_argument(
        "--text", type=int, default=12000, help="samples of text for the language model (default: 12000)"
    )
    parser.add_argument("--pairs", type=int, default=2000, help="pictures with captions (default: 2000)")
    parser.add_argument("--seed", type=int, default=2)
    given = parser.parse_args()
    for split, number in (("train", given.train), ("test", given.test)):
        rng = random.Random(f"demo {given.seed} {split}")
        rows = (sample(rng, f"{split}-{i:06d}", with_picture=i % 2 == 0) for i in range(number))
        print(f"{split}: {counted(write_shards(rows, given.out / split, split, per_shard=200).samples, 'sample')}")
    rng = random.Random(f"demo {given.seed} text")
    texts = (_as_text(sample(rng, f"text-{i:06d}", with_picture=i % 2 == 0, draw=False)) for i in range(given.text))
    print(f"text: {write_shards(texts, given.out / 'text', 'text', per_shard=2000).samples} samples")
    rng = random.Random(f"demo {given.seed} pairs")
    pairs = (_as_pair(sample(rng, f"pair-{i:06d}", with_picture=True)) for i in range(given.pairs))
    print(f"pairs: {write_shards(pairs, given.out / 'pairs', 'train', per_shard=200).samples} samples")


def sample(rng: random.Random, key: str, with_picture: bool, draw: bool = True) -> Row:
    """One question with ScienceQA's fields; its picture is only drawn if `draw`."""
    colour, shape, place = rng.choice(list(COLOURS)), rng.choice(SHAPES), rng.choice(list(PLACES))
    caption, image = "", None
    if with_picture:
        question, answer, pool, subject = rng.choice(_picture_questions(colour, shape, place))
        context = rng.choice(("", "Look at the picture."))
        caption = f"a {colour} {shape} at the {place}."
        image = draw_picture(rng, colour, shape, place) if draw else None
    elif rng.random() < 0.5:
        name = rng.choice(NAMES)
        context = f"{name} has a {colour} {shape} at the {place}."
        question, answer, pool, subject = rng.choice(_picture_questions(colour, shape, place, f"{name}'s "))
    else:
        kind = rng.choice(list(KINDS))
        answer, context, subject = rng.choice(KINDS[kind]), "", "natural science"
        question = f"Which of these is a kind of {kind}?"
        pool = [word for other, words in KINDS.items() if other != kind for word in words]
    wrong = rng.sample([word for word in pool if word != answer], rng.randint(1, min(4, len(pool) - 1)))
    choices = rng.sample([answer, *wrong], len(wrong) + 1)
    fields = {
        "id": key,
        "task": "scienceqa",
        "question": question,
        "context": context,
        "choices": choices,
        "answer": choices.index(answer),
        "caption": caption,
        "subject": subject,
        "grade": rng.randint(1, 12),
    }
    return Row(key, fields, image)


def _picture_questions(colour: str, shape: str, place: str, whose: str = "the ") -> list[tuple]:
    """(question, answer, pool of choices, subject)"""
    thing = f"{whose}{shape}"
    return [
        (f"What colour is {thing}?", colour, list(COLOURS), "natural science"),
        (f"Which shape is {whose}{colour} thing?", shape, list(SHAPES), "language science"),
        (f"Where is {thing}?", place, list(PLACES), "social science"),
    ]


def draw_picture(rng: random.Random, colour: str, shape: str, place: str) -> bytes:
    """A PNG of one filled shape on a grey background, sizes and places jittered."""
    scale = 4  # drawn larger and reduced, for smooth edges
    shade = rng.randint(110, 190)
    image = Image.new("RGB", (SIDE * scale, SIDE * scale), (shade, shade, shade))
    x, y = (centre * SIDE * scale + rng.uniform(-5, 5) * scale for centre in PLACES[place])
    radius = rng.uniform(10, 14) * scale
    pen = ImageDraw.Draw(image)
    fill = tuple(max(0, min(255, channel + rng.randint(-15, 15))) for channel in COLOURS[colour])
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=fill)
    elif shape == "square":
        pen.rectangle(box, fill=fill)
    elif shape == "triangle":
        pen.regular_polygon((x, y, radius * 1.2), 3, fill=fill)
    else:
        _star(pen, x, y, radius * 1.3, fill)
    out = io.BytesIO()
    image.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(out, "PNG")
    return out.getvalue()


def _star(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: tuple) -> None:
    """Five points: every second corner of a decagon drawn in."""
    corners = []
    for i in range(10):
        r = radius if i % 2 == 0 else radius * 0.45
        corners.append((x + r * sin(i * pi / 5), y - r * cos(i * pi / 5)))
    pen.polygon(corners, fill=fill)


def _as_text(row: Row) -> Row:
    """The caption moved into the context, no picture."""
    fields = dict(row.fields)
    fields["context"] = f"{fields['context']} {fields.pop('caption')}".strip()
    return Row(row.key, fields)


def _as_pair(row: Row) -> Row:
    """The caption alone, beside the picture."""
    return Row(row.key, {"id": row.key, "caption": row.fields["caption"]}, row.image)


if __name__ == "__main__":
    main()
