"""The drawn questions: the same for the same seed, with valid fields and pictures that show the answer."""

import io
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data_prep.demo import COLOURS, PLACES, SIDE, draw_picture, sample
from dsmemvp.data.sample import sample_from_row


def rows(number=400, seed=0, **more):
    rng = random.Random(seed)
    return [sample(rng, f"k{i}", with_picture=i % 2 == 0, **more) for i in range(number)]


def test_the_same_seed_draws_the_same_samples():
    assert rows(30, seed=1) == rows(30, seed=1)
    assert [r.fields for r in rows(30, seed=1)] != [r.fields for r in rows(30, seed=2)]


def test_every_row_is_a_sample_with_what_the_scores_need():
    for i, row in enumerate(rows()):
        checked = sample_from_row(row.fields, row.image, row.key)
        assert row.key == row.fields["id"] == f"k{i}"
        assert 2 <= len(checked.choices) <= 5 and len(set(checked.choices)) == len(checked.choices)
        assert checked.scores["subject"] in ("natural science", "social science", "language science")
        assert 1 <= checked.scores["grade"] <= 12
        assert (checked.image is not None) == (i % 2 == 0) == bool(checked.caption)


def test_no_picture_is_drawn_where_none_is_wanted():
    assert all(row.image is None for row in rows(20, draw=False))
    assert sum(bool(row.fields["caption"]) for row in rows(20, draw=False)) == 10


def test_the_answer_to_a_question_about_a_picture_stands_in_its_caption_only():
    for row in rows()[::2]:
        answer = row.fields["choices"][row.fields["answer"]]
        assert answer in row.fields["caption"].rstrip(".").split()
        assert answer not in row.fields["context"].lower().split()


def test_answers_and_kinds_of_question_are_spread():
    found = rows(1200)
    letters = Counter(row.fields["answer"] for row in found if len(row.fields["choices"]) == 3)
    assert len(letters) == 3 and min(letters.values()) > 0.2 * sum(letters.values())
    subjects = Counter(row.fields["subject"] for row in found[::2])
    assert len(subjects) == 3 and min(subjects.values()) > 0.25 * 600
    hints = [bool(row.fields["context"]) for row in found[1::2]]
    assert 0.4 < sum(hints) / len(hints) < 0.6


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "star"])
@pytest.mark.parametrize("place", list(PLACES))
def test_a_picture_shows_its_colour_in_its_place(shape, place):
    for colour, channels in COLOURS.items():
        image = Image.open(io.BytesIO(draw_picture(random.Random(3), colour, shape, place)))
        assert image.format == "PNG" and image.size == (SIDE, SIDE) and image.mode == "RGB"
        near = (np.abs(np.asarray(image, dtype=int) - channels) <= 40).all(-1)
        rows, columns = np.nonzero(near)
        assert len(rows) > 60, (colour, shape)
        x, y = columns.mean() / SIDE, rows.mean() / SIDE
        wanted_x, wanted_y = PLACES[place]
        assert abs(x - wanted_x) < 0.12 and abs(y - wanted_y) < 0.12, (colour, shape, place)
