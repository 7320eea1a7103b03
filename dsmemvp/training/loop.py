"""The training run: batches -> steps -> checkpoints, the same on every rank."""

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from dsmemvp.data.batch import Batch
from dsmemvp.data.encoder import Encoder, recipe_encoder
from dsmemvp.data.loader import Share, training_steps
from dsmemvp.data.sets import TrainingData, open_training_data
from dsmemvp.models.partitioned import whole_shape
from dsmemvp.models.weights import read_configs
from dsmemvp.recipe import Recipe
from dsmemvp.recipe_file import as_dict
from dsmemvp.training.checkpoint import newest_checkpoint, save_checkpoint
from dsmemvp.training.engine import Trainer, build_trainer
from dsmemvp.training.gradients import GradientWatch
from dsmemvp.training.monitor import Monitor, peak_memory, write_json
from dsmemvp.training.ranks import Ranks, seed_dropout
from dsmemvp.training.schedule import learning_rate
from dsmemvp.training.skips import Skips


def train(recipe: Recipe, ranks: Ranks) -> Path:
    """Train to the end of the recipe, going on from the newest checkpoint in the run's folder; returns that folder.
    Raises ValueError, FileNotFoundError or FloatingPointError with what to do."""
    run = Path(recipe.output) / recipe.name
    data = open_training_data(recipe)
    configs = read_configs(recipe)
    checkpoint = newest_checkpoint(run)
    if checkpoint is not None:
        checkpoint.check_method(as_dict(recipe))
        checkpoint.check_order(data.identity)
    encoder = recipe_encoder(recipe, configs.resolution, configs.language.vocab_size)
    trainer = build_trainer(recipe, configs, ranks)
    encoder = replace(encoder, slots=trainer.model.method.slots)
    first = 0
    if checkpoint is not None:
        shapes = trainer.masters.shapes()
        trainer.masters.set(checkpoint.values(shapes))
        trainer.masters.set_moments(checkpoint.moments(shapes), checkpoint.step)
        first = checkpoint.step
    monitor = Monitor(run, ranks.first, recipe.training.epochs * data.order.steps, first)
    if ranks.first:
        write_json(run / "recipe.json", as_dict(recipe))
    trained = sum(math.prod(shape) for shape in trainer.masters.shapes().values())
    order = data.order
    monitor.say(
        f"{recipe.name}: {trained:,} trained parameters, {order.samples} samples and {order.steps} steps per epoch,"
        f" {recipe.training.epochs} epochs, {ranks.world} ranks on {ranks.device.type}"
        + (f", going on after step {first}" if first else "")
    )
    if order.repeats:
        monitor.say(f"the last batch of every epoch is completed with its first {order.repeats} samples")
    try:
        _Run(recipe, ranks, trainer, encoder, monitor, run, data).steps(first)
    finally:
        monitor.close()
    return run


class _Run:
    def __init__(
        self,
        recipe: Recipe,
        ranks: Ranks,
        trainer: Trainer,
        encoder: Encoder,
        monitor: Monitor,
        run: Path,
        data: TrainingData,
    ):
        self.recipe, self.ranks, self.trainer, self.encoder = recipe, ranks, trainer, encoder
        self.monitor, self.run, self.data = monitor, run, data
        self.per_epoch = data.order.steps
        self.watch: GradientWatch | None = GradientWatch(trainer.model.trainables())
        self.skips = Skips(ranks, monitor, recipe.training.global_batch, recipe.data.most_bad_in_a_row)
        self.cut = 0

    def steps(self, first: int) -> None:
        training, ranks = self.recipe.training, self.ranks
        last = training.epochs * self.per_epoch
        last = min(last, training.stop_at_step or last)
        share = Share(ranks.rank, ranks.world, training.micro_batch)
        source = training_steps(
            self.data.manifests, self.data.order, self.encoder, share, range(first, last), self.recipe.data.workers
        )
        window = _Window(time.monotonic())
        for step, batches in enumerate(ranks.in_step(source), first):
            self._step(step, batches, window)
            if (step + 1) % training.log_every == 0:
                self._log(step, window)
                window = _Window(time.monotonic())
            self.monitor.advance()
            if step + 1 == last or self._save_is_due(step + 1):
                self._save(step + 1)
        if self.cut:
            self.monitor.say(f"{self.cut} contexts were cut to data.max_length = {self.recipe.data.max_length} tokens")
        self.skips.report()

    def _step(self, step: int, batches: list[Batch], window: "_Window") -> None:
        """One optimizer step: the loss is the sum over supervised tokens divided by their number in the whole global
        batch, so that it depends on neither ranks nor micro-batches."""
        ranks, trainer = self.ranks, self.trainer
        own = [sum(b.targets.numel() for b in batches), sum(b.indices.numel() for b in batches)]
        own += [sum(b.place.numel() + b.slot_place.numel() for b in batches)]
        own += [sum(len(b.skipped) for b in batches), sum(b.cut for b in batches)]
        rows = ranks.table(*own, *(b.cost for b in batches))
        supervised, samples, tokens, skipped, cut = (sum(column) for column in list(zip(*rows, strict=True))[:5])
        self.cut += int(cut)
        self._note(step + 1, batches, bool(skipped))
        if supervised == 0:
            raise ValueError(f"step {step + 1}: no sample of the global batch could be used; see data.on_bad_sample")
        seed_dropout(self.recipe.seed, ranks.rank, step)
        loss = ranks.sums(trainer.accumulate(batches, 1 / supervised))[0] / supervised
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"step {step + 1}: the loss is {loss}; nothing was updated. The last checkpoint is good; lower"
                " training.learning_rate or look at the samples of this step"
            )
        if self.watch is not None:
            self.watch.check_all_received(ranks)
            self.watch = None
        rate = learning_rate(step, self.per_epoch, self.recipe.training)
        norm = trainer.update(rate)
        window.add(loss, samples, tokens, imbalance([row[5:] for row in rows]))
        window.rate, window.norm = rate, norm

    def _note(self, step: int, batches: list[Batch], skipped: bool) -> None:
        """What the step has seen and left out, for the record."""
        if skipped:
            self.skips.note(step, batches)
        else:
            self.skips.none()
        if self.recipe.data.record_order:
            dealt = self.ranks.gather([json.dumps(pair) for batch in batches for pair in batch.dealt])
            self.monitor.write("order", {"step": step, "samples": [n for _, n in sorted(map(json.loads, dealt))]})

    def _log(self, step: int, window: "_Window") -> None:
        seconds = time.monotonic() - window.start
        language = sum(math.prod(whole_shape(p)) for p in self.trainer.model.language.parameters())
        numbers = {
            "train/loss": window.loss / window.steps,
            "train/learning_rate": window.rate,
            "train/gradient_norm": window.norm,
            "speed/samples_per_second": window.samples / seconds,
            "speed/tokens_per_second": window.tokens / seconds,
            # a frozen layer needs no weight gradient: 2N forward + 2N backward, recomputation not counted
            "speed/tflops": 4 * language * window.tokens / seconds / 1e12,
            "memory/peak_gib": peak_memory(self.ranks.device),
            "data/cut_contexts": float(self.cut),
            "data/skipped_samples": float(self.skips.total),
            "data/imbalance": window.imbalance / window.steps,
        }
        line = (
            f"step {step + 1}  epoch {step // self.per_epoch + 1}  loss {numbers['train/loss']:.4f}"
            f"  lr {window.rate:.2e}  grad {window.norm:.3f}  {numbers['speed/samples_per_second']:.1f} samples/s"
            f"  {numbers['speed/tokens_per_second']:.0f} tokens/s  {numbers['speed/tflops']:.3g} TFLOP/s"
            f"  {numbers['memory/peak_gib']:.2f} GiB"
        )
        self.monitor.record(step + 1, numbers, line)

    def _save_is_due(self, step: int) -> bool:
        training = self.recipe.training
        if training.checkpoint_steps and step % training.checkpoint_steps == 0:
            return True
        return step % (self.per_epoch * training.checkpoint_epochs) == 0

    def _save(self, step: int) -> None:
        values, moments = self.trainer.masters.values(), self.trainer.masters.moments()
        if self.ranks.first:
            epoch, recipe = step // self.per_epoch, as_dict(self.recipe)
            folder = save_checkpoint(self.run, epoch, step, self.data.identity, recipe, values, moments)
            self.monitor.say(f"step {step}: saved {folder}")
        self.ranks.wait()


def imbalance(costs: list[list[float]]) -> float:
    """How much longer the ranks are busy together than they would be if every micro-step cost them the same; `costs`
    is [rank][micro-step]. 1 is even."""
    columns = list(zip(*costs, strict=True))
    return sum(max(column) for column in columns) * len(costs) / sum(sum(column) for column in columns)


@dataclass
class _Window:
    """Sums since the last line in the log, over all ranks."""

    start: float
    loss: float = 0.0
    samples: float = 0.0
    tokens: float = 0.0
    imbalance: float = 0.0
    steps: int = 0
    rate: float = 0.0
    norm: float = 0.0

    def add(self, loss: float, samples: float, tokens: float, imbalance: float) -> None:
        self.loss += loss
        self.samples += samples
        self.tokens += tokens
        self.imbalance += imbalance
        self.steps += 1
