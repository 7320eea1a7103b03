"""Crops of four photographs that scikit-image ships, a folder for each, for docs/heat-map-photos.png:

    pip download --no-deps scikit-image==0.26.0 -d raw
    python benchmarks/photo_crops.py --wheel raw/scikit_image-0.26.0-*.whl --out raw/crops
    make photos PHOTOS=raw/crops
    python benchmarks/heat_map.py --run runs/photos --images raw/whole/*.png --draw docs/heat-map-photos.png

Licences, as scikit-image gives them: astronaut (NASA) and rocket (SpaceX) are in the public domain; cat (Stefan van der
Walt) and coffee (Rachel Michetti) are CC0.
"""

import argparse
import io
import random
import zipfile
from pathlib import Path

from PIL import Image

INSIDE = {"astronaut": "astronaut.png", "cat": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg"}
SMALLEST, LARGEST = 0.4, 0.9
"""Side of a crop, of the photograph's shorter side."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the crops; whole/ is made beside it")
    parser.add_argument("--number", type=int, default=60, help="crops of each (default: %(default)s)")
    given = parser.parse_args()
    rng = random.Random(0)
    whole = given.out.parent / "whole"
    whole.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(given.wheel) as wheel:
        for name, file in INSIDE.items():
            photo = Image.open(io.BytesIO(wheel.read(f"skimage/data/{file}"))).convert("RGB")
            photo.save(whole / f"{name}.png")
            (given.out / name).mkdir(parents=True, exist_ok=True)
            for number in range(given.number):
                side = round(rng.uniform(SMALLEST, LARGEST) * min(photo.size))
                left, top = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
                crop = photo.crop((left, top, left + side, top + side))
                crop.save(given.out / name / f"{number}.jpg", quality=92)


if __name__ == "__main__":
    main()
