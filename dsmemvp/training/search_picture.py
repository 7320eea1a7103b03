"""How a search's policy has moved, as a picture: a column for each recorded step, a row for each value."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dsmemvp.data_tools.lettering import LINE, find_font

PI = "search pi/value "
"""Beginning of the names of the recorded shares, before the value."""
WIDTH, HEIGHT, MARGIN = 640, 400, 40
"""Of the picture's inner part and of what stands around it, in pixels."""
RED = np.array([214.0, 20.0, 20.0])


def picture(rows: Iterable[dict[str, Any]]) -> np.ndarray:
    """[height, width, 3] uint8 of the record's rows; white is 0, red the largest share of all. Rows without shares are
    passed over."""
    found = [(row["step"], [share for name, share in row.items() if name.startswith(PI)]) for row in rows]
    found = [(step, shares) for step, shares in found if shares]
    whole = Image.new("RGB", (WIDTH + 2 * MARGIN, HEIGHT + 2 * MARGIN), "white")
    if not found:
        return np.asarray(whole)
    shares = np.array([shares for _, shares in found]).T
    strength = (shares / shares.max())[..., None]
    cells = (255 * (1 - strength) + RED * strength).round().astype(np.uint8)
    inner = Image.fromarray(cells).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)
    whole.paste(inner, (MARGIN, MARGIN))
    pen, font, last = ImageDraw.Draw(whole), find_font(), len(shares) - 1
    pen.rectangle((MARGIN - 1, MARGIN - 1, MARGIN + WIDTH, MARGIN + HEIGHT), outline="black")
    pen.text((MARGIN, MARGIN - LINE), f"pi; red: {shares.max():.3g}", fill="black", font=font)
    pen.text((8, MARGIN), "0", fill="black", font=font)
    pen.text((8, MARGIN + HEIGHT - LINE), str(last), fill="black", font=font)
    pen.text((MARGIN, MARGIN + HEIGHT + 2), f"step {found[0][0]} to {found[-1][0]}", fill="black", font=font)
    return np.asarray(whole)
