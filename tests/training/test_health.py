"""Steps that are not finite, and losses that jump."""

import math

import pytest

from dsmemvp.errors import UserError
from dsmemvp.training.health import BEFORE, LEAST, Health


class Monitor:
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def _health(most=2, spike=0.0, not_finite=0):
    return Health(Monitor(), most, spike, not_finite)


def test_a_loss_or_a_gradient_that_is_not_finite_is_counted_and_said():
    health = _health()
    assert health.check(1, 0.5, 1.0)
    assert not health.check(2, math.nan, 1.0)
    assert not health.check(3, 0.5, math.inf)
    assert health.check(4, 0.5, 1.0) and health.not_finite == 2
    assert health._monitor.said == [
        "step 2: the loss is nan; nothing was updated (1 of 2 such steps that a run may have)",
        "step 3: the gradient norm is not finite; nothing was updated (2 of 2 such steps that a run may have)",
    ]


@pytest.mark.parametrize(("most", "before"), [(0, 0), (2, 2)])
def test_one_too_many_ends_the_run_also_where_it_goes_on(most, before):
    with pytest.raises(UserError, match=rf"^step 9: .*more than training\.most_not_finite = {most};"):
        _health(most, not_finite=before).check(9, math.inf, 1.0)


def _losses(number):
    """Mean 1, standard deviation 0.1."""
    return [1.1 if i % 2 else 0.9 for i in range(number)]


def test_a_spike_is_one_that_many_deviations_above_the_mean():
    for loss, spikes in ((1.49, 0), (1.51, 1), (-5.0, 0)):
        health = _health(spike=5.0)
        for step, before in enumerate(_losses(LEAST)):
            assert health.check(step, before, 1.0)
        assert health.check(LEAST, loss, 1.0)  # it is reported, not left out
        assert health.spikes == spikes == len(health._monitor.said)
    assert "loss spike" not in "".join(health._monitor.said)


def test_too_few_steps_before_and_a_limit_of_zero_say_nothing():
    for spike, before in ((5.0, LEAST - 1), (0.0, BEFORE)):
        health = _health(spike=spike)
        for step, loss in enumerate([*_losses(before), 100.0]):
            health.check(step, loss, 1.0)
        assert health.spikes == 0 and not health._monitor.said


def test_only_the_last_steps_are_compared_with_and_none_that_was_not_finite():
    health = _health(most=BEFORE, spike=5.0)
    for step, loss in enumerate([100.0] * 50 + [math.nan] * 9 + _losses(BEFORE) + [1.51]):
        health.check(step, loss, 1.0)
    assert health.spikes == 1
