"""Numbers of patches painted over the picture, and sheets of such maps.

The vision tower sees the picture squashed to a square and cut into a grid; stretched back, a patch of the grid lies
over the part of the picture that it was made of. Red is above zero, blue below, and colourless is zero.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from dsmemvp.data_tools.lettering import LINE, find_font, readable, wrapped

RED, BLUE = np.array([214.0, 20, 20]), np.array([20.0, 60, 214])
STRENGTH = 0.75
"""How much of the picture the largest value hides."""
PALE = 0.6
"""What is left of the picture's darkness, so that colours show on black, too."""
MARGIN = 6
"""Pixels between maps."""
LEGEND = 160, 12
"""Width and height of the bar of colours, in pixels."""
GREY = 128
"""What the bar's colours are painted on."""


@dataclass(frozen=True)
class Scale:
    """What colours stand for, in all maps of a sheet."""

    largest: float
    """The absolute value in full colour."""
    signed: bool
    """Whether values below zero may be met."""
    unit: str

    @classmethod
    def of(cls, maps: Iterable[torch.Tensor], signed: bool, unit: str) -> "Scale":
        return cls(max((float(values.abs().max()) for values in maps), default=0.0), signed, unit)


def of_patches(values: torch.Tensor) -> torch.Tensor:
    """[..., N] of image tokens -> [..., P] of the patches, a square of them; class and register tokens stand before."""
    return values[..., -(math.isqrt(values.shape[-1]) ** 2) :]


def heat_map(picture: Image.Image, values: torch.Tensor, largest: float) -> Image.Image:
    """`values` [P] of a square grid of patches, row by row, over the picture in grey. `largest` is the absolute value
    in full colour."""
    side = round(values.numel() ** 0.5)
    grid = values.detach().float().view(side, side).numpy()
    share = np.clip(grid / largest, -1, 1) if largest > 0 else np.zeros_like(grid)
    rows, columns = (_patch_of(pixels, side) for pixels in (picture.height, picture.width))
    return _painted(picture, share[rows][:, columns])


def _painted(picture: Image.Image, share: np.ndarray) -> Image.Image:
    """`share` of full colour, -1 to 1, for every pixel [height, width]."""
    share = share[..., None]
    grey = 255 - PALE * (255 - np.asarray(picture.convert("L"), dtype=np.float32)[..., None])
    hidden = STRENGTH * np.abs(share)
    painted = grey * (1 - hidden) + np.where(share > 0, RED, BLUE) * hidden
    return Image.fromarray(painted.round().clip(0, 255).astype(np.uint8))


def _patch_of(pixels: int, side: int) -> np.ndarray:
    """The grid's row (or column) that each of a picture's rows (or columns) of pixels lies in, by its centre."""
    return ((np.arange(pixels) + 0.5) * side / pixels).astype(int)


def sheet(
    picture: Image.Image,
    maps: Sequence[Sequence[torch.Tensor]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    scale: Scale,
) -> Image.Image:
    """Heat maps [row][column] in the colours of one scale, whose legend stands below the title, each with its largest
    absolute value below it; the picture stands in front of every row. `title` may have several lines."""
    width, height = picture.size
    font = find_font()
    rows, columns = ([readable(text, font) for text in texts] for texts in (rows, columns))
    widest = max(round(font.getlength(text)) for text in ["-0.000123", "picture", *columns])
    cell_x, cell_y = max(width, widest) + MARGIN, height + LINE + MARGIN
    left = MARGIN + max(round(font.getlength(text)) for text in rows) + MARGIN
    bar = legend(scale)
    whole = max(left + cell_x * (1 + len(columns)), bar.width + 2 * MARGIN)
    lines = wrapped(title, font, whole - 2 * MARGIN)
    top = LINE * (len(lines) + 1) + bar.height + 2 * MARGIN
    page = Image.new("RGB", (whole, top + cell_y * len(rows)), "white")
    pen = ImageDraw.Draw(page)
    for n, line in enumerate(lines):
        pen.text((MARGIN, n * LINE + 2), line, fill="black", font=font)
    page.paste(bar, (MARGIN, LINE * len(lines) + MARGIN))
    for c, text in enumerate(["picture", *columns]):
        pen.text((left + c * cell_x, top - LINE), text, fill="black", font=font)
    for r, text in enumerate(rows):
        y = top + r * cell_y
        pen.text((MARGIN, y + height // 2 - LINE // 2), text, fill="black", font=font)
        page.paste(picture, (left, y))
        for c, values in enumerate(maps[r]):
            x = left + (c + 1) * cell_x
            page.paste(heat_map(picture, values, scale.largest), (x, y))
            pen.text((x, y + height), f"{float(values.abs().max()):.3g}", fill="black", font=font)
    return page


def legend(scale: Scale) -> Image.Image:
    """The bar of a scale's colours with its ends in numbers, and their unit."""
    font, (width, height) = find_font(), LEGEND
    first, last = f"{-scale.largest if scale.signed else 0:.3g}", f"{scale.largest:.3g}  {readable(scale.unit, font)}"
    x = round(font.getlength(first)) + MARGIN
    page = Image.new("RGB", (x + width + MARGIN + round(font.getlength(last)), LINE), "white")
    pen, share = ImageDraw.Draw(page), np.linspace(-1.0 if scale.signed else 0.0, 1.0, width)
    page.paste(_painted(Image.new("L", LEGEND, GREY), np.broadcast_to(share, (height, width))), (x, 2))
    pen.text((0, 1), first, fill="black", font=font)
    pen.text((x + width + MARGIN, 1), last, fill="black", font=font)
    return page


def fitted(picture: Image.Image, longest: int) -> Image.Image:
    """The picture with its longer side of `longest` pixels."""
    factor = longest / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BICUBIC)
