"""Every trial and run of a study, one after another on all ranks. What is finished is not done again, and a training
that was cut off resumes from its checkpoint: a killed study goes on if the same command is started again.

    OUT/study.json                    what is compared, as given, and the data's fingerprints, written before the first
                                      training
    OUT/tuned/CONTENDER.json          its trials' losses and the chosen settings
    OUT/runs/CONTENDER-trial-0 ...    a run's folder for each trial, and for each seed CONTENDER-seed-0 ...
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsmemvp.atomic_files import replace_file
from dsmemvp.comparison.study import Contender, Study
from dsmemvp.config.reading import as_dict, recipe_of
from dsmemvp.config.recipe import Recipe
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.errors import UserError
from dsmemvp.evaluation.evaluate import evaluate, look_and_score
from dsmemvp.evaluation.naming import file_suffix
from dsmemvp.json_text import read_json
from dsmemvp.log import log
from dsmemvp.progress import Progress
from dsmemvp.training.checkpoint_manager import agreed_checkpoint
from dsmemvp.training.context import RunContext
from dsmemvp.training.health import Diverged
from dsmemvp.training.loop import train
from dsmemvp.training.search import search, searching

WRITTEN, DATA = "study.json", "data"
ContextOf = Callable[[Recipe], RunContext]


def run_study(study: Study, out: Path, ranks: Ranks, context_of: ContextOf, task: int | None = None) -> None:
    """All contenders, or the one of a Slurm array's task. Raises UserError or OSError with what to do, and Stopped."""
    contenders = study.contenders if task is None else study.contenders[task : task + 1]
    progress = Progress("study", sum(runs_of(study, c) for c in contenders), "run", active=ranks.first)
    for contender in contenders:
        chosen = tune(study, contender, out, ranks, context_of, progress)
        for seed in seeds_of(study, contender):
            run(study, contender, chosen, seed, ranks, context_of)
            progress.advance(1)


def runs_of(study: Study, contender: Contender) -> int:
    """A search, trials and trainings."""
    return bool(contender.searched) + len(contender.trials) + len(seeds_of(study, contender))


def is_finished(study: Study) -> bool:
    """Whether every run has its scores, and the report can be written."""
    recipes = [recipe_for(c, run_name(c, seed), seed, ()) for c in study.contenders for seed in seeds_of(study, c)]
    return all(_is_evaluated(recipe, blind) for recipe in recipes for blind in evaluations_of(study))


def _is_evaluated(recipe: Recipe, blind: bool) -> bool:
    both = evaluation_file(recipe, blind), evaluation_file(recipe, blind, "predictions", "jsonl")
    return all(path.exists() for path in both)


def evaluations_of(study: Study) -> tuple[bool, ...]:
    """Of every run: whether it is blind."""
    return (False, True) if study.settings.blind else (False,)


def write_study(study: Study, out: Path, data: dict[str, str]) -> None:
    """Once, before any result; later starts must be of the same study and of the same `data` (guards.py)."""
    if check_written(study, out):
        check_data(data, out)
        return
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(study.as_dict() | {DATA: data}, indent=1, ensure_ascii=False) + "\n"
    replace_file(out / WRITTEN, text.encode(), shared=True)


def check_written(study: Study, out: Path) -> bool:
    """Whether the folder is that of this study; raises UserError if it is another one's. To be asked before anything in
    it is changed."""
    content, path = _written(out), out / WRITTEN
    if content is None:
        return False
    content.pop(DATA, None)
    if content != json.loads(json.dumps(study.as_dict())):
        raise UserError(
            f"{path} is of other settings than {study.path} has now; give another --out, or the old settings"
        )
    return True


def check_data(data: dict[str, str], out: Path) -> None:
    """Raises UserError if runs of the folder were trained or evaluated on other samples, or another base, than `data`
    has now."""
    before = (_written(out) or {}).get(DATA, {})
    changed = [key for key in data if key in before and before[key] != data[key]]
    if changed:
        what = "another model" if changed[0].startswith("model.") else "other samples"
        raise UserError(
            f"{changed[0]}: holds {what} than when {out / WRITTEN} was written, by its fingerprint; what was trained or"
            " evaluated before cannot be compared with it: give another --out, or restore it"
        )


def _written(out: Path) -> dict[str, Any] | None:
    path = out / WRITTEN
    try:
        content = read_json(path)
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get(DATA, {}), dict):
        raise UserError(f"{path} is damaged; delete it if the study's settings and data are still those of its runs")
    return content


def tune(
    study: Study, contender: Contender, out: Path, ranks: Ranks, context_of: ContextOf, progress: Progress
) -> tuple[str, ...]:
    """What a search has found, and the overrides of the trial with the lowest loss on data.validation at its end; none
    if there are no trials."""
    found = search_for(study, contender, ranks, context_of, progress)
    losses: list[float] = []
    for i, trial in enumerate(contender.trials):
        overrides = (*found, *trial)
        recipe = recipe_for(contender, f"{contender.name}-trial-{i}", study.settings.tune_seed, overrides)
        context = context_of(recipe)
        _lend(context, ranks)
        try:
            losses.append(_trained_loss(context, ranks))
        except Diverged as error:
            losses.append(math.inf)
            if ranks.first:
                log.info(f"{recipe.name}: is not chosen, its training diverged: {error}")
        progress.advance(1)
    if not losses:
        if found:
            ranks.together(lambda: _note_trials(out, contender, found, [], -1) if ranks.first else None)
        return found
    best = min(range(len(losses)), key=lambda i: (math.isnan(losses[i]), losses[i]))
    if not math.isfinite(losses[best]):
        raise UserError(f"tune: contender {contender.name}: every trial diverged; give lower learning rates")
    if ranks.first:
        log.info(f"{contender.name}: trial {best} has the lowest validation loss, {losses[best]:.4f}")
    ranks.together(lambda: _note_trials(out, contender, found, losses, best) if ranks.first else None)
    return (*found, *contender.trials[best])


def search_for(
    study: Study, contender: Contender, ranks: Ranks, context_of: ContextOf, progress: Progress
) -> tuple[str, ...]:
    """The override of the key that is searched for; none without one."""
    if not contender.searched:
        return ()
    recipe = recipe_for(contender, contender.name, study.settings.tune_seed, ())
    context = context_of(searching(recipe))
    _lend(context, ranks)
    found = search(context, recipe)
    assert found is not None
    progress.advance(1)
    return (f"{contender.searched}={found}",)


def _trained_loss(context: RunContext, ranks: Ranks) -> float:
    train(context, look_and_score)
    found, _ = agreed_checkpoint(context.folder, ranks)
    if found is None or found.state.validation_loss is None:
        raise UserError(f"tune: {context.folder} has no loss on data.validation at its end, by which it is judged")
    return found.state.validation_loss


def _note_trials(out: Path, contender: Contender, found: tuple[str, ...], losses: list[float], best: int) -> None:
    known = [loss if math.isfinite(loss) else None for loss in losses]
    rows = [{"settings": list(t), "validation_loss": x} for t, x in zip(contender.trials, known, strict=True)]
    content = {"searched": list(found), "trials": rows, "chosen": best}
    folder = out / "tuned"
    folder.mkdir(exist_ok=True)
    replace_file(folder / f"{contender.name}.json", (json.dumps(content, indent=1) + "\n").encode())


def run(
    study: Study, contender: Contender, chosen: tuple[str, ...], seed: int, ranks: Ranks, context_of: ContextOf
) -> None:
    """Train with a seed, then evaluate with and without images."""
    recipe = recipe_for(contender, run_name(contender, seed), seed, chosen)
    context = context_of(recipe)
    todo = [blind for blind in evaluations_of(study) if not _is_there(ranks, recipe, blind)]
    if not todo:
        if ranks.first:
            log.info(f"{recipe.name}: trained and evaluated already")
        return
    if contender.trains:
        _lend(context, ranks)
        train(context, look_and_score)
    for blind in todo:
        evaluate(context, blind)


def _lend(context: RunContext, ranks: Ranks) -> None:
    ranks.together(lambda: lend_token_counts(context.folder) if ranks.first else None)


def lend_token_counts(run: Path) -> None:
    """Those of the study's other runs, whose data are the same: to count takes longer than a short training."""
    run.mkdir(parents=True, exist_ok=True)
    for file in sorted(run.parent.parent.glob("*/*/token_counts-*.npy")):
        if not (run / file.name).exists():
            replace_file(run / file.name, file.read_bytes())


def _is_there(ranks: Ranks, recipe: Recipe, blind: bool) -> bool:
    return bool(ranks.gather([""] if ranks.first and _is_evaluated(recipe, blind) else []))


def seeds_of(study: Study, contender: Contender) -> list[int]:
    """One if nothing is trained: it has no chance in it."""
    return study.settings.seeds if contender.trains else study.settings.seeds[:1]


def run_name(contender: Contender, seed: int) -> str:
    return f"{contender.name}-seed-{seed}"


def recipe_for(contender: Contender, name: str, seed: int, overrides: tuple[str, ...]) -> Recipe:
    return recipe_of(as_dict(contender.recipe), name, [*overrides, f"name={name}", f"seed={seed}"])


def evaluation_file(recipe: Recipe, blind: bool, kind: str = "evaluation", ending: str = "json") -> Path:
    """Of the newest checkpoint on data.test."""
    suffix = file_suffix("", "test", recipe.evaluation.captions, recipe.evaluation.protocol, blind)
    return Path(recipe.output) / recipe.name / f"{kind}{suffix}.{ending}"
