"""How long a study will take, and that every contender runs, before the first long training: each is trained for a few
steps and asked a few questions.

    OUT/probe/NAME.json     its seconds, measured once
"""

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from dsmemvp.atomic_files import replace_file
from dsmemvp.comparison.budget import spans, stretched
from dsmemvp.comparison.running import ContextOf, lend_token_counts
from dsmemvp.comparison.study import Contender, Study
from dsmemvp.config.reading import as_dict, recipe_of
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.datasets import open_test_data
from dsmemvp.data.loader import Share, evaluation_batches, evaluation_steps
from dsmemvp.distributed.ranks import Ranks
from dsmemvp.evaluation.evaluate import answering_of
from dsmemvp.fault_tolerance.lease import held_lease
from dsmemvp.training.checkpoint_manager import agreed_checkpoint
from dsmemvp.training.context import RunContext
from dsmemvp.training.inference import open_for_inference
from dsmemvp.training.loop import train
from dsmemvp.training.record import rows_of

STEPS, FIRST = 12, 4
"""Steps of a probe, and how many of them are not measured: they take longer."""
BATCHES = 4
"""Of questions, on each rank; the first one is not measured."""
MINUTES = 2.0
"""Most time of a probe's questions: some models answer slowly, and one batch says enough."""


@dataclass(frozen=True)
class Pace:
    """Seconds on the machine of the probe, with its number of ranks."""

    step: float
    """Of a training; 0 if the method trains nothing."""
    start: float
    """Until the first step, and the last checkpoint."""
    answer: float
    """Of a question of data.test, all ranks together."""
    loading: float
    """Until the first question."""


def pace_of(study: Study, contender: Contender, out: Path, ranks: Ranks, context_of: ContextOf) -> Pace:
    """From its file, or measured. Raises what `train` raises."""
    file = out / "probe" / f"{contender.name}.json"
    about = _about(contender)
    known = ranks.together(lambda: _read(file, about) if ranks.first else "")
    if not (told := ranks.gather([known] if known else [])):
        pace = _measure(study, contender, out, ranks, context_of)
        text = json.dumps({"recipe": about, **asdict(pace)}, indent=1) + "\n"
        ranks.together(lambda: replace_file(file, text.encode()) if ranks.first else None)
        told = ranks.gather([text] if ranks.first else [])
    return _pace(told[0])


def known_paces(study: Study, out: Path, as_given: bool = False) -> dict[str, Pace]:
    """Of those contenders that were measured; `as_given`, with the recipes that the study has."""
    files = [(c, out / "probe" / f"{c.name}.json") for c in study.contenders]
    texts = {c.name: _read(file, _about(c) if as_given else "") for c, file in files}
    return {name: _pace(text) for name, text in texts.items() if text}


def _about(contender: Contender) -> str:
    return hashlib.sha256(json.dumps(as_dict(contender.recipe)).encode()).hexdigest()


def _pace(text: str) -> Pace:
    """Raises ValueError, KeyError or TypeError for a damaged one."""
    content = json.loads(text)
    del content["recipe"]
    pace = Pace(**{name: float(seconds) for name, seconds in content.items()})
    if not all(0 <= seconds < float("inf") for seconds in asdict(pace).values()):
        raise ValueError("seconds")
    return pace


def _read(file: Path, about: str = "") -> str:
    """Empty if it is not there, of another recipe, or damaged."""
    try:
        text = file.read_text(encoding="utf-8")
        _pace(text)
        return text if about in ("", json.loads(text)["recipe"]) else ""
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _measure(study: Study, contender: Contender, out: Path, ranks: Ranks, context_of: ContextOf) -> Pace:
    context = context_of(_short(study, contender, out))
    # of two starts at a time one measures: the other one would remove its folder
    with held_lease(out / "probe" / contender.name, ranks, context.stop, context.heartbeat):
        ranks.together(lambda: _begin_anew(context.folder) if ranks.first else None)
        step = start = 0.0
        if contender.trains:
            began = time.monotonic()
            train(context)
            whole = time.monotonic() - began
            if ranks.first:
                step, start = _of_training(contender, context, whole)
        return Pace(step, start, *_asked(context))


def _begin_anew(run: Path) -> None:
    shutil.rmtree(run, ignore_errors=True)
    lend_token_counts(run)


def _short(study: Study, contender: Contender, out: Path) -> Recipe:
    """STEPS steps of every stage, without validation."""
    name, recipe = f"{contender.name}-probe", contender.recipe
    overrides = [f"name={name}", f"output={json.dumps(str(out / 'probe'))}", f"seed={study.settings.tune_seed}"]
    overrides += ["data.validation=", "training.log_every=1", "training.keep_best=0", "training.best_by=loss"]
    if contender.trains:
        *before, last = spans(recipe)
        recipe = stretched(recipe, STEPS / last.per_epoch)
        for span in before:
            own = f"stages.{span.name}.training"
            overrides += [f"{own}.epochs={STEPS / span.per_epoch}", f"{own}.warmup_epochs=0"]
    return recipe_of(as_dict(recipe), name, overrides)


def _of_training(contender: Contender, context: RunContext, whole: float) -> tuple[float, float]:
    """Seconds of a step of the last stage, and of all before it: a start and the stages before."""
    rows = [r for r in rows_of(context.folder / "metrics.jsonl") if "speed/samples_per_second" in r]
    start, step = whole, 0.0
    for short, span in zip(spans(context.recipe), spans(contender.recipe), strict=True):
        own = [row for row in rows if short.first < row["step"] <= short.last]
        rates = [row["speed/samples_per_second"] for row in own[FIRST:] or own]
        step = span.recipe.training.global_batch / float(np.median(rates))
        start += (span.last - span.first) * step - len(own) * step
    last = spans(contender.recipe)[-1]
    return step, max(0.0, start - (last.last - last.first) * step)


def _asked(context: RunContext) -> tuple[float, float]:
    """Seconds of a question, and until the first one."""
    began, recipe, ranks = time.monotonic(), context.recipe, context.ranks
    found, _ = agreed_checkpoint(context.folder, ranks)
    opened = open_for_inference(recipe, ranks, found)
    answering = answering_of(recipe, ranks, opened)
    data, share = open_test_data(recipe), Share(ranks.rank, ranks.world, recipe.evaluation.batch)
    collator = replace(opened.collator, answers=True, captions=recipe.evaluation.captions[0])
    batches = evaluation_batches(data, share)[: BATCHES * ranks.world]
    ends = [loaded := time.monotonic()]
    with torch.no_grad():
        for (batch,) in ranks.in_step(evaluation_steps(data, collator, share, recipe.data.workers, batches)):
            context.poll("measuring", 0)
            answering(batch)
            ends.append(time.monotonic())
            if ranks.any(ends[-1] - loaded > 60 * MINUTES):
                break
    seconds = np.diff(ends)[1:] if len(ends) > 2 else np.diff(ends)
    return float(np.median(seconds)) / min(share.micro_batch * ranks.world, data.samples), loaded - began
