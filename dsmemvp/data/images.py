"""Encoded image -> uint8 pixels at the vision tower's resolution: squashed (no crop), bicubic. The tower normalises.

Pillow does all of it; the pixel count is read from the header and checked before anything is decoded.
"""

import ctypes
import io
import logging
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, _imaging

from dsmemvp.data.sample import SampleError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What is decoded. Pillow knows many more, among them PostScript, for which it runs another program."""
LONGEST_SIDE = 65_535
"""Pixels, JPEG's own limit: to resample a longer side takes gigabytes, whatever the other side is."""
STATISTICS = {
    # mean and standard deviation of R, G, B in [0, 1], by which the vision tower normalises pixels
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def _silence() -> None:
    """What is wrong with an image is said by our error; libtiff and Pillow's log would write beside it on stderr."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    library = ctypes.CDLL(_imaging.__file__)
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        if function := getattr(library, name, None):  # a Pillow built without libtiff has none
            function.restype = ctypes.c_void_p
            function(None)


_silence()


@dataclass(frozen=True)
class ImageTransform:
    resolution: int
    """Height and width of the tower's input."""
    max_pixels: int

    def __call__(self, encoded: bytes, where: str) -> torch.Tensor:
        """-> uint8 [3, resolution, resolution]. Raises SampleError."""
        image = squashed(encoded, where, self.resolution, self.max_pixels)
        return torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))


def squashed(encoded: bytes, where: str, resolution: int, max_pixels: int) -> Image.Image:
    """A picture as `decoded` gives it, squashed to resolution x resolution (bicubic, no crop). Raises SampleError."""
    return decoded(encoded, where, max_pixels).resize((resolution, resolution), Image.Resampling.BICUBIC)


def decoded(encoded: bytes, where: str, max_pixels: int) -> Image.Image:
    """A picture in any format as RGB, upright, on white if it is transparent. Raises SampleError."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of pixel counts that we refuse by the recipe's limit, and of damage in what we do not need.
            warnings.simplefilter("ignore")
            return _decoded(encoded, where, max_pixels)
    except SampleError:
        raise
    except UnidentifiedImageError:
        raise SampleError(where, "image cannot be decoded (its format is not known)") from None
    except Exception as error:  # on damaged files decoders also raise struct.error, TypeError, IndexError, ...
        raise SampleError(where, f"image cannot be decoded ({error})") from None


def _decoded(encoded: bytes, where: str, max_pixels: int) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height}"
        raise SampleError(where, f"image of {size} pixels is over vision.max_pixels = {max_pixels}")
    if max(image.size) > LONGEST_SIDE:
        size = f"{image.width} x {image.height}"
        raise SampleError(where, f"image of {size} pixels has a side of over {LONGEST_SIDE}")
    ImageOps.exif_transpose(image, in_place=True)  # else it copies if there is nothing to turn
    if image.mode in ("I", "F"):
        raise SampleError(where, "image has pixels of 32 bits, of which nothing says how bright they are")
    if image.mode.startswith("I;16"):
        image = _of_eight_bits(image)
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image.load()  # what is damaged raises here
    return image if image.mode == "RGB" else image.convert("RGB")


def _of_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey on white; Pillow's own conversion clips: nearly all white."""
    deep = np.asarray(image, dtype=np.uint16)
    grey = (deep >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")  # one grey value in a PNG
    return Image.fromarray(grey if transparent is None else np.where(deep == transparent, np.uint8(255), grey))
