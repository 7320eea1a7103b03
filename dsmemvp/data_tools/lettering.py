"""Text in pictures."""

from pathlib import Path
from typing import Any

from PIL import ImageFont

LINE = 16
"""Height of a line of text, in pixels."""
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf")
"""Tried in turn; Pillow's own, which comes after them, has no letters but those of ASCII."""


def find_font() -> Any:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, 12)
        except OSError:
            continue
    return ImageFont.load_default(12)


def readable(text: str, font: Any) -> str:
    """What the font has no signs for is written out, as in \\u8272."""
    complete = Path(str(getattr(font, "path", ""))).name in FONTS  # Pillow has put the folder in front
    return text if complete else text.encode("ascii", "backslashreplace").decode()


def wrapped(text: str, font: Any, width: int, most: int = 100) -> list[str]:
    """Readable lines of at most `width` pixels, broken between words, or within one that is longer; what is left after
    `most` lines is cut off."""
    lines: list[str] = []
    for paragraph in readable(text[: most * width], font).split("\n"):  # a sign takes a pixel at least
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if font.getlength(longer) > width and line:
                lines.append(line)
                longer = word
            while font.getlength(longer) > width and len(longer) > 1:
                fits = next(n for n in range(len(longer) - 1, 0, -1) if n == 1 or font.getlength(longer[:n]) <= width)
                lines.append(longer[:fits])
                longer = longer[fits:]
            line = longer
        lines.append(line)
    if len(lines) > most:
        lines = [*lines[: most - 1], _ending(lines[most - 1], font, width)]
    return lines


def _ending(line: str, font: Any, width: int) -> str:
    while line and font.getlength(f"{line}...") > width:
        line = line[:-1]
    return f"{line}..."
