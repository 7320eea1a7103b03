"""Intervals and differences against scipy, statsmodels and simulated studies whose truth is known."""

import numpy as np
import pandas
import pytest
from scipy import stats
from statsmodels.stats.anova import AnovaRM
from statsmodels.stats.multitest import multipletests

from dsmemvp.comparison import statistics
from dsmemvp.comparison.statistics import differences, estimates, holm


def test_with_one_seed_a_difference_is_the_paired_t_test():
    rng = np.random.default_rng(3)
    a, b = rng.random((1, 200)) < 0.7, rng.random((1, 200)) < 0.6
    (found,) = differences({"a": 1.0 * a, "b": 1.0 * b})
    expected = stats.ttest_rel(1.0 * a[0], 1.0 * b[0])
    assert found.estimate.p == pytest.approx(expected.pvalue, rel=1e-9)
    low, high = expected.confidence_interval(0.95)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((100 * low, 100 * high), rel=1e-9)


def test_where_samples_do_not_differ_seeds_alone_decide_as_in_welch_and_students_t():
    """Every sample of a seed has the same points: what is left is Student's t-test of the seeds' means."""
    a, b = np.array([0.50, 0.54, 0.58]), np.array([0.60, 0.61, 0.67])
    points = {name: np.repeat(own[:, None], 50, axis=1) for name, own in (("a", a), ("b", b))}
    (found,) = differences(points)
    expected = stats.ttest_ind(a, b)
    assert found.estimate.p == pytest.approx(expected.pvalue, rel=1e-9)
    low, high = expected.confidence_interval(0.95)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((100 * low, 100 * high), rel=1e-9)


def test_the_variance_is_that_of_two_crossed_factors():
    """The mean squares of statsmodels' two-way analysis without replication give the same components."""
    rng = np.random.default_rng(5)
    points = rng.random((4, 30)) + rng.normal(0, 0.3, (4, 1)) + rng.normal(0, 0.4, (1, 30))
    rows = [{"seed": s, "sample": i, "y": 100 * points[s, i]} for s in range(4) for i in range(30)]
    f = AnovaRM(pandas.DataFrame(rows), "y", "sample", within=["seed"]).fit().anova_table["F Value"].iloc[0]
    mean = 100 * points
    error = ((mean - mean.mean(0) - mean.mean(1, keepdims=True) + mean.mean()) ** 2).sum() / (3 * 29)
    of_seeds, of_samples = f * error / 30, 4 * mean.mean(0).var(ddof=1)  # mean squares: of seeds / N, of samples
    expected = np.sqrt(max(of_samples - error, 0) / 4 / 30 + of_seeds / 4)
    found = statistics._standard_error(mean, statistics.Seeds(mean.mean(1).var(ddof=1), 3))[0]
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03, 0.005], [0.5], [0.2, 0.2, 0.9, 0.001, 0.04]])
def test_holm_is_statsmodels(p_values):
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


@pytest.mark.parametrize(("seeds", "by_seed", "contenders"), [(3, 0.0, 2), (3, 0.03, 2), (3, 0.03, 4), (1, 0.0, 2)])
def test_equal_methods_are_called_different_no_more_often_than_promised(seeds, by_seed, contenders, monkeypatch):
    """200 studies of equal methods: with a rate of 5 %, 17 false differences are the 98.6 % quantile."""
    monkeypatch.setattr(statistics, "RESAMPLES", 10)
    rng, found = np.random.default_rng(11), 0
    for _ in range(200):
        difficulty = np.clip(0.7 + rng.normal(0, 0.25, 300), 0.02, 0.98)
        points = {}
        for name in range(contenders):
            chance = np.clip(difficulty + rng.normal(0, by_seed, (seeds, 1)), 0, 1)
            points[str(name)] = 1.0 * (rng.random((seeds, 300)) < chance)
        found += any(own.found for own in differences(points))
    assert found <= 17


def test_a_real_difference_is_found_and_an_interval_holds_it():
    rng = np.random.default_rng(2)
    points = {name: 1.0 * (rng.random((3, 1000)) < p) for name, p in (("a", 0.8), ("b", 0.7))}
    (own,) = differences(points)
    assert own.found and own.estimate.low < 10 < own.estimate.high
    low, high = own.estimate.bootstrap
    assert low < 10 < high and own.effect == pytest.approx(2 * (np.arcsin(0.8**0.5) - np.arcsin(0.7**0.5)), abs=0.05)


def test_one_run_of_an_untrained_model_stands_beside_every_seed():
    points = {"none": np.array([[1.0, 0.0, 1.0, 0.0]]), "a": np.array([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])}
    (own,) = differences(points)
    assert own.estimate.value == -37.5 and own.estimate.seeds == (-25.0, -50.0)
    assert estimates(points)["none"].seeds == (50.0,)


def test_contenders_without_any_mistake_are_no_error():
    (own,) = differences({"a": np.ones((2, 5)), "b": np.ones((2, 5))})
    assert own.estimate.p == 1 and not own.found


def test_a_single_answer_tells_nothing_apart():
    (own,) = differences({"a": np.ones((1, 1)), "b": np.zeros((1, 1))})
    assert own.estimate.value == 100 and own.estimate.p == 1 and not own.found
