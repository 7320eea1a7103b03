"""Who computes what: every sample once, every rank as often as the others, and evenly."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmemvp.data.balancing import Weight, deal

WEIGHTS = st.lists(st.builds(Weight, st.integers(0, 500), st.booleans()), max_size=150)


@settings(max_examples=100, deadline=None)
@given(WEIGHTS, st.integers(1, 9), st.integers(1, 5))
def test_every_position_is_dealt_once_and_every_rank_has_as_many_micro_steps(weights, ranks, micro_batch):
    dealt = deal(weights, ranks, micro_batch)
    assert sorted(i for rank in dealt for part in rank for i in part) == list(range(len(weights)))
    steps = -(-len(weights) // (ranks * micro_batch))
    assert [len(rank) for rank in dealt] == [steps] * ranks
    for k in range(steps):
        sizes = [len(rank[k]) for rank in dealt]
        full = k < len(weights) // (ranks * micro_batch)
        assert sizes == [micro_batch] * ranks if full else max(sizes) - min(sizes) <= 1
        images = [sum(weights[i].image for i in rank[k]) for rank in dealt]
        assert max(images) - min(images) <= 1


@settings(max_examples=50, deadline=None)
@given(WEIGHTS, st.integers(1, 9), st.integers(1, 5))
def test_no_sample_of_a_later_micro_step_is_longer_than_one_of_an_earlier(weights, ranks, micro_batch):
    dealt = deal(weights, ranks, micro_batch)
    groups = [[weights[i].length for rank in dealt for i in rank[k]] for k in range(len(dealt[0]))]
    assert all(min(before) >= max(after) for before, after in itertools.pairwise(groups))


def test_the_dealing_is_the_documented_one():
    weights = [
        Weight(length, image) for length, image in [(9, 0), (8, 1), (7, 0), (6, 1), (5, 0), (4, 1), (3, 0), (2, 0)]
    ]
    # longest four: 9 8 7 6; of them the pictures first, 8 6 9 7, dealt to ranks 0 1 1 0; then 4 5 3 2
    assert deal(weights, ranks=2, micro_batch=2) == [[[1, 2], [5, 7]], [[3, 0], [4, 6]]]


def test_equal_samples_are_dealt_by_their_position_so_that_all_ranks_agree():
    assert deal([Weight(5, False)] * 4, ranks=2, micro_batch=1) == [[[0], [2]], [[1], [3]]]


def test_no_samples_are_no_micro_steps():
    assert deal([], ranks=3, micro_batch=2) == [[], [], []]


def drawn(rng: random.Random, samples: int) -> list[Weight]:
    """Characters as in ScienceQA: half of the questions have a picture and little text; of the others some have a
    passage of a thousand characters or more as their hint."""
    weights = []
    for _ in range(samples):
        image = rng.random() < 0.48
        passage = rng.random() < (0.15 if image else 0.25)
        weights.append(Weight(round(rng.lognormvariate(5.2, 0.4) + passage * rng.lognormvariate(6.5, 0.6)), image))
    return weights


def waste(weights: list[Weight], dealt: list[list[list[int]]]) -> float:
    """What all ranks compute or wait for, over what the texts alone would cost: a rank pads to its longest sample, and
    every micro-step takes as long as its slowest rank."""
    steps = range(len(dealt[0]))
    slowest = sum(max(len(rank[k]) * max(weights[i].length for i in rank[k]) for rank in dealt) for k in steps)
    return slowest * len(dealt) / sum(weight.length for weight in weights)


@pytest.mark.parametrize(("ranks", "micro_batch", "at_most"), [(2, 4, 0.65), (4, 4, 0.6), (8, 4, 0.55), (8, 1, 0.65)])
def test_less_is_computed_and_waited_for_than_where_samples_are_dealt_in_turn(ranks, micro_batch, at_most):
    rng = random.Random("lengths")
    ours, plain = 0.0, 0.0
    for _ in range(50):
        weights = drawn(rng, 4 * ranks * micro_batch)
        in_turn = [
            [
                list(range(start + rank, start + ranks * micro_batch, ranks))
                for start in range(0, len(weights), ranks * micro_batch)
            ]
            for rank in range(ranks)
        ]
        assert sorted(i for rank in in_turn for part in rank for i in part) == list(range(len(weights)))
        ours += waste(weights, deal(weights, ranks, micro_batch))
        plain += waste(weights, in_turn)
    assert ours / plain < at_most
