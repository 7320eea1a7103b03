"""Budgets: as many steps for every contender, whatever the data's length."""

import pytest

from dsmemvp.comparison.budget import spans, with_budget
from dsmemvp.comparison.study import read_study
from dsmemvp.errors import UserError
from dsmemvp.training.schedule import learning_rate

PER_EPOCH = 6
"""Steps: 48 samples, 8 of them in a batch. The recipe has 2 epochs, of which 1 is warm-up."""


@pytest.fixture
def read(recipe_path, tmp_path):
    def made(budget, *overrides):
        path = tmp_path / "study.yaml"
        contenders = "{a: {method: {hidden: 8}}, b: {method: {name: input_space}}}"
        head = f"recipe: {recipe_path}\ncontenders: {contenders}\n"
        path.write_text(head + (f"budget: {budget}\n" if budget else ""))
        return read_study(path, tmp_path / "out", overrides)

    return made


def _steps(study):
    return spans(study.contenders[0].recipe)[-1].last


@pytest.mark.parametrize(
    ("budget", "steps"),
    [("{steps: 7}", 7), ("{steps: 1}", 1), ("{samples: 80}", 10), ("{epochs: 0.5}", 3), ("{steps: 100001}", 100001)],
)
def test_all_contenders_make_so_many_steps_and_the_schedule_keeps_its_shape(read, budget, steps):
    for contender in with_budget(read(budget)).contenders:
        training = contender.recipe.training
        assert spans(contender.recipe)[-1].last == steps
        assert training.warmup_epochs == pytest.approx(training.epochs / 2)
        assert learning_rate(steps, PER_EPOCH, training) == pytest.approx(0, abs=1e-9)
        assert learning_rate(steps / 2, PER_EPOCH, training) == pytest.approx(training.learning_rate)


def test_steps_of_the_schedule_keep_their_share(read):
    given = ["training.schedule=steps", "training.step_epochs=[1, 1.5]", "training.warmup_epochs=0"]
    study = with_budget(read("{steps: 24}", *given))
    assert study.contenders[0].recipe.training.step_epochs == [2.0, 3.0] and _steps(study) == 24


def test_without_a_budget_the_recipe_decides(read):
    study = read("")
    assert with_budget(study) is study and _steps(study) == 12


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("{steps: 3, epochs: 1}", "budget: give one of epochs, steps, samples, seconds"),
        ("{step: 3}", "line 3: unknown key 'budget.step'; known of a budget: epochs, steps"),
        ("{steps: 2.5}", "line 3: budget.steps: must be a whole number"),
        ("3", "budget is a mapping"),
        ("{samples: 30}", r"budget.samples: 30 are no whole number of batches of 8 samples .*; take 24"),
        ("{samples: 3}", "take 8"),
        ("{steps: 1000001}", r"training.epochs: must be above 0 and at most 100,000"),
    ],
)
def test_a_budget_s_mistakes_are_told(read, budget, said):
    with pytest.raises(UserError, match=said):
        with_budget(read(budget))
