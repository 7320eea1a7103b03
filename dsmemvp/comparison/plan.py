"""How many runs a study makes, and about how long they take, from the probe of every contender."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dsmemvp.comparison.budget import spans, with_budget
from dsmemvp.comparison.probe import Pace, known_paces, pace_of
from dsmemvp.comparison.running import ContextOf, evaluations_of, seeds_of
from dsmemvp.comparison.study import Contender, Study
from dsmemvp.counting import counted
from dsmemvp.data.datasets import open_test_data, open_validation_data
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.errors import UserError
from dsmemvp.markdown import table


@dataclass(frozen=True)
class Plan:
    """Of one contender."""

    trials: int
    trainings: int
    evaluations: int
    steps: int
    """Of a training, all stages."""
    seconds: float
    """Of all."""


def planned(study: Study, out: Path, ranks: Ranks, context_of: ContextOf, task: int | None) -> Study:
    """Measures the contenders, or the one of a task, and says what is to come. -> the study with a budget in seconds
    made one in steps. Raises what `train` raises."""
    in_seconds = bool(study.settings.budget.seconds)
    own = study.contenders if in_seconds or task is None else study.contenders[task : task + 1]
    paces = {contender.name: pace_of(study, contender, out, ranks, context_of) for contender in own}
    if in_seconds:
        study = ranks.together(lambda: with_budget(study, {name: pace.step for name, pace in paces.items()}))
    if ranks.first:
        plans = {c.name: plan_of(study, c, paces[c.name]) for c in study.contenders if c.name in paces}
        print(*lines(plans, paces), sep="\n", flush=True)
    return study


def with_known_budget(study: Study, out: Path) -> Study:
    """As `planned` gives it, of what was measured before. Raises UserError if that is not all."""
    if not study.settings.budget.seconds:
        return study
    check_measured(study, out)
    return with_budget(study, {name: pace.step for name, pace in known_paces(study, out, as_given=True).items()})


def check_measured(study: Study, out: Path) -> None:
    """For tasks of an array, which must all have the same numbers. Raises UserError if a contender was not measured."""
    known = known_paces(study, out, as_given=True)
    for contender in study.contenders:
        if contender.name not in known:
            raise UserError(
                f"budget.seconds: contender {contender.name} was not measured yet; start the same command with --plan"
                " on one of the nodes, and then this one"
            )


def plan_of(study: Study, contender: Contender, pace: Pace) -> Plan:
    recipe, seeds = contender.recipe, len(seeds_of(study, contender))
    evaluations = seeds * len(evaluations_of(study)) * len(recipe.evaluation.captions)
    asking = evaluations * (pace.loading + open_test_data(recipe).samples * pace.answer)
    if not contender.trains:
        return Plan(0, 0, evaluations, 0, asking)
    last = spans(recipe)[-1]
    validations = math.ceil(recipe.training.epochs / recipe.training.checkpoint_epochs)
    validation = open_validation_data(recipe)
    # a sample of data.validation is taken to cost as much as a question
    validating = validations * validation.samples * pace.answer if validation else 0.0
    training = pace.start + (last.last - last.first) * pace.step + validating
    searching = _of_search(contender, last.per_epoch, pace) if contender.searched else 0.0
    runs = len(contender.trials) + seeds
    return Plan(len(contender.trials), seeds, evaluations, last.last, searching + runs * training + asking)


def _of_search(contender: Contender, per_epoch: int, pace: Pace) -> float:
    """Every step also scores some values, each taken to cost as much as the answers; at most, as draws may be alike."""
    recipe = contender.recipe
    scored = recipe.search.draws * (recipe.search.batch or recipe.training.global_batch // 2)
    return pace.start + recipe.search.epochs * per_epoch * (pace.step + scored * pace.answer)


def lines(plans: Mapping[str, Plan], paces: Mapping[str, Pace]) -> list[str]:
    names, own = list(plans), list(plans.values())
    runs = sum(plan.trials + plan.trainings for plan in own)
    said = f"{counted(runs, 'training')} and {counted(sum(plan.evaluations for plan in own), 'evaluation')}"
    columns = [
        ["contender", *names],
        ["trials", *(str(plan.trials) for plan in own)],
        ["trainings", *(str(plan.trainings) for plan in own)],
        ["steps", *(str(plan.steps) for plan in own)],
        ["s/step", *(f"{paces[name].step:.3g}" for name in names)],
        ["s/answer", *(f"{paces[name].answer:.3g}" for name in names)],
        ["time", *(duration(plan.seconds) for plan in own)],
    ]
    whole = duration(sum(plan.seconds for plan in own))
    return [*table(columns, left=1), "", f"{said}, about {whole} on this machine, as measured just now or before"]


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
