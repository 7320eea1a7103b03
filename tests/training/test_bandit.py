"""The bandit's updates against dvp_reference.json, and what it finds among arms of known worth."""

import json
import math
import random

import pytest
import torch

from dsmemvp.training.bandit import Bandit
from dsmemvp.training.search import likelihood


@pytest.fixture
def recorded(shared):
    return json.loads((shared / "reference" / "dvp_reference.json").read_text())


def _updated(recorded, rule: str) -> list[float]:
    bandit = Bandit(4, rule, recorded["eta"], seed=0)
    bandit.alpha = torch.tensor(recorded["alpha0"])
    torch.testing.assert_close(bandit.pi, torch.tensor(recorded["pi0"], dtype=torch.float64), atol=1e-6, rtol=0)
    bandit.update(recorded["arms"], recorded["scores"])
    return bandit.alpha.tolist()


@pytest.mark.parametrize(
    ("rule", "name"), [("published", "alpha_published"), ("corrected", "alpha_corrected_mean_loo")]
)
def test_an_update_is_the_recorded_one(recorded, rule, name):
    assert _updated(recorded["kab"], rule) == pytest.approx(recorded["kab"][name], abs=1e-6)


def test_an_update_of_the_scienceqa_variant_is_the_formula(recorded):
    """Its scores are 100 exp(-loss), its step size is 10."""
    given, formula = recorded["kab"], recorded["kab_sqa_formula"]
    scores = [100 * math.exp(-loss) for loss in formula["losses"]]
    assert scores == pytest.approx(formula["scores"])
    assert _updated({**given, "scores": scores, "eta": 10.0}, "published") == pytest.approx(formula["alpha"], rel=1e-5)


def test_the_corrected_rule_finds_the_best_of_32_arms_in_noise():
    worth = [60 + 3 * math.sin(arm / 5) for arm in range(32)]
    noise, bandit = random.Random(3), Bandit(32, "corrected", 0.02, seed=1)
    assert bandit.entropy == pytest.approx(math.log(32))
    for _ in range(1500):
        arms = bandit.draw(10)
        bandit.update(arms, [worth[arm] + noise.gauss(0, 3) for arm in arms])
    assert worth[bandit.best] > max(worth) - 0.1 and bandit.entropy < 2.5


def test_a_loss_that_is_not_a_number_leaves_preferences_that_are():
    bandit = Bandit(4, "corrected", 0.02, seed=0)
    bandit.update([0, 1, 2], [100 * likelihood(loss) for loss in (0.5, math.nan, math.inf)])
    assert bandit.alpha.isfinite().all() and bandit.best == 0 and len(bandit.draw(3)) == 3


def test_a_loaded_bandit_goes_on_with_the_same_draws():
    first = Bandit(8, "corrected", 0.02, seed=5)
    for _ in range(3):
        first.update(first.draw(4), [1.0, 2.0, 3.0, 5.0])
    second = Bandit(8, "corrected", 0.02, seed=9)
    assert second.draw(4) != first.draw(4) or second.any_arm() != first.any_arm()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert torch.equal(second.alpha, first.alpha)
    assert [second.any_arm(), *second.draw(6)] == [first.any_arm(), *first.draw(6)]
