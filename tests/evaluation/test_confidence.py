"""Bootstrap intervals against what theory says of them."""

import numpy as np
import pytest

from dsmemvp.errors import UserError
from dsmemvp.evaluation.confidence import mean_score, score_of_sums

TWO_SIDED = 1.959964
"""Standard deviations that hold 95 % of a normal distribution."""


@pytest.mark.parametrize(("right", "samples"), [(915, 1000), (100, 200), (10_000, 200_000)])
def test_the_interval_of_an_accuracy_has_the_width_of_the_binomials_standard_error(right, samples):
    score = mean_score(np.arange(samples) < right)
    share = right / samples
    error = 100 * TWO_SIDED * np.sqrt(share * (1 - share) / samples)
    assert score.value == pytest.approx(100 * share) and score.samples == samples
    assert score.margin == pytest.approx(error, rel=0.06)
    assert score.low == pytest.approx(score.value - error, abs=0.15 * error)
    assert score.high == pytest.approx(score.value + error, abs=0.15 * error)


def test_the_interval_of_a_mean_has_the_width_of_its_standard_error():
    values = np.random.default_rng(3).normal(5.0, 2.0, 4000)
    score = mean_score(values, scale=1.0)
    assert score.value == pytest.approx(values.mean())
    assert score.margin == pytest.approx(TWO_SIDED * values.std() / np.sqrt(4000), rel=0.06)


def test_the_interval_of_a_ratio_of_sums_is_that_of_resampled_rows():
    """Against drawing the rows one by one, with other random numbers."""
    generator = np.random.default_rng(4)
    rows = np.stack([generator.integers(0, 5, 300), generator.integers(5, 9, 300)], axis=1).astype(float)
    score = score_of_sums(rows, lambda sums, n: sums[..., 0] / sums[..., 1])
    drawn = rows[generator.integers(0, 300, (4000, 300))].sum(1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    assert score.value == pytest.approx(rows[:, 0].sum() / rows[:, 1].sum())
    assert score.low == pytest.approx(low, rel=0.01) and score.high == pytest.approx(high, rel=0.01)


def test_it_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(5)
    scores = [mean_score(generator.random(400) < 0.7) for _ in range(200)]
    covered = sum(score.low <= 70 <= score.high for score in scores)
    assert 0.90 <= covered / 200 <= 0.99


def test_the_same_values_in_another_order_give_the_same_score():
    values = np.random.default_rng(6).random(1000)
    assert mean_score(values) == mean_score(values[::-1]) == mean_score(values)


def test_memory_is_bounded_without_changing_the_result(monkeypatch):
    values = np.random.default_rng(7).random(50)
    whole = mean_score(values)
    monkeypatch.setattr("dsmemvp.evaluation.confidence.DRAWS_AT_ONCE", 1000)
    assert mean_score(values) == whole


@pytest.mark.parametrize("values", [[1.0], [0.25, 0.25, 0.25]])
def test_values_that_do_not_differ_have_no_width(values):
    score = mean_score(np.array(values))
    assert score.low == score.value == score.high == 100 * values[0]


def test_no_sample_is_an_error():
    with pytest.raises(UserError, match="no sample"):
        mean_score(np.array([]))
