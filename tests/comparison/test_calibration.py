"""Expected calibration error, by hand and of answers whose truth is known."""

import json

import numpy as np
import pytest

from dsmemvp.comparison.calibration import calibration, confidences


def test_it_is_the_weighted_gap_of_bins_of_equal_width():
    sure, right = np.array([[0.95, 0.94, 0.55, 0.56, 1.0]]), np.array([[1, 0, 1, 1, 1]])
    found = calibration(sure, right)
    expected = 100 * (3 * abs(2 / 3 - (0.95 + 0.94 + 1) / 3) + 2 * abs(1 - 0.555)) / 5
    assert found.error == pytest.approx(expected) and found.seeds == (found.error,)
    assert [count for _, _, count in found.bins] == [2, 3]
    assert found.bins[0][:2] == pytest.approx((55.5, 100.0))


def test_answers_that_are_right_as_often_as_said_have_nearly_none():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.25, 1, (3, 20_000))
    assert calibration(sure, rng.random(sure.shape) < sure).error < 1.5
    late = calibration(sure, rng.random(sure.shape) < sure - 0.1)
    assert late.error == pytest.approx(10, abs=1.5) and np.ptp(late.seeds) < 2


def test_confidence_is_the_share_of_the_likeliest_choice_or_the_text_s_probability(tmp_path):
    rows = [
        {"evaluation": "captions off, likelihood", "index": 3, "log_likelihoods": [np.log(0.1), np.log(0.3)]},
        {"evaluation": "captions off, likelihood", "index": 4},
        {"evaluation": "captions on, likelihood", "index": 5, "log_likelihoods": [0.0, 0.0]},
        {"evaluation": "captions off, likelihood", "index": 6, "log_probability": np.log(0.4)},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert confidences(tmp_path / "p.jsonl", "captions off, likelihood") == {
        3: pytest.approx(0.75),
        6: pytest.approx(0.4),
    }
