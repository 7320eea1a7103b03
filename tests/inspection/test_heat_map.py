"""Where a patch is painted."""

import numpy as np
import pytest
import torch
from making import encoded
from PIL import Image

from dsmemvp.data.images import ImageTransform
from dsmemvp.data_tools import lettering
from dsmemvp.data_tools.lettering import LINE
from dsmemvp.inspection.heat_map import LEGEND, MARGIN, Scale, fitted, heat_map, legend, sheet

ONE = Scale(1.0, signed=False, unit="of something")


def _coloured(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image).astype(int)
    return np.abs(pixels[..., 0] - pixels[..., 2]) > 5


@pytest.mark.parametrize("size", [(64, 64), (120, 40), (37, 90)])
@pytest.mark.parametrize("patch", [0, 6, 15])
def test_a_patch_that_alone_fires_is_painted_over_what_it_was_made_of(size, patch):
    """The part of the picture that the tower squashes into a patch is found by looking at the tower's input."""
    painted = _coloured(heat_map(Image.new("RGB", size, (90, 90, 90)), torch.eye(16)[patch], 1.0))
    white = Image.fromarray(np.where(painted, 255, 0).astype(np.uint8)).convert("RGB")
    seen = ImageTransform(32, 10**6)(encoded(white), "here")[0]
    by_patch = (seen - seen.min()).view(4, 8, 4, 8).sum((1, 3)).flatten()
    assert by_patch.argmax() == patch
    assert by_patch[patch] > 0.85 * by_patch.sum()
    assert painted.mean() == pytest.approx(1 / 16, rel=0.2)


def test_red_fires_blue_is_below_zero_and_zero_has_no_colour():
    picture = Image.new("RGB", (40, 40), (128, 128, 128))
    pixels = np.asarray(heat_map(picture, torch.tensor([2.0, -1.0, 0.0, 1.0]), 2.0)).astype(int)
    (red, blue), (none, half) = pixels[[[10, 10], [30, 30]], [[10, 30], [10, 30]]]
    assert red[0] > red[2] + 50 and blue[2] > blue[0] + 20 and half[0] > half[2] + 20
    assert none[0] == none[2] and red[0] - red[2] > half[0] - half[2]
    assert not _coloured(heat_map(picture, torch.zeros(4), 0.0)).any()


def test_a_sheet_has_every_map_in_its_row_and_column():
    picture = fitted(Image.new("RGB", (300, 100), (90, 90, 90)), 120)
    assert picture.size == (120, 40)
    one, none = torch.tensor([0.0, 0, 0, 1]), torch.zeros(4)
    page = sheet(picture, [[none, none], [none, one]], ["a", "b"], ["layer 0", "layer 1"], "t", ONE)
    assert page.height == LINE * 3 + 2 * MARGIN + 2 * (40 + LINE + MARGIN)
    below = page.crop((0, page.height - 2 * (40 + LINE + MARGIN), *page.size))
    ys, xs = np.nonzero(_coloured(below))
    left, top = page.width - MARGIN - 120, below.height - (40 + LINE + MARGIN)
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (left + 60, left + 119, top + 20, top + 39)


def test_all_maps_of_a_sheet_are_coloured_by_one_scale(monkeypatch):
    """Half as much is half as red, in whichever map; the numbers below are not looked at."""
    picture, one = Image.new("RGB", (100, 40), (90, 90, 90)), torch.tensor([0.0, 0, 0, 1])
    scale = Scale.of([one, one / 2], signed=False, unit="u")
    page = sheet(picture, [[one, one / 2]], ["a"], ["b", "c"], "t", scale)
    map_y, right = page.height - LINE - MARGIN - 10, page.width - MARGIN - 10
    full, half = (np.asarray(page).astype(int)[map_y, x] for x in (right - 100 - MARGIN, right))
    assert full[0] - full[2] == pytest.approx(2 * (half[0] - half[2]), abs=2) and full[0] - full[2] > 100
    assert np.array_equal(full, np.asarray(heat_map(picture, one, 1.0)).astype(int)[30, 90])


def test_a_legend_runs_from_the_lowest_colour_to_the_highest_between_their_numbers():
    bar = np.asarray(legend(Scale(0.5, signed=True, unit="of it"))).astype(int)
    difference = (bar[..., 0] - bar[..., 2])[LINE // 2]
    coloured = np.flatnonzero(difference)
    assert coloured[-1] - coloured[0] >= LEGEND[0] - 2 and (np.diff(difference[coloured]) >= 0).all()
    assert difference.min() < -50 and difference.max() > 50
    assert (np.asarray(legend(ONE)).astype(int)[..., 0] >= np.asarray(legend(ONE)).astype(int)[..., 2]).all()
    texts = [legend(Scale(largest, signed, unit)) for largest, signed, unit in [(1, True, ""), (12345.6, True, "norm")]]
    assert texts[0].width + 50 < texts[1].width  # numbers and unit stand beside it


def test_columns_are_as_wide_as_what_is_written_over_and_under_them():
    narrow = Image.new("RGB", (10, 150), (90, 90, 90))
    page = sheet(narrow, [[torch.ones(4)] * 3], ["a"], ["mean of all layers"] * 3, "t", ONE)
    assert page.width > 4 * 90


def test_signs_that_the_font_lacks_are_written_out(monkeypatch):
    monkeypatch.setattr(lettering, "FONTS", ())
    picture, none = Image.new("RGB", (20, 20)), torch.zeros(4)
    written = [np.asarray(sheet(picture, [[none]], [word], ["a"], "t", ONE)) for word in ("\u8272", "\\u8272")]
    assert np.array_equal(*written)
