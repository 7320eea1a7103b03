"""Encoded image -> pixels as the vision tower wants them: squashed to its resolution (no crop), bicubic, normalised.

Pillow does all of it; the pixel count is read from the header and checked before anything is decoded.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from dsmemvp.data.stream import SampleError

STATISTICS = {
    # mean and deviation of R, G, B in [0, 1]
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


@dataclass(frozen=True)
class ImageTransform:
    resolution: int
    """Height and width of the tower's input."""
    statistics: str
    max_pixels: int

    def __call__(self, encoded: bytes, where: str) -> torch.Tensor:
        """-> float32 [3, resolution, resolution]. Raises SampleError."""
        pixels = np.asarray(self._resized(encoded, where), dtype=np.float32) / 255.0
        mean, deviation = (np.array(s, dtype=np.float32) for s in STATISTICS[self.statistics])
        return torch.from_numpy(((pixels - mean) / deviation).transpose(2, 0, 1).copy())

    def _resized(self, encoded: bytes, where: str) -> Image.Image:
        try:
            with warnings.catch_warnings():
                # Pillow warns of, and at twice its own limit refuses, what we refuse by the recipe's limit.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image: Image.Image = Image.open(io.BytesIO(encoded))
            if image.width * image.height > self.max_pixels:
                size = f"{image.width} x {image.height}"
                raise SampleError(where, f"image of {size} pixels is over vision.max_pixels = {self.max_pixels}")
            image = ImageOps.exif_transpose(image)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            elif image.mode.startswith("I;16"):  # Pillow's own conversion clips 16 bits to 8: nearly all white
                image = Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8))
            return image.convert("RGB").resize((self.resolution, self.resolution), Image.Resampling.BICUBIC)
        except SampleError:
            raise
        except UnidentifiedImageError:
            raise SampleError(where, "image cannot be decoded (its format is not known)") from None
        except Exception as error:  # on damaged files decoders also raise struct.error, TypeError, IndexError, ...
            raise SampleError(where, f"image cannot be decoded ({error})") from None
