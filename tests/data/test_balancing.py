"""Who computes what: every sample once, every rank as often as the others, and evenly."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmemvp.data.balancing import CostModel, Weight, balance, batch_cost, fewest_parts, imbalance
from dsmemvp.data.batch import Item
from dsmemvp.data.layout import Reserved
from dsmemvp.data.packing import make_batch
from dsmemvp.data.text import EncodedText

WEIGHTS = st.lists(st.builds(Weight, st.integers(1, 500), st.booleans()), max_size=120)
COSTS = CostModel(1.0, 0.001, 6.0)


def flat(shares) -> list[int]:
    return sorted(i for rank in shares for part in rank for i in part)


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, st.integers(1, 9), st.integers(1, 5), st.sampled_from([0, 100, 700]))
def test_every_sample_is_computed_once_and_every_rank_has_as_many_micro_steps(weights, ranks, micro_batch, most):
    shares = balance(weights, COSTS, ranks, micro_batch, most)
    assert flat(shares) == list(range(len(weights)))
    (steps,) = {len(rank) for rank in shares}
    if not most:
        assert steps == math.ceil(len(weights) / (ranks * micro_batch))
    parts = [part for rank in shares for part in rank]
    assert all(parts) or sum(map(bool, parts)) == len(weights)  # empty ones only if there are too few samples


def test_samples_just_above_a_part_of_micro_tokens_are_placed_at_the_first_attempt():
    """By the sum of tokens alone, 4096 of them were tried with 2,000 numbers of micro-batches."""
    for share in (2, 3, 5):
        weights = [Weight(600 // share + 1, False)] * 120
        assert fewest_parts(weights, 600) == 120 // (share - 1) == len(balance(weights, COSTS, 1, 4, 600)[0])


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, st.integers(1, 9), st.integers(1, 400))
def test_no_micro_batch_holds_more_than_micro_tokens_but_a_longer_sample_alone(weights, ranks, most):
    for part in (part for rank in balance(weights, COSTS, ranks, 4, most) for part in rank):
        assert len(part) <= 1 or sum(weights[i].tokens for i in part) <= most


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, st.integers(1, 9), st.integers(1, 5))
def test_no_micro_batch_costs_more_than_the_mean_and_its_last_sample(weights, ranks, micro_batch):
    """Graham's bound of a greedy schedule."""
    shares = balance(weights, COSTS, ranks, micro_batch)
    mean = sum(map(COSTS, weights)) / max(1, len(shares[0]) * ranks)
    for part in (part for rank in shares for part in rank if part):
        prices = [COSTS(weights[i]) for i in part]
        assert sum(prices) <= mean + min(prices) + 1e-6


def test_the_balancing_is_the_documented_one():
    weights = [Weight(tokens, False) for tokens in (9, 8, 7, 6, 5, 4, 3, 2)]
    # into two: 9 | 8, 9 | 15, 15 | 15, 20 | 15, 20 | 19, 20 | 22, 22 | 22
    assert balance(weights, CostModel(), ranks=2, micro_batch=4) == [[[0, 3, 4, 7]], [[1, 2, 5, 6]]]


def test_micro_batches_of_like_cost_run_at_the_same_time():
    weights = [Weight(tokens, False) for tokens in (10, 10, 1, 1)]
    assert balance(weights, CostModel(), ranks=2, micro_batch=1) == [[[0], [2]], [[1], [3]]]
    weights = [Weight(tokens, False) for tokens in (10, 9, 5, 1)]  # who had more in the first has less in the second
    assert balance(weights, CostModel(), ranks=2, micro_batch=1) == [[[0], [3]], [[1], [2]]]


def test_an_image_is_weighed_like_the_tokens_that_it_costs():
    weights = [Weight(10, True), Weight(10, False), Weight(5, False)]
    assert balance(weights, CostModel(1, 0, 5), ranks=2, micro_batch=2) == [[[0]], [[1, 2]]]
    assert COSTS(Weight(10, True)) == 10 + 0.1 + 6


def test_the_number_of_micro_steps_is_the_least_with_which_all_samples_find_a_place():
    weights = [Weight(60, False)] * 4
    assert [len(balance(weights, CostModel(), 1, 1, most)[0]) for most in (1000, 240, 239, 120, 119)] == [1, 1, 2, 2, 4]
    assert len(balance([*weights, Weight(500, False)], CostModel(), 1, 1, 120)[0]) == 3


def test_equal_samples_are_spread_by_their_position_so_that_all_ranks_agree():
    assert balance([Weight(5, False)] * 4, CostModel(), ranks=2, micro_batch=1) == [[[0], [2]], [[1], [3]]]


@pytest.mark.parametrize("most", [0, 10])
def test_no_samples_are_no_micro_steps(most):
    assert balance([], CostModel(), ranks=3, micro_batch=2, micro_tokens=most) == [[], [], []]


def test_the_cost_of_a_batch_is_that_of_its_samples():
    image = make_batch([], 4).batch.images.new_zeros(3, 4, 4)
    items = [Item(0, EncodedText([1, 2, 3], 2, False), image), Item(1, EncodedText([1] * 9, 2, False), None)]
    batch = make_batch(items, 4, (Reserved("image", 5),)).batch
    assert batch_cost(batch, COSTS) == COSTS(Weight(8, True)) + COSTS(Weight(9, False))
    # without an image the vision tower runs all the same, on a dummy row
    assert batch_cost(make_batch(items[1:], 4).batch, COSTS) == COSTS(Weight(9, True))
    assert batch_cost(make_batch([], 4).batch, COSTS) == COSTS(Weight(1, True))


def test_imbalance_is_what_waiting_adds():
    assert imbalance([[1, 1], [1, 1]]) == 1
    assert imbalance([[2], [1], [0]]) == 2
    assert imbalance([[3, 1], [1, 3]]) == 1.5  # even in sum, but the ranks wait for one another in every micro-step


def test_the_more_samples_a_rank_has_the_more_even_it_is():
    weights = [Weight(int(20 + 400 * ((i * 0.618) % 1) ** 3), i % 2 == 0) for i in range(256)]
    found = []
    for samples in (16, 64, 256):
        shares = balance(weights[:samples], COSTS, 8, 64)
        found.append(imbalance([[sum(COSTS(weights[i]) for i in part) for part in rank] for rank in shares]))
    assert all(after <= before for before, after in itertools.pairwise(found)) and found[-1] < 1.01
