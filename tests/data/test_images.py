"""Encoded images of every kind -> pixels, against numpy and Pillow used directly."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from making import as_json, encoded, fields, manifest_of, picture, write_tar
from PIL import Image

from dsmemvp.data.images import STATISTICS, ImageTransform
from dsmemvp.data.sample import SampleError, read_sample
from dsmemvp.data.stream import read_all

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
WHITE, GREY, RED = (255, 255, 255), (128, 128, 128), (255, 0, 0)


def transform(resolution=8, max_pixels=10_000):
    return ImageTransform(resolution, max_pixels)


def colours(tensor: torch.Tensor) -> np.ndarray:
    """[resolution, resolution, 3]"""
    return tensor.numpy().transpose(1, 2, 0)


def is_colour(tensor, colour, tolerance=0.01) -> bool:
    return np.allclose(colours(tensor), colour, atol=tolerance)


def noise(width=13, height=9) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_pixels_are_those_of_pillow():
    image = noise()
    found = transform()(encoded(image), "here")
    assert found.dtype == torch.uint8 and found.shape == (3, 8, 8) and found.is_contiguous()
    np.testing.assert_array_equal(colours(found), np.array(image.resize((8, 8), Image.BICUBIC)))


def test_the_statistics_are_those_of_imagenet_clip_and_siglip():
    assert {name: [list(row) for row in rows] for name, rows in STATISTICS.items()} == {
        "imagenet": list(IMAGENET),
        "clip": list(CLIP),
        "half": [[0.5] * 3, [0.5] * 3],
    }


def test_an_image_of_the_tower_s_size_is_not_resampled():
    image = noise(8, 8)
    np.testing.assert_allclose(colours(transform()(encoded(image), "here")), np.array(image), atol=1e-3)


def test_a_wide_image_is_squashed_and_nothing_is_cropped():
    stripes = np.zeros((8, 64, 3), dtype=np.uint8)
    stripes[:, :8] = 255  # an eighth of the width at the very left, another at the very right
    stripes[:, -8:] = 255
    found = colours(transform()(encoded(Image.fromarray(stripes)), "here"))
    assert (found[:, 0] > 200).all() and (found[:, -1] > 200).all() and (found[:, 2:-2] < 60).all()


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        (picture(mode="RGBA", colour=(255, 0, 0, 255)), RED),
        (picture(mode="RGBA", colour=(255, 0, 0, 0)), WHITE),
        (picture(mode="RGBA", colour=(255, 0, 0, 51)), (255, 204, 204)),
        (picture(mode="LA", colour=(128, 0)), WHITE),
        (picture(mode="L", colour=128), GREY),
        (picture(mode="1", colour=1), WHITE),
        (picture(mode="RGB", colour=RED, transparency=RED), WHITE),
        (picture(mode="RGB", colour=RED, transparency=WHITE), RED),
        (picture("GIF", mode="L", colour=128), GREY),
        (picture("BMP", colour=RED), RED),
        (picture("TIFF", colour=RED), RED),
        (picture("WEBP", colour=RED, lossless=True), RED),
    ],
)
def test_every_mode_becomes_rgb_on_white(content, colour):
    assert is_colour(transform()(content, "here"), colour)


def test_a_palette_with_a_transparent_entry_becomes_rgb_on_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert is_colour(transform()(encoded(image), "here"), RED)
    assert is_colour(transform()(encoded(image, transparency=1), "here"), RED)
    assert is_colour(transform()(encoded(image, transparency=0), "here"), WHITE)


def test_sixteen_bit_grey_keeps_its_brightness():
    image = Image.fromarray(np.full((4, 4), 128 * 256 + 77, dtype=np.uint16))
    for format in ("PNG", "TIFF"):
        assert is_colour(transform()(encoded(image, format), "here"), GREY)


def test_sixteen_bit_grey_with_a_transparent_value_is_white_there_and_keeps_its_brightness_elsewhere():
    stored = np.full((8, 8), 128 * 256 + 77, dtype=np.uint16)
    stored[:, :4] = 3000
    found = colours(transform()(encoded(Image.fromarray(stored), transparency=3000), "here"))
    assert np.allclose(found[:, :4], 255, atol=0.01) and np.allclose(found[:, 4:], 128, atol=0.01)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_32_bits_are_refused_and_not_guessed(mode):
    with pytest.raises(SampleError, match=r"x\.tar, sample s0: image has pixels of 32 bits"):
        transform()(picture("TIFF", mode=mode, colour=1), "x.tar, sample s0")


def test_a_cmyk_jpeg_becomes_rgb():
    content = picture("JPEG", mode="CMYK", colour=(0, 255, 255, 0), quality=95)
    assert is_colour(transform()(content, "here"), RED, tolerance=6)


@pytest.mark.parametrize(
    ("orientation", "top_left"), [(1, (0, 0)), (3, (1, 1)), (6, (1, 0)), (8, (0, 1)), (2, (0, 1)), (5, (0, 0))]
)
def test_a_jpeg_is_turned_as_its_exif_data_says(orientation, top_left):
    """`top_left`: which quarter (row, column) of the stored pixels is seen at the upper left (EXIF 2.3, tag 274)."""
    stored = np.zeros((64, 64, 3), dtype=np.uint8)
    stored[32 * top_left[0] :, 32 * top_left[1] :][:32, :32] = 255
    exif = Image.Exif()
    exif[274] = orientation
    found = colours(transform(resolution=16)(encoded(Image.fromarray(stored), "JPEG", exif=exif, quality=95), "here"))
    assert found[:6, :6].min() > 240 and found[10:, :].max() < 15 and found[:, 10:].max() < 15


def test_a_jpeg_under_the_name_of_a_png_is_decoded_by_its_content(tmp_path):
    members = [("s0.json", as_json(fields())), ("s0.png", encoded(noise(), "JPEG", quality=90))]
    (entry,) = read_all(manifest_of(write_tar(tmp_path / "x.tar", members)))
    sample = read_sample(entry)
    found = transform()(sample.image, sample.where)
    with Image.open(io.BytesIO(members[1][1]), formats=["JPEG"]) as stored:
        wanted = np.array(stored.resize((8, 8), Image.BICUBIC))
    np.testing.assert_allclose(colours(found), wanted, atol=1e-3)


def test_a_format_that_pillow_needs_another_program_for_is_not_known():
    content = encoded(noise(), "EPS")
    assert Image.open(io.BytesIO(content)).format == "EPS"  # Pillow would run Ghostscript
    with pytest.raises(SampleError, match=r"s0: image cannot be decoded \(its format is not known\)"):
        transform()(content, "x.tar, sample s0")


def test_an_image_over_the_limit_is_refused_with_its_size():
    with pytest.raises(SampleError) as caught:
        transform(max_pixels=23)(picture(size=(6, 4)), "x.tar, sample s0")
    assert str(caught.value) == "x.tar, sample s0: image of 6 x 4 pixels is over vision.max_pixels = 23"
    transform(max_pixels=24)(picture(size=(6, 4)), "x.tar, sample s0")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be large and holds almost nothing."""
    about = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", about) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_a_bomb_is_refused_before_anything_is_decoded(monkeypatch):
    def decode(*_, **__):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with pytest.raises(SampleError, match=r"s0: image of 10000 x 10000 pixels is over vision\.max_pixels"):
        transform(max_pixels=50_000_000)(png_header(10_000, 10_000), "x.tar, sample s0")
    with pytest.raises(SampleError, match=r"s0: .*pixels"):  # over Pillow's own limit
        transform(max_pixels=50_000_000)(png_header(1_000_000, 1_000_000), "x.tar, sample s0")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_image_is_refused_and_not_filled_up(format):
    content = encoded(noise(64, 64), format)
    with pytest.raises(SampleError, match=r"x\.tar, sample s0: image cannot be decoded"):
        transform()(content[: len(content) // 2], "x.tar, sample s0")


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_bytes_that_are_no_image_are_refused(content):
    with pytest.raises(SampleError, match=r"x\.tar, sample s0: image cannot be decoded"):
        transform()(content, "x.tar, sample s0")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_unusable_exif_tag_is_refused_like_any_other_damage():
    exif = Image.Exif()
    exif[274] = 6
    exif[305] = "x"
    content = encoded(noise(), "JPEG", exif=exif)
    for place in range(20, 80):
        for value in (0, 2, 3, 7, 255):
            damaged = content[:place] + bytes([value]) + content[place + 1 :]
            try:
                transform()(damaged, "here")
            except SampleError as error:
                assert str(error).startswith("here: ")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_anywhere_ends_in_an_image_or_in_a_sample_error():
    rng = random.Random(0)
    whole = {format: encoded(noise(), format) for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")}
    for _ in range(600):
        content = bytearray(whole[rng.choice(list(whole))])
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            assert transform()(bytes(content), "here").shape == (3, 8, 8)
        except SampleError as error:
            assert str(error).startswith("here: ")


def test_what_libtiff_has_to_say_is_said_by_the_error_alone(capfd):
    content = bytearray(encoded(noise(), "TIFF", compression="tiff_deflate"))
    content[200:300] = bytes(100)
    with pytest.raises(SampleError, match="here: image cannot be decoded"):
        transform()(bytes(content), "here")
    assert capfd.readouterr() == ("", "")
