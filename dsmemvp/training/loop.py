"""The training run: batches -> steps -> checkpoints, the same on every rank."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dsmemvp.backbones.costs import cost_model
from dsmemvp.checkpoints.checkpoint import Checkpoint
from dsmemvp.config.reading import as_dict, as_yaml
from dsmemvp.counting import counted
from dsmemvp.data.balancing import CostModel
from dsmemvp.data.batch import MicroBatch
from dsmemvp.data.collator import Collator
from dsmemvp.data.loader import Balancing, Share, training_steps
from dsmemvp.distributed.stopping import Stopped
from dsmemvp.errors import UserError
from dsmemvp.fault_tolerance.lease import held_lease
from dsmemvp.log import log
from dsmemvp.prompts.interface import Callback
from dsmemvp.training.checkpoint_manager import CheckpointManager, Guard
from dsmemvp.training.context import RunContext
from dsmemvp.training.engine import Trainer, build_trainer
from dsmemvp.training.features import with_features
from dsmemvp.training.health import Health
from dsmemvp.training.mixture import Mixture
from dsmemvp.training.model_loading import load_base
from dsmemvp.training.monitor import Monitor, peak_memory, write_json
from dsmemvp.training.prefetch import on_device
from dsmemvp.training.preparation import Prepared, agreed_origin, count_this_start, prepare, training_token_counts
from dsmemvp.training.saving import Saving
from dsmemvp.training.skips import Skips
from dsmemvp.training.stages import Span
from dsmemvp.training.starting import take_over, teach
from dsmemvp.training.step import Totals, exchange, take_step
from dsmemvp.training.throughput import Throughput, multiplied
from dsmemvp.training.validation import Evaluator, reference_loss
from dsmemvp.training.vectors import stored_vectors

More = Callable[[RunContext, Prepared, Trainer, Monitor], Callback]
"""Makes a callback beside the method's own, once the run is loaded and before it resumes."""


def train(context: RunContext, evaluator: Evaluator | None = None, more: More | None = None, only: str = "") -> Path:
    """Train to the end of the recipe, or of the one stage `only`, resuming from the newest intact checkpoint in the
    run's folder; returns that folder. `evaluator` is called beside the loss on data.validation, and needed if
    training.best_by is score. Raises UserError or OSError with what to do, and Stopped if `stop` asked for it."""
    with held_lease(context.folder, context.ranks, context.stop, context.heartbeat) as guard:
        prepared = prepare(context, only)
        if not prepared.is_over:
            _train(context, prepared, evaluator, more, guard)
        elif context.ranks.first:
            log.info(f"{context.recipe.name}: trained to step {prepared.until} already")
    return context.folder


def _train(
    context: RunContext, prepared: Prepared, evaluator: Evaluator | None, more: More | None, guard: Guard
) -> None:
    recipe, ranks, training, first = context.recipe, context.ranks, context.recipe.training, prepared.start.step
    context.end_if_asked("before the first step")
    count_this_start(context, first)
    prepared = with_features(context, prepared)
    context.at("loading", first)
    span, base = prepared.span, prepared.base
    trainer = build_trainer(span.recipe, base.configs, ranks, load_base(base, ranks), span.stage)
    if prepared.checkpoint is not None:
        _check_same_kind(prepared.checkpoint, len(trainer.model.method.callbacks()) + (more is not None))
    if prepared.checkpoint is not None and first > span.first:
        trainer.resume(prepared.checkpoint)
    else:
        take_over(trainer, prepared.origin, ranks)
    teach(trainer, prepared.origin, ranks)
    context.end_if_asked("before the first step")
    context.stop.plan = "saving after this micro-step, then ending"
    monitor = Monitor(context.folder, ranks.first, prepared.steps, first, training.loggers)
    keep = training.keep_last, training.keep_best, training.best_by
    ends = [each.last for each in prepared.spans[:-1]]
    manager = CheckpointManager(context.folder, ranks, monitor, *keep, guard, ends)
    try:
        callbacks = [*trainer.model.method.callbacks()]
        if more is not None:
            callbacks.append(more(context, prepared, trainer, monitor))
        for callback, state in zip(callbacks, prepared.start.callbacks, strict=bool(prepared.start.callbacks)):
            callback.load_state_dict(state)
        _introduce(context, prepared, trainer, monitor)
        health = Health(monitor, training.most_not_finite, training.spike, prepared.start.not_finite)
        saving = Saving(context, prepared, trainer, manager, monitor, health, evaluator, callbacks)
        skips = Skips(ranks, monitor, training.global_batch, recipe.data.most_bad_in_a_row)
        _Loop(context, prepared, trainer, monitor, saving, health, skips, callbacks).run()
    finally:
        manager.wait()
        monitor.close()


def _check_same_kind(checkpoint: Checkpoint, callbacks: int) -> None:
    """Raises UserError if one of both is a search and the other is not."""
    if len(checkpoint.state.callbacks) != callbacks:
        raise UserError(
            f"name: {checkpoint.trained.parent} is of a search, and this is none, or the other way round; take another"
            " name for the run"
        )


def _introduce(context: RunContext, prepared: Prepared, trainer: Trainer, monitor: Monitor) -> None:
    recipe, ranks, first = context.recipe, context.ranks, prepared.start.step
    for complaint in prepared.complaints:
        monitor.say(complaint)
    if ranks.first:
        write_json(context.folder / "recipe.json", as_dict(recipe))
        monitor.show_recipe(as_dict(recipe), as_yaml(recipe), first)
    trained = sum(math.prod(shape) for shape in trainer.shapes().values())
    order, epochs = prepared.span.data.order, prepared.span.epochs
    epoch = f"{counted(order.samples, 'sample')} and {counted(order.steps, 'step')} per epoch"
    whole = f"{epochs:.4g} epoch{'s' * (epochs != 1)}, {counted(ranks.world, 'rank')} on {ranks.device.type}"
    after = ""
    if first and prepared.checkpoint is not None:
        after = f", resuming after step {first}"
    elif prepared.origin.found:
        after = f", from {prepared.origin.found[0].trained.parent}"
    monitor.say(f"{recipe.name}: {trained:,} trained parameters, {epoch}, {whole}{after}")
    if order.repeats:
        monitor.say(f"the last batch of every epoch is completed with its first {counted(order.repeats, 'sample')}")


@dataclass
class _Loop:
    """The steps of a run, from where it begins to its end."""

    context: RunContext
    prepared: Prepared
    trainer: Trainer
    monitor: Monitor
    saving: Saving
    health: Health
    skips: Skips
    callbacks: Sequence[Callback]
    cut: int = 0
    """Samples whose context was cut, since this start."""

    def __post_init__(self) -> None:
        self.step = self.prepared.start.step
        """Steps made."""
        self.trained = self.prepared.span
        """The stage that the trainer is made for."""
        self._know_model()

    def _know_model(self) -> None:
        self.monitor.stage = self.trained.name if len(self.prepared.spans) > 1 else ""
        self.language_parameters = multiplied(self.trainer.model.language)
        self.mixture = Mixture(self.trainer.model.choose)

    def run(self) -> None:
        try:
            if self.prepared.owes_validation:
                self.saving.save(self.step)
            for span in self.prepared.spans:
                self._train_stage(span)
        except Stopped:
            self._save_and_end()
        self.saving.finish(self.step)
        if self.cut:
            cut = counted(self.cut, "context was", "contexts were")
            most = self.context.recipe.data.max_length
            self.monitor.say(f"{cut} cut to data.max_length = {most} tokens")
        self.skips.report()

    def _train_stage(self, span: Span) -> None:
        until = min(span.last, self.prepared.until)
        if self.step >= until:
            return
        if span is not self.trained:
            self._begin_stage(span)
        if len(self.prepared.spans) > 1:
            self.monitor.say(f"stage {span.name}: steps {span.first + 1} to {span.last}")
        self.skips.begin_stage(span.recipe.training.global_batch, span.recipe.data.most_bad_in_a_row)
        training = self.context.recipe.training
        throughput = Throughput()
        collator = span.inputs.collator
        if span.stage.vectors:
            stored = stored_vectors(self.context, self.trainer, span, self.monitor, self.step)
            collator = replace(collator, vectors=stored)
        self.context.at("reading", self.step)
        balancing = self._balancing(span)
        for batches in self.context.ranks.in_step(self._batches(span, until, balancing, collator)):
            if span.stage.reference_every and (self.step - span.first) % span.stage.reference_every == 0:
                with throughput.paused():
                    self._measure_reference(batches)
            self._train_step(span, batches, throughput, balancing.costs)
            self.step += 1
            for callback in self.callbacks:
                callback.after_step(self.step, self.trainer.model.method)
            if self.step % training.log_every == 0 and throughput.steps:
                self._log(span, throughput, batches)
                throughput = Throughput()
            self.monitor.advance()
            if self.saving.is_due(self.step):
                with throughput.paused():
                    self.saving.save(self.step)
            self.context.at("reading", self.step)

    def _begin_stage(self, span: Span) -> None:
        self.context.at("loading", self.step)
        if span.shares_model(self.trained) and not span.start_from:
            self.trainer.begin_stage(span.recipe, span.stage)
        else:
            self.saving.finish(self.step)  # what the stage before has trained is taken from its last checkpoint
            ranks = self.context.ranks
            self.trainer.build(span.recipe, span.stage)
            origin = agreed_origin(span, self.prepared.spans, self.context, self.prepared.start.base)
            take_over(self.trainer, origin, ranks)
            teach(self.trainer, origin, ranks)
        self.trained = span
        self.health.begin_stage()
        self._know_model()

    def _balancing(self, span: Span) -> Balancing:
        inputs, ranks, configs = span.inputs, self.context.ranks, span.inputs.configs
        vision, language = span.recipe.vision, configs.language if span.stage.decoder else None
        sees = inputs.method.sees_images and span.stage.vision and not vision.cache_features
        adapters = vision.adapter_dim > 0
        costs = cost_model(language, configs.vision, sees, configs.resolution if sees else 0, adapters)
        return Balancing(costs, training_token_counts(ranks, self.context.folder, span.data, inputs.collator))

    def _batches(self, span: Span, until: int, balancing: Balancing, collator: Collator) -> Iterator[list[MicroBatch]]:
        """This rank's, of the steps to come."""
        recipe, ranks = span.recipe, self.context.ranks
        share = Share(ranks.rank, ranks.world, recipe.training.micro_batch, recipe.training.micro_tokens)
        steps = range(self.step - span.first, until - span.first)
        data, workers = span.data, recipe.data.workers
        pinned = ranks.device.type == "cuda"
        source = training_steps(data.manifests, data.order, collator, share, steps, workers, balancing, pinned)
        return on_device(source, ranks.device)

    def _train_step(self, span: Span, batches: Sequence[MicroBatch], throughput: Throughput, costs: CostModel) -> None:
        totals = exchange(self.context, self.trainer, span, batches, costs, self.saving.requested())
        if totals.asked:
            raise Stopped(f"after step {self.step}")
        if totals.requested:
            self.saving.begin_if_new(self.step)
        self._note(batches, totals)
        result = take_step(self.context, self.trainer, span, self.step, batches, totals)
        if self.health.check(self.step + 1, result.loss, result.norm):
            parts = result.losses if len(result.losses) > 1 else {}
            throughput.add(result.loss, totals.samples, totals.tokens, totals.imbalance, parts, result.measures)
            throughput.rate, throughput.norm = result.rate, result.norm

    def _measure_reference(self, batches: Sequence[MicroBatch]) -> None:
        """Before the step that it is recorded with."""
        loss, step = reference_loss(self.context, self.trainer, batches, self.step), self.step + 1
        self.monitor.record(step, {"measure/reference_loss": loss}, f"step {step}  reference loss {loss:.4f}")

    def _save_and_end(self) -> None:
        self.saving.begin_if_new(self.step)
        self.saving.finish(self.step)
        self.monitor.say(f"step {self.step}: ended as asked; the same command resumes here")
        raise Stopped(f"after step {self.step}")

    def _note(self, batches: Sequence[MicroBatch], totals: Totals) -> None:
        """What the step has seen and left out, for the record."""
        self.cut += int(totals.cut)
        if totals.skipped:
            self.skips.note(self.step + 1, batches)
        else:
            self.skips.none()
        if self.context.recipe.data.record_order:
            assigned = self.context.ranks.gather([json.dumps(pair) for micro in batches for pair in micro.assigned])
            samples = [number for _, number in sorted(map(json.loads, assigned))]
            self.monitor.write("order", {"step": self.step + 1, "samples": samples})

    def _log(self, span: Span, throughput: Throughput, batches: Sequence[MicroBatch]) -> None:
        mixture, changed = self.mixture.of([micro.batch for micro in batches])
        if changed:
            self.monitor.say(f"step {self.step}: {changed}")
        numbers = throughput.numbers(self.language_parameters) | {
            "speed/peak_gib": peak_memory(self.context.ranks.device),
            "training/cut_contexts": float(self.cut),
            "training/skipped_samples": float(self.skips.total),
            "training/not_finite": float(self.health.not_finite),
            "training/spikes": float(self.health.spikes),
            **mixture,
        }
        own = "".join(f"  {name} {numbers[f'loss/{name}']:.4f}" for name in throughput.losses)
        own += "".join(f"  {name} {numbers[f'measure/{name}']:.4f}" for name in throughput.measures)
        tokens = ""
        if self.language_parameters:
            tokens = f"  {numbers['speed/tokens_per_second']:.0f} tokens/s  {numbers['speed/tflops']:.3g} TFLOP/s"
        rate, norm = throughput.rate, throughput.norm
        line = (
            f"step {self.step}  epoch {span.finished_epochs(self.step - 1) + 1}  loss {numbers['loss/train']:.4f}{own}"
            f"  lr {rate:.2e}  grad {norm:.3f}  {numbers['speed/samples_per_second']:.1f} samples/s{tokens}"
            f"  {numbers['speed/peak_gib']:.2f} GiB"
        )
        self.monitor.record(self.step, numbers, line)
