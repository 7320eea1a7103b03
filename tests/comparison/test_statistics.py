"""Intervals and differences against scipy, statsmodels and simulated studies whose truth is known."""

import itertools

import numpy as np
import pandas
import pytest
from scipy import stats
from statsmodels.stats.anova import AnovaRM
from statsmodels.stats.multitest import multipletests

from dsmemvp.comparison.statistics import (
    differences,
    estimates,
    holm,
    p_values,
    parts_of,
    parts_of_difference,
    same_runs,
)


def test_with_one_seed_a_difference_is_the_paired_t_test():
    rng = np.random.default_rng(3)
    a, b = rng.random((1, 200)) < 0.7, rng.random((1, 200)) < 0.6
    (found,) = differences({"a": 1.0 * a, "b": 1.0 * b})
    expected = stats.ttest_rel(1.0 * a[0], 1.0 * b[0])
    assert found.estimate.p == pytest.approx(expected.pvalue, rel=1e-9)
    low, high = expected.confidence_interval(0.95)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((100 * low, 100 * high), rel=1e-9)


def _of_seeds(*scores):
    """Every sample of a seed has the same points."""
    return np.repeat(np.array(scores)[:, None], 50, axis=1)


@pytest.mark.parametrize("b", [(0.60, 0.61, 0.67), (0.64, 0.641, 0.642)])
def test_where_samples_do_not_differ_seeds_alone_decide_as_in_welch_s_test(b):
    a = (0.50, 0.54, 0.58)
    (found,) = differences({"a": _of_seeds(*a), "b": _of_seeds(*b)})
    expected = stats.ttest_ind(a, b, equal_var=False)
    assert found.estimate.p == pytest.approx(expected.pvalue, rel=1e-9)
    low, high = expected.confidence_interval(0.95)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((100 * low, 100 * high), rel=1e-9)


def test_the_seeds_of_a_single_contender_decide_as_in_student_s_test():
    (found,) = differences({"a": _of_seeds(0.50, 0.54, 0.58), "none": _of_seeds(0.44)})
    expected = stats.ttest_1samp([0.50, 0.54, 0.58], 0.44)
    assert found.estimate.p == pytest.approx(expected.pvalue, rel=1e-9)
    low, high = expected.confidence_interval(0.95)
    assert (found.estimate.low, found.estimate.high) == pytest.approx(
        (100 * (low - 0.44), 100 * (high - 0.44)), rel=1e-9
    )


def test_where_seeds_do_not_differ_samples_alone_decide_as_in_the_paired_t_test():
    rng = np.random.default_rng(3)
    a, b = 1.0 * (rng.random(200) < 0.7), 1.0 * (rng.random(200) < 0.6)
    (found,) = differences({"a": np.tile(a, (3, 1)), "b": np.tile(b, (3, 1))})
    assert found.estimate.p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)


def test_the_variance_is_that_of_two_crossed_factors():
    """The mean squares of statsmodels' two-way analysis without replication give the same components."""
    rng = np.random.default_rng(5)
    points = 100 * (rng.random((4, 30)) + rng.normal(0, 0.3, (4, 1)) + rng.normal(0, 0.4, (1, 30)))
    rows = [{"seed": s, "sample": i, "y": points[s, i]} for s in range(4) for i in range(30)]
    f = AnovaRM(pandas.DataFrame(rows), "y", "sample", within=["seed"]).fit().anova_table["F Value"].iloc[0]
    error = ((points - points.mean(0) - points.mean(1, keepdims=True) + points.mean()) ** 2).sum() / (3 * 29)
    of_seeds, of_samples = f * error / 30, 4 * points.mean(0).var(ddof=1)  # mean squares: of seeds / N, of samples
    samples, seeds = parts_of(points)
    assert (samples.freedom, seeds.freedom) == (29, 3)
    assert samples.variance == pytest.approx(max(of_samples - error, 0) / 4 / 30, rel=1e-9)
    assert seeds.variance == pytest.approx(of_seeds / 4, rel=1e-9)


def test_what_a_seed_does_to_both_is_no_chance_of_the_difference_between_two_ways_of_asking():
    rng = np.random.default_rng(4)
    blind = 0.5 + np.array([[-0.2], [0.0], [0.2]]) + rng.normal(0, 0.01, (3, 40))
    own = same_runs("a", "a, blind", blind + 0.1 + rng.normal(0, 0.01, (3, 40)), blind)
    (independent,) = differences({"a": blind + 0.1, "b": blind})
    assert own.found and own.holm == own.estimate.p < 0.001 and not independent.found


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03, 0.005], [0.5], [0.2, 0.2, 0.9, 0.001, 0.04]])
def test_holm_is_statsmodels(p_values):
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


CASES = [
    # seeds of each contender, and by how much of 1 they move its score
    pytest.param([3, 3], [0.0, 0.0], id="seeds that move nothing"),
    pytest.param([3, 3], [0.04, 0.04], id="alike"),
    pytest.param([3, 3], [0.1, 0.0], id="one moves, the other does not"),
    pytest.param([2, 2], [0.1, 0.0], id="the same with two seeds"),
    pytest.param([3] * 6, [0.1, *[0.0] * 5], id="one of six"),
    pytest.param([1, 3], [0.0, 0.05], id="an untrained one beside three seeds"),
    pytest.param([1, 2], [0.0, 0.1], id="an untrained one beside two seeds"),
    pytest.param([1, 3, 3], [0.0, 0.05, 0.05], id="an untrained one beside two of three seeds"),
    pytest.param([1, 1], [0.0, 0.0], id="one seed each"),
]


@pytest.mark.parametrize(("seeds", "moves"), CASES)
def test_equal_methods_are_called_different_no_more_often_than_promised(seeds, moves):
    """1,000 studies of 300 samples without any difference, against the 99 % quantile of 5 %."""
    rng, studies, found = np.random.default_rng(11), 1000, 0
    for _ in range(studies // 100):
        difficulty = rng.uniform(0.22, 0.78, (100, 1, 300))
        points = [
            # symmetric and not cut off, so that the expected score is the same for all
            100.0 * (rng.random((100, s, 300)) < difficulty + np.clip(rng.normal(0, move, (100, s, 1)), -0.22, 0.22))
            for s, move in zip(seeds, moves, strict=True)
        ]
        p = [
            p_values(a.mean((1, 2)) - b.mean((1, 2)), parts_of_difference(a, b))
            for a, b in itertools.combinations(points, 2)
        ]
        found += sum(min(holm(own)) < 0.05 for own in np.array(p).T)
    assert found <= stats.binom.ppf(0.99, studies, 0.05)


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
    assert (estimates(points)["a"].low, estimates(points)["a"].high) == (0.0, 100.0)  # of two seeds, 75 and 100


def test_contenders_without_any_mistake_are_no_error():
    (own,) = differences({"a": np.ones((2, 5)), "b": np.ones((2, 5))})
    assert own.estimate.p == 1 and not own.found


def test_a_single_answer_tells_nothing_apart():
    (own,) = differences({"a": np.ones((1, 1)), "b": np.zeros((1, 1))})
    assert own.estimate.value == 100 and own.estimate.p == 1 and not own.found
