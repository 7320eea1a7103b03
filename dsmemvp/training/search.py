"""The search for a method's setting, such as the layer at which DVP's prompt enters: a training run in which every step
takes a value at random, and a bandit learns from scores on data.search which values are good. Its run is NAME-search.

It ends with recipes in RUN/recipes: one with the value found, and controls with 0, an eighth and half of the largest
value + 1. Draws and scores are the same on every rank: the first one draws, and scores are of all ranks' samples.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dsmemvp.atomic_files import replace_file
from dsmemvp.config.reading import as_dict, as_yaml
from dsmemvp.config.recipe import Recipe
from dsmemvp.data.batch import MicroBatch
from dsmemvp.data.datasets import open_search_data, open_test_data, open_training_data, open_validation_data
from dsmemvp.data.loader import Share, training_steps
from dsmemvp.data.manifest import Manifest, check_files
from dsmemvp.errors import UserError
from dsmemvp.inputs import open_inputs
from dsmemvp.log import log
from dsmemvp.model import loss_sum
from dsmemvp.prompts.interface import VisualPrompt
from dsmemvp.training.bandit import Bandit
from dsmemvp.training.checkpoint_manager import agreed_checkpoint
from dsmemvp.training.context import RunContext
from dsmemvp.training.engine import Trainer
from dsmemvp.training.loop import train
from dsmemvp.training.monitor import Monitor
from dsmemvp.training.preparation import Prepared
from dsmemvp.training.search_check import check_search
from dsmemvp.training.search_picture import PI, picture
from dsmemvp.training.validation import evaluating

PICTURE_EVERY = 50
"""Recorded steps between two pictures of the policy."""


def searching(recipe: Recipe) -> Recipe:
    """The recipe of the search: its own length and rate, and nothing of validation."""
    search = recipe.search
    training = replace(
        recipe.training,
        epochs=search.epochs,
        warmup_epochs=0.0,
        learning_rate=search.learning_rate,
        min_learning_rate=search.learning_rate,
        schedule="cosine",
        step_epochs=[],
        keep_best=0,
        best_by="loss",
    )
    data = replace(recipe.data, validation="")
    return replace(recipe, name=f"{recipe.name}-search", training=training, data=data)


def search(context: RunContext, recipe: Recipe) -> int | None:
    """`context` is that of `searching(recipe)`. -> the value found, on all ranks; None if the search was stopped before
    its end. Raises what `train` raises."""
    check_search(recipe)
    ranks = context.ranks
    ranks.together(lambda: _check_data(recipe) if ranks.first else None)
    inputs = open_inputs(context.recipe)
    train(context, more=Search)
    checkpoint, _ = agreed_checkpoint(context.folder, ranks)
    if checkpoint is None or context.recipe.training.stop_at_step:
        return None
    bandit = Bandit(inputs.method.choices(), recipe.search.rule, recipe.search.rate, recipe.seed)
    _check_same(recipe, open_search_data(recipe, ())[0], checkpoint.state.callbacks[-1])
    bandit.load_state_dict(checkpoint.state.callbacks[-1])
    ranks.together(lambda: _write(context.folder, recipe, bandit, inputs.method) if ranks.first else None)
    return bandit.best


def _check_data(recipe: Recipe) -> None:
    others = [*open_training_data(recipe).manifests]
    others += [manifest for manifest in (open_validation_data(recipe),) if manifest]
    others += [open_test_data(recipe)] if recipe.data.test else []
    manifest, _ = open_search_data(recipe, others)
    check_files(manifest)


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {f"search.{name}": value for name, value in as_dict(recipe)["search"].items()}


def _named(data: Manifest) -> dict[str, str]:
    return {"location": data.location, "fingerprint": data.fingerprint}


def _check_same(recipe: Recipe, data: Manifest, state: dict[str, Any]) -> None:
    """Raises UserError naming the key, if a search began with other settings, or scored on other samples."""
    now = _named(data)
    before = state.get("data", now)
    if before["fingerprint"] != now["fingerprint"]:
        raise UserError(
            f"data.search: {now['location']} has other samples than {before['location']}, with which this search began;"
            " take another name or that folder"
        )
    for key, value in _settings(recipe).items():
        was = state["settings"].get(key)
        if was != value:
            raise UserError(f"{key}: is {value}, but this search began with {was}; take another name or that value")


def _write(folder: Path, recipe: Recipe, bandit: Bandit, method: VisualPrompt) -> None:
    arms, found, key = method.choices(), bandit.best, method.searched
    controls = [value for value in dict.fromkeys((0, arms // 8, arms // 2)) if value != found]
    paths = []
    for value in (found, *controls):
        own = replace(recipe, name=f"{recipe.name}-{key}-{value}", method=replace(recipe.method, **{key: value}))
        path = folder / "recipes" / f"{own.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        about = "found by dsmemvp search" if value == found else "a control: not found, but fixed"
        replace_file(path, f"# method.{key}: {about}.\n{as_yaml(own)}".encode())
        paths.append(path)
    share = bandit.pi[found].item()
    log.info(f"method.{key}: {found} of 0 to {arms - 1}, pi {share:.3f}, entropy {bandit.entropy:.3f} -> {paths[0]}")
    log.info(f"controls: {', '.join(map(str, paths[1:]))}")


def likelihood(loss: float) -> float:
    """Of a loss per token. One that is not a number makes it 0, as an infinite one: else it would make all of the
    preferences so, in the checkpoints, too."""
    return 0.0 if math.isnan(loss) else math.exp(-loss)


def _hits(logits_SV: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[S] bool: of several labels, [S, V], all must be right."""
    if targets.is_floating_point():
        return ((logits_SV >= 0) == targets.bool()).all(-1)
    return logits_SV.argmax(-1) == targets


class Search:
    """The callback. All ranks call the same methods together."""

    def __init__(self, context: RunContext, prepared: Prepared, trainer: Trainer, monitor: Monitor):
        recipe, ranks = context.recipe, context.ranks
        self._context, self._trainer, self._monitor = context, trainer, monitor
        self._arms = trainer.model.method.choices()
        self._bandit = Bandit(self._arms, recipe.search.rule, recipe.search.rate, recipe.seed)
        self._trained, self._scored = [0] * self._arms, [0] * self._arms
        """How often each value was trained with, and scored."""
        self._until = prepared.until
        manifest, order = open_search_data(recipe, ())
        self._data = manifest
        share = Share(ranks.rank, ranks.world, recipe.training.micro_batch, recipe.training.micro_tokens)
        steps = range(prepared.start.step, prepared.until)
        collator = prepared.span.inputs.collator
        source = training_steps([manifest], order, collator, share, steps, recipe.data.workers)
        self._batches = ranks.in_step(source)
        self._take(trainer.model.method)

    def after_step(self, step: int, method: VisualPrompt) -> None:
        """Score, learn, and take the next step's value."""
        self._trained[self._arm] += 1
        self._context.at("scoring", step)
        batches = next(self._batches)
        drawn = self._agreed(self._bandit.draw(self._context.recipe.search.draws))
        of_arm = {arm: self._score(batches, arm, method, step) for arm in sorted(set(drawn))}
        scores = [of_arm[arm] for arm in drawn]
        for arm in drawn:
            self._scored[arm] += 1
        self._bandit.update(drawn, scores)
        self._take(method)
        if step % self._context.recipe.training.log_every == 0 or step == self._until:
            self._record(step, sum(scores) / len(scores))

    def state_dict(self) -> dict[str, Any]:
        counts = {"arm": self._arm, "trained": list(self._trained), "scored": list(self._scored)}
        of = {"settings": _settings(self._context.recipe), "data": _named(self._data)}
        return self._bandit.state_dict() | counts | of

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError for the state of another search."""
        _check_same(self._context.recipe, self._data, state)
        self._bandit.load_state_dict(state)
        self._trained, self._scored = list(state["trained"]), list(state["scored"])
        self._arm = state["arm"]
        self._trainer.model.method.choose(self._arm)

    def _take(self, method: VisualPrompt) -> None:
        (self._arm,) = self._agreed([self._bandit.any_arm()])
        method.choose(self._arm)

    def _agreed(self, drawn: Sequence[int]) -> list[int]:
        """The first rank's draws."""
        ranks = self._context.ranks
        return [int(number) for number in ranks.sums(*(drawn if ranks.first else [0] * len(drawn)))]

    def _score(self, batches: Sequence[MicroBatch], arm: int, method: VisualPrompt, step: int) -> float:
        """In percent, without dropout, of all ranks' samples."""
        method.choose(arm)
        loss, tokens, right, samples = 0.0, 0, 0, 0
        with evaluating(self._trainer):
            for micro in batches:
                batch = micro.batch.to(self._context.ranks.device)
                logits_SV, _ = self._trainer.engine(batch)
                loss += loss_sum(logits_SV, batch.targets).item()
                tokens += batch.targets.numel()
                hits = _hits(logits_SV, batch.targets).cpu().split(list(batch.supervised_counts))
                answers = [bool(own.all()) for own in hits if own.numel()]
                right, samples = right + sum(answers), samples + len(answers)
        whole_loss, supervised, all_right, answered = self._context.ranks.sums(loss, tokens, right, samples)
        if not answered:
            raise UserError(f"data.search: after step {step} no sample of the batch could be used")
        by_accuracy = self._context.recipe.search.score == "accuracy"
        return 100.0 * (all_right / answered if by_accuracy else likelihood(whole_loss / supervised))

    def _record(self, step: int, score: float) -> None:
        pi, best = self._bandit.pi, self._bandit.best
        numbers = {"search/score": score, "search/entropy": self._bandit.entropy, "search/best": float(best)}
        numbers |= {f"{PI}{arm:03}": share for arm, share in enumerate(pi.tolist())}
        line = f"step {step}  search score {score:.2f}  entropy {numbers['search/entropy']:.3f}"
        self._monitor.record(step, numbers, f"{line}  best {best} (pi {pi[best]:.3f})")
        if step == self._until or step % (PICTURE_EVERY * self._context.recipe.training.log_every) == 0:
            self._monitor.show_image("search/pi over the steps", picture(self._monitor.written("metrics")), step)
