"""The learning rate's published shape, and the others."""

import math

import pytest

from dsmemvp.config.recipe import Training
from dsmemvp.training.schedule import learning_rate

TRAINING = Training(epochs=20, warmup_epochs=2, learning_rate=1.125e-3, min_learning_rate=0.0)
STEPS = 397  # per epoch, ScienceQA


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (STEPS, 1.125e-3 / 2),
        (2 * STEPS, 1.125e-3),
        (11 * STEPS, 1.125e-3 / 2),
        (20 * STEPS - 1, 1.125e-3 * 0.5 * (1 + math.cos(math.pi * (18 * STEPS - 1) / (18 * STEPS)))),
    ],
)
def test_it_rises_linearly_per_step_and_falls_along_half_a_cosine(step, expected):
    assert learning_rate(step, STEPS, TRAINING) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_without_warm_up_it_starts_at_the_peak_and_ends_at_the_minimum():
    training = Training(epochs=2, warmup_epochs=0, learning_rate=1.0, min_learning_rate=0.1)
    assert learning_rate(0, 10, training) == 1.0
    assert learning_rate(20, 10, training) == pytest.approx(0.1)


def test_it_falls_along_a_line():
    training = Training(epochs=10, warmup_epochs=1, learning_rate=5e-4, schedule="linear")
    assert [learning_rate(step, 10, training) for step in (5, 10, 55, 100)] == pytest.approx([2.5e-4, 5e-4, 2.5e-4, 0])


def test_it_falls_in_steps_at_the_end_of_their_epochs():
    """MITP's family: times 0.4 at epochs 3 and 6."""
    steps = {"schedule": "steps", "step_epochs": [3.0, 6.0], "step_factor": 0.4}
    training = Training(epochs=10, warmup_epochs=0, learning_rate=5e-4, **steps)
    found = [learning_rate(step, 10, training) for step in (0, 29, 30, 59, 60, 99)]
    assert found == pytest.approx([5e-4, 5e-4, 2e-4, 2e-4, 0.8e-4, 0.8e-4])
