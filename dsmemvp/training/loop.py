"""The training run: batches -> steps -> checkpoints, the same on every rank."""

import json
import math
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from dsmemvp.backbones.fingerprint import base_fingerprint
from dsmemvp.backbones.partitioned import whole_shape
from dsmemvp.backbones.weights import read_configs
from dsmemvp.checkpoints.checkpoint import State
from dsmemvp.config.reading import as_dict, as_yaml
from dsmemvp.config.recipe import Recipe
from dsmemvp.counting import counted
from dsmemvp.data.batch import Batch
from dsmemvp.data.collator import Collator, recipe_collator
from dsmemvp.data.datasets import TrainingData, open_training_data, open_validation_data
from dsmemvp.data.loader import Share, training_steps
from dsmemvp.data.manifest import Manifest, check_files
from dsmemvp.distributed.ranks import Ranks, seed_dropout
from dsmemvp.distributed.stopping import Stop, Stopped
from dsmemvp.errors import UserError
from dsmemvp.fault_tolerance.heartbeat import Heartbeat
from dsmemvp.fault_tolerance.lease import held_lease
from dsmemvp.fault_tolerance.restart_limit import count_start
from dsmemvp.training.checkpoint_manager import CheckpointManager, Guard, agreed_checkpoint
from dsmemvp.training.engine import Trainer, build_trainer
from dsmemvp.training.gradients import GradientWatch
from dsmemvp.training.health import Health
from dsmemvp.training.monitor import Monitor, peak_memory, write_json
from dsmemvp.training.schedule import learning_rate
from dsmemvp.training.skips import Skips
from dsmemvp.training.throughput import Throughput, imbalance
from dsmemvp.training.validation import Evaluator, epochs_are_over, examine, owes_validation, validation_loss


def train(recipe: Recipe, ranks: Ranks, stop: Stop, heartbeat: Heartbeat, evaluator: Evaluator | None = None) -> Path:
    """Train to the end of the recipe, going on from the newest intact checkpoint in the run's folder; returns that
    folder. `evaluator` is made beside the loss on data.validation, and needed where training.best_by is score. Raises
    ValueError, OSError or FloatingPointError with what to do, and Stopped where `stop` asked for it."""
    run = Path(recipe.output) / recipe.name
    with held_lease(run, ranks, stop, heartbeat) as guard:
        _train(recipe, ranks, stop, heartbeat, evaluator, guard)
    return run


def _train(
    recipe: Recipe, ranks: Ranks, stop: Stop, heartbeat: Heartbeat, evaluator: Evaluator | None, guard: Guard
) -> None:
    run = Path(recipe.output) / recipe.name
    data, validation = open_training_data(recipe), open_validation_data(recipe)
    manifests = [*data.manifests, *([validation] if validation else [])]
    ranks.together(lambda: check_files(*manifests) if ranks.first else None)
    configs = read_configs(recipe)
    checkpoint, complaints = agreed_checkpoint(run, ranks)
    state = checkpoint.state if checkpoint else State()
    last = recipe.training.epochs * data.order.steps
    until = min(last, recipe.training.stop_at_step or last)
    base = ranks.together(lambda: base_fingerprint(recipe))
    if checkpoint is not None:
        checkpoint.check_method(as_dict(recipe))
        checkpoint.check_order(data.identity)
        checkpoint.check_base(base)
    if state.step >= until and not (validation and owes_validation(state, recipe, data.order.steps)):
        if ranks.first:
            print(f"{recipe.name}: trained to step {until} already", flush=True)
        return
    _end_if_asked(ranks, stop)
    limit = recipe.training.most_fruitless_starts
    ranks.together(lambda: count_start(run, state.step, os.environ, limit) if ranks.first else None)
    heartbeat.at("loading", state.step)
    collator = recipe_collator(recipe, configs.resolution, configs.language.vocab_size)
    trainer = build_trainer(recipe, configs, ranks)
    if checkpoint is not None:
        shapes = trainer.master_weights.shapes()
        trainer.master_weights.set(checkpoint.values(shapes))
        trainer.master_weights.set_moments(checkpoint.moments(shapes), state.updates)
    _end_if_asked(ranks, stop)
    stop.plan = "saving after this micro-step, then ending"
    monitor = Monitor(run, ranks.first, last, state.step)
    for complaint in complaints:
        monitor.say(complaint)
    if ranks.first:
        write_json(run / "recipe.json", as_dict(recipe))
        monitor.show_text("recipe", as_yaml(recipe), state.step)
    _introduce(recipe, ranks, trainer, data, monitor, state.step)
    start = replace(state, order=data.identity, recipe=as_dict(recipe), base=base)
    collator = replace(collator, slots=trainer.model.method.slots)
    asked, training = (recipe, ranks, stop, heartbeat, monitor), recipe.training
    saver = CheckpointManager(run, ranks, monitor, training.keep_last, training.keep_best, training.best_by, guard)
    try:
        _Run(*asked, trainer, collator, saver, data, validation, evaluator, start).steps(until)
    finally:
        saver.wait()
        monitor.close()


def _end_if_asked(ranks: Ranks, stop: Stop) -> None:
    if ranks.any(stop.asked):
        raise Stopped("before the first step")


def _introduce(
    recipe: Recipe, ranks: Ranks, trainer: Trainer, data: TrainingData, monitor: Monitor, first: int
) -> None:
    trained = sum(math.prod(shape) for shape in trainer.master_weights.shapes().values())
    order = data.order
    epoch = f"{counted(order.samples, 'sample')} and {counted(order.steps, 'step')} per epoch"
    whole = f"{counted(recipe.training.epochs, 'epoch')}, {counted(ranks.world, 'rank')} on {ranks.device.type}"
    after = f", going on after step {first}" if first else ""
    monitor.say(f"{recipe.name}: {trained:,} trained parameters, {epoch}, {whole}{after}")
    if order.repeats:
        monitor.say(f"the last batch of every epoch is completed with its first {counted(order.repeats, 'sample')}")


class _Run:
    def __init__(
        self,
        recipe: Recipe,
        ranks: Ranks,
        stop: Stop,
        heartbeat: Heartbeat,
        monitor: Monitor,
        trainer: Trainer,
        collator: Collator,
        saver: CheckpointManager,
        data: TrainingData,
        validation: Manifest | None,
        evaluator: Evaluator | None,
        start: State,
    ):
        training = recipe.training
        self.recipe, self.ranks, self.stop, self.heartbeat = recipe, ranks, stop, heartbeat
        self.trainer, self.collator, self.monitor = trainer, collator, monitor
        self.data, self.validation, self.evaluator, self.start = data, validation, evaluator, start
        self.per_epoch = data.order.steps
        self.gradients: GradientWatch | None = GradientWatch(trainer.model.trainables())
        self.skips = Skips(ranks, monitor, training.global_batch, recipe.data.most_bad_in_a_row)
        self.health = Health(monitor, training.most_not_finite, training.spike, start.not_finite)
        self.saver = saver
        self.saver.saved = start.step
        self.language_parameters = sum(math.prod(whole_shape(p)) for p in trainer.model.language.parameters())
        self.cut = 0

    def steps(self, until: int) -> None:
        training, first = self.recipe.training, self.start.step
        share = Share(self.ranks.rank, self.ranks.world, training.micro_batch)
        source = training_steps(
            self.data.manifests, self.data.order, self.collator, share, range(first, until), self.recipe.data.workers
        )
        if self.validation is not None and owes_validation(self.start, self.recipe, self.per_epoch):
            self._save(first)
        window = Throughput()
        self.heartbeat.at("reading", first)
        for step, batches in enumerate(self.ranks.in_step(source), first):
            self._step(step, batches, window)
            if (step + 1) % training.log_every == 0 and window.steps:
                self._log(step, window)
                window = Throughput()
            self.monitor.advance()
            if step + 1 == until or self._save_is_due(step + 1):
                self._save(step + 1)
            self.heartbeat.at("reading", step + 1)
        self.heartbeat.at("saving", until)
        self.saver.finish()
        if self.cut:
            cut = counted(self.cut, "context was", "contexts were")
            self.monitor.say(f"{cut} cut to data.max_length = {self.recipe.data.max_length} tokens")
        self.skips.report()

    def _step(self, step: int, batches: list[Batch], window: Throughput) -> None:
        """One optimizer step: the loss is the sum over supervised tokens divided by their number in the whole global
        batch, so that it depends on neither ranks nor micro-batches."""
        ranks, trainer = self.ranks, self.trainer
        own = [float(self.stop.asked), float(self.saver.requested())]
        own += [sum(b.targets.numel() for b in batches), sum(b.indices.numel() for b in batches)]
        own += [sum(b.place.numel() + b.slot_place.numel() for b in batches)]
        own += [sum(len(b.skipped) for b in batches), sum(b.cut for b in batches)]
        rows = ranks.table(*own, *(b.cost for b in batches))
        totals = [sum(column) for column in list(zip(*rows, strict=True))[: len(own)]]
        asked, requested, supervised, samples, tokens, skipped, cut = totals
        if asked:
            self._save_and_end(step)
        if requested and step > self.saver.saved:  # a second save of a step would lack its validation loss
            self._begin_save(step)
        self.cut += int(cut)
        self._note(step + 1, batches, bool(skipped))
        if supervised == 0:
            raise UserError(f"step {step + 1}: no sample of the global batch could be used; see data.on_bad_sample")
        seed_dropout(self.recipe.seed, ranks.rank, step)
        self.heartbeat.at("forward and backward", step)
        loss = (
            ranks.sums(trainer.accumulate(batches, 1 / supervised, partial(self._poll, step, "forward and backward")))[
                0
            ]
            / supervised
        )
        if self.gradients is not None:
            self.gradients.check_all_received(ranks)
            self.gradients = None
        self.heartbeat.at("update", step)
        rate = learning_rate(step, self.per_epoch, self.recipe.training)
        # DeepSpeed itself leaves out an update whose gradient is not finite; with a rate of 0 the others change nothing
        norm = trainer.update(rate if math.isfinite(loss) else 0.0)
        if self.health.check(step + 1, loss, norm):
            window.add(loss, samples, tokens, imbalance([row[len(own) :] for row in rows]))
            window.rate, window.norm = rate, norm

    def _poll(self, step: int, doing: str) -> None:
        """Poll two passes after `step` whole steps: what is under way is given up if somebody asks for the end."""
        self.heartbeat.at(doing, step)
        if self.ranks.any(self.stop.asked):
            self._save_and_end(step)

    def _save_and_end(self, step: int) -> None:
        """After `step` whole steps."""
        if step > self.saver.saved:
            self._begin_save(step)
        self.heartbeat.at("saving", step)
        self.saver.finish()
        self.monitor.say(f"step {step}: ended as asked; the same command goes on from here")
        raise Stopped(f"after step {step}")

    def _note(self, step: int, batches: list[Batch], skipped: bool) -> None:
        """What the step has seen and left out, for the record."""
        if skipped:
            self.skips.note(step, batches)
        else:
            self.skips.none()
        if self.recipe.data.record_order:
            dealt = self.ranks.gather([json.dumps(pair) for batch in batches for pair in batch.dealt])
            self.monitor.write("order", {"step": step, "samples": [n for _, n in sorted(map(json.loads, dealt))]})

    def _log(self, step: int, window: Throughput) -> None:
        numbers = window.numbers(self.language_parameters) | {
            "speed/peak_gib": peak_memory(self.ranks.device),
            "training/cut_contexts": float(self.cut),
            "training/skipped_samples": float(self.skips.total),
            "training/not_finite": float(self.health.not_finite),
            "training/spikes": float(self.health.spikes),
        }
        line = (
            f"step {step + 1}  epoch {step // self.per_epoch + 1}  loss {numbers['loss/train']:.4f}"
            f"  lr {window.rate:.2e}  grad {window.norm:.3f}  {numbers['speed/samples_per_second']:.1f} samples/s"
            f"  {numbers['speed/tokens_per_second']:.0f} tokens/s  {numbers['speed/tflops']:.3g} TFLOP/s"
            f"  {numbers['speed/peak_gib']:.2f} GiB"
        )
        self.monitor.record(step + 1, numbers, line)

    def _save_is_due(self, step: int) -> bool:
        training = self.recipe.training
        by_steps = training.checkpoint_steps and step % training.checkpoint_steps == 0
        return bool(by_steps) or epochs_are_over(step, self.recipe, self.per_epoch)

    def _save(self, step: int) -> None:
        loss = score = None
        if self.validation is not None and epochs_are_over(step, self.recipe, self.per_epoch):
            try:
                loss, score = self._validate(step, self.validation)
            except (ValueError, OSError):  # on all ranks alike; what was trained is not to be lost with it
                self._begin_save(step)
                self.saver.finish()
                raise
        self._begin_save(step, loss, score)

    def _begin_save(self, step: int, loss: float | None = None, score: float | None = None) -> None:
        self.heartbeat.at("saving", step)
        state = replace(
            self.start,
            epoch=step // self.per_epoch,
            step=step,
            updates=self.trainer.master_weights.updates(),
            not_finite=self.health.not_finite,
            validation_loss=loss,
            validation_score=score,
        )
        self.saver.begin(state, self.trainer.master_weights)

    def _validate(self, step: int, data: Manifest) -> tuple[float, float | None]:
        """Loss, and the main score where it is wanted."""
        batch, workers = self.recipe.evaluation.batch, self.recipe.data.workers
        poll = partial(self._poll, step, "validating")
        loss = validation_loss(self.trainer, self.ranks, data, self.collator, batch, workers, poll)
        numbers, score = {"loss/validation": loss}, None
        line = f"step {step}  validation loss {loss:.4f}"
        scores = {}
        if self.evaluator is not None:
            given = (self.trainer, self.recipe, self.ranks, data, self.collator, poll, step)
            scores = examine(*given, self.evaluator)
        if scores:
            main, score = next(iter(scores.items()))
            numbers["score/validation"] = score
            numbers |= {f"score/validation/{name}": value for name, value in scores.items()}
            line += f"  {main} {score:.2f}"
        self.monitor.record(step, numbers, line)
        return loss, score
