"""Numbers of patches painted over the picture, and sheets of such maps.

The vision tower sees the picture squashed to a square and cut into a grid; stretched back, a patch of the grid lies
over the part of the picture that it was made of. Red is above zero, blue below, and colourless is zero.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

RED, BLUE = np.array([214.0, 20, 20]), np.array([20.0, 60, 214])
STRENGTH = 0.75
"""How much of the picture the largest value hides."""
PALE = 0.6
"""What is left of the picture's darkness, so that colours show on black, too."""
MARGIN, LINE = 6, 16
"""Pixels between maps, and height of a line of text."""
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf")
"""Tried in turn; Pillow's own, which comes after them, has no letters but those of ASCII."""


def heat_map(picture: Image.Image, values: torch.Tensor, largest: float | None = None) -> Image.Image:
    """`values` [P] of a square grid of patches, row by row, over the picture in grey. `largest` is the absolute value
    in full colour (default: that of `values`)."""
    side = round(values.numel() ** 0.5)
    grid = values.detach().float().view(side, side).numpy()
    most = float(np.abs(grid).max()) if largest is None else largest
    share = np.clip(grid / most, -1, 1) if most > 0 else np.zeros_like(grid)
    rows, columns = (_patch_of(pixels, side) for pixels in (picture.height, picture.width))
    share = share[rows][:, columns][..., None]
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
) -> Image.Image:
    """Heat maps [row][column], each in colours of its own, with its largest absolute value below it; the picture stands
    in front of every row. `title` may have several lines."""
    width, height = picture.size
    font = _font()
    rows, columns, (title,) = ([_readable(text, font) for text in texts] for texts in (rows, columns, [title]))
    lines = title.split("\n")
    top = LINE * (len(lines) + 1) + MARGIN
    widest = max(round(font.getlength(text)) for text in ["-0.000123", "picture", *columns])
    cell_x, cell_y = max(width, widest) + MARGIN, height + LINE + MARGIN
    left = MARGIN + max(round(font.getlength(text)) for text in rows) + MARGIN
    needed = 2 * MARGIN + max(round(font.getlength(line)) for line in lines)
    page = Image.new("RGB", (max(left + cell_x * (1 + len(columns)), needed), top + cell_y * len(rows)), "white")
    pen = ImageDraw.Draw(page)
    for n, line in enumerate(lines):
        pen.text((MARGIN, n * LINE + 2), line, fill="black", font=font)
    for c, text in enumerate(["picture", *columns]):
        pen.text((left + c * cell_x, top - LINE), text, fill="black", font=font)
    for r, text in enumerate(rows):
        y = top + r * cell_y
        pen.text((MARGIN, y + height // 2 - LINE // 2), text, fill="black", font=font)
        page.paste(picture, (left, y))
        for c, values in enumerate(maps[r]):
            x = left + (c + 1) * cell_x
            page.paste(heat_map(picture, values), (x, y))
            pen.text((x, y + height), f"{float(values.abs().max()):.3g}", fill="black", font=font)
    return page


def _font() -> Any:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, 12)
        except OSError:
            continue
    return ImageFont.load_default(12)


def _readable(text: str, font: Any) -> str:
    """What the font has no signs for is written out, as in \\u8272."""
    complete = Path(str(getattr(font, "path", ""))).name in FONTS  # Pillow has put the folder in front
    return text if complete else text.encode("ascii", "backslashreplace").decode()


def fitted(picture: Image.Image, longest: int) -> Image.Image:
    """The picture with its longer side of `longest` pixels."""
    factor = longest / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BICUBIC)
