"""How often the largest patch of a heat map lies on what the question asks about, on the demo's test pictures:

    python benchmarks/heat_map.py --run runs/demo --draw docs/heat-map.png

The map is that of `dsmemvp inspect`: the change against the mean picture, at the place of the answer, mean of all
layers. A patch counts as on the object if at least a quarter of its pixels are of the object; each of the demo's
pictures has one, and its pixels are those that differ from the picture's edge. Chance is the mean share of such
patches. The sheet shows the first pictures of the split as they come, each with the model's answer below it, and all
maps in the colours of one scale. With --images the sheet alone is drawn, of these pictures:

    python benchmarks/heat_map.py --run runs/photos --images raw/whole/*.png --draw docs/heat-map-photos.png
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from dsmemvp.checkpoints.loading import load_run
from dsmemvp.data.sample import Sample
from dsmemvp.inspection.heat_map import MARGIN as GAP
from dsmemvp.inspection.heat_map import Scale, fitted, heat_map, legend
from dsmemvp.inspection.look import Look, Opened, Question, alone, open_model
from dsmemvp.inspection.page import UNITS
from dsmemvp.inspection.words import ANSWER

COVERED = 0.25
"""Share of a patch's pixels that lies on the object at least, for the patch to count as a hit."""
DIFFERS = 25
"""Steps of 255, in any colour, from which a pixel is not background."""
SHOWN, SIDE, MARGIN, LINE = 8, 112, 8, 14


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a run of recipes/demo.yaml")
    parser.add_argument("--number", type=int, default=600, help="samples to go through, with and without picture")
    parser.add_argument("--draw", type=Path, metavar="PNG", help=f"also draw the first {SHOWN} maps")
    parser.add_argument("--images", type=Path, nargs="+", help="instead: draw the maps of these files")
    parser.add_argument("--question", default="What is in the photo?", help="about --images (default: %(default)s)")
    given = parser.parse_args()
    opened = open_model(load_run(given.run, ["training.deepspeed=ds_configs/replicated.json"]), alone())
    average = opened.average()
    shown: list[tuple[Sample, Look]] = []
    if given.images:
        for path in given.images:
            sample = Question(given.question, str(path)).sample()
            shown.append((sample, opened.look(sample, [ANSWER], average)))
        draw(shown).save(given.draw, optimize=True)
        return
    hits, chances, touched = [], [], []
    for sample in _with_picture(opened, given.number):
        look = opened.look(sample, [ANSWER], average)
        values = _map(look)
        cover = coverage(look.picture, values.numel())
        hits.append(bool(cover[values.argmax()] >= COVERED))
        touched.append(bool(cover[values.argmax()] > 0))
        chances.append(float((cover >= COVERED).float().mean()))
        if len(shown) < SHOWN:
            shown.append((sample, look))
    print(
        f"{len(hits)} pictures: largest patch on the object {np.mean(hits):.1%} (chance {np.mean(chances):.1%}),"
        f" touching it {np.mean(touched):.1%}"
    )
    if given.draw:
        given.draw.parent.mkdir(parents=True, exist_ok=True)
        draw(shown).save(given.draw, optimize=True)


def _with_picture(opened: Opened, number: int) -> list[Sample]:
    samples = (opened.sample(n, test=True) for n in range(number))
    return [sample for sample in samples if sample.image is not None]


def _map(look: Look) -> torch.Tensor:
    """[P]"""
    return look.maps(next(word for word in look.words if word.text == ANSWER))[-1]


def coverage(picture: Image.Image, patches: int) -> torch.Tensor:
    """Share of each patch's pixels that differ from the colour of the picture's edge, [P]."""
    pixels = np.asarray(picture.convert("RGB")).astype(float)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    differs = np.abs(pixels - np.median(edge, 0)).max(-1) > DIFFERS
    side = round(patches**0.5)
    height, width = (pixels // side for pixels in differs.shape)
    return torch.tensor(differs.reshape(side, height, side, width).mean((1, 3))).flatten()


def draw(shown: list[tuple[Sample, Look]]) -> Image.Image:
    """Question, picture, map and the model's answer, side by side."""
    cell, scale = SIDE + MARGIN, Scale.of((_map(look) for _, look in shown), signed=False, unit=UNITS["change"])
    bar = legend(scale)
    page = Image.new("RGB", (MARGIN + cell * len(shown), 3 * LINE + 2 * cell + bar.height + GAP), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for n, (sample, look) in enumerate(shown):
        x, words, picture = MARGIN + n * cell, sample.question.split(), fitted(look.picture, SIDE)
        pen.text((x, 0), " ".join(words[:2]), fill="black", font=font)
        pen.text((x, LINE), " ".join(words[2:]), fill="black", font=font)
        page.paste(picture, (x, 2 * LINE + MARGIN // 2))
        page.paste(heat_map(picture, _map(look), scale.largest), (x, 2 * LINE + MARGIN // 2 + cell))
        pen.text((x, 2 * LINE + 2 * cell - MARGIN // 2), _in_words(sample, look.answer), fill="black", font=font)
    page.paste(bar, (MARGIN, page.height - bar.height))
    return page


def _in_words(sample: Sample, answer: str) -> str:
    """The option that the model chose, and the right one if it is another; of an open answer its beginning."""
    if not sample.choices:
        return answer
    letter = answer[:1]
    right = sample.choices[int(sample.answer)]
    chosen = dict(zip("ABCDEFGH", sample.choices, strict=False)).get(letter, letter)
    return chosen if chosen == right else f"{chosen} (not {right})"


if __name__ == "__main__":
    main()
