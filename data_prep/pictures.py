"""Images on their way into a shard: found below their folder, stored as they are or in the size that training needs.

With --resize an image is decoded here, so that a damaged one is found while preparing, and squashed by the function
that training squashes with, which then has nothing left to do.
"""

import argparse
import io
from pathlib import Path

from dsmemvp.data.sample import IMAGE_ENDINGS, SampleError
from dsmemvp.errors import UserError


class Pictures:
    """The images below one folder."""

    def __init__(self, folder: Path, given: argparse.Namespace):
        self._folder, self._given = folder, given
        self._resolved = folder.resolve()

    def read(self, name: str | None, where: str) -> tuple[bytes | None, str]:
        """(content, ending) of the image at a path below the folder; (None, "") without a path. Raises SampleError,
        or OSError if reading itself fails: that says nothing about the sample."""
        if not name:
            return None, ""
        path = self._folder / name
        if not path.resolve().is_relative_to(self._resolved):
            raise SampleError(where, f"image {name!r} lies outside {self._folder}")
        if not path.is_file():
            if not self._folder.is_dir():  # a slip on the command line, not in a row
                raise UserError(f"{self._folder}, the folder of images, does not exist")
            raise SampleError(where, f"image {path} does not exist")
        ending = path.suffix.removeprefix(".").lower()
        if self._given.resize is None and ending not in IMAGE_ENDINGS:
            raise SampleError(where, f"image {path} does not end in one of {', '.join(IMAGE_ENDINGS)}")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        if self._given.resize is None:
            return content, ending
        return self._resized(content, f"{where}: {path}")

    def _resized(self, content: bytes, where: str) -> tuple[bytes, str]:
        from dsmemvp.data.images import squashed

        image = squashed(content, where, self._given.resize, self._given.max_pixels)
        image.info = {}  # colour profiles and the like, which training does not look at
        out = io.BytesIO()
        if self._given.format == "jpg":
            image.save(out, "JPEG", quality=self._given.quality)
            return out.getvalue(), "jpg"
        image.save(out, "PNG")
        return out.getvalue(), "png"
