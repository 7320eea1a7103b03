"""The training run: batches -> steps -> checkpoints, the same on every rank."""

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from dsmemvp.data.batch import Batch
from dsmemvp.data.loader import Encoder, Share, recipe_encoder, training_steps
from dsmemvp.data.manifest import Manifest, read_manifest
from dsmemvp.data.order import steps_per_epoch
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


def train(recipe: Recipe, ranks: Ranks) -> Path:
    """Train to the end of the recipe, going on from the newest checkpoint in the run's folder; returns that folder.
    Raises ValueError, FileNotFoundError or FloatingPointError with what to do."""
    run = Path(recipe.output) / recipe.name
    manifest = read_manifest(recipe.data.train or _missing("data.train"))
    per_epoch = steps_per_epoch(manifest.samples, recipe.training.global_batch)
    if per_epoch == 0:
        raise ValueError(
            f"training.global_batch: {recipe.training.global_batch} is more than the {manifest.samples} samples"
            f" of {manifest.folder}"
        )
    configs = read_configs(recipe)
    checkpoint = newest_checkpoint(run)
    if checkpoint is not None:
        checkpoint.check_method(as_dict(recipe))
    encoder = recipe_encoder(recipe, configs.resolution, configs.language.vocab_size)
    trainer = build_trainer(recipe, configs, ranks)
    encoder = replace(encoder, slots=trainer.model.method.slots)
    first = 0
    if checkpoint is not None:
        shapes = trainer.masters.shapes()
        trainer.masters.set(checkpoint.values(shapes))
        trainer.masters.set_moments(checkpoint.moments(shapes), checkpoint.step)
        first = checkpoint.epoch
    seed_dropout(recipe.seed, ranks.rank, first)
    epochs = recipe.training.epochs
    monitor = Monitor(run, ranks.first, epochs * per_epoch, first * per_epoch)
    if ranks.first:
        write_json(run / "recipe.json", as_dict(recipe))
    trained = sum(math.prod(shape) for shape in trainer.masters.shapes().values())
    monitor.say(
        f"{recipe.name}: {trained:,} trained parameters, {manifest.samples} samples, {per_epoch} steps per epoch,"
        f" {epochs} epochs, {ranks.world} ranks on {ranks.device.type}"
        + (f", going on after epoch {first}" if first else "")
    )
    try:
        _Run(recipe, ranks, trainer, encoder, monitor, run, per_epoch).steps(first, manifest)
    finally:
        monitor.close()
    return run


@dataclass
class _Run:
    recipe: Recipe
    ranks: Ranks
    trainer: Trainer
    encoder: Encoder
    monitor: Monitor
    run: Path
    per_epoch: int
    watch: GradientWatch | None = None
    skipped: list[str] = field(default_factory=list)
    cut: int = 0

    def steps(self, first_epoch: int, manifest: Manifest) -> None:
        training, ranks = self.recipe.training, self.ranks
        share = Share(ranks.rank, ranks.world, training.global_batch, training.micro_batch)
        epochs = range(first_epoch, training.epochs)
        data = self.recipe.data
        source = training_steps(
            manifest, self.encoder, share, self.recipe.seed, epochs, data.block_shards, data.workers
        )
        self.watch = GradientWatch(self.trainer.model.trainables())
        window = _Window(time.monotonic())
        for step, batches in enumerate(ranks.in_step(source), first_epoch * self.per_epoch):
            self._step(step, batches, window)
            if (step + 1) % training.log_every == 0:
                self._log(step, window)
                window = _Window(time.monotonic())
            self.monitor.advance()
            if (step + 1) % self.per_epoch == 0:
                self._end_of_epoch((step + 1) // self.per_epoch, step + 1)
        self._report()

    def _step(self, step: int, batches: list[Batch], window: "_Window") -> None:
        """One optimizer step: the loss is the sum over supervised tokens divided by their number in the whole global
        batch, so that it depends on neither ranks nor micro-batches."""
        ranks, trainer = self.ranks, self.trainer
        own = [sum(b.targets.numel() for b in batches), sum(b.indices.numel() for b in batches)]
        own += [sum(b.place.numel() + b.slot_place.numel() for b in batches), sum(len(b.skipped) for b in batches)]
        supervised, samples, tokens, skipped = ranks.sums(*own)
        if supervised == 0:
            raise ValueError(f"step {step + 1}: no sample of the global batch could be used; see data.on_bad_sample")
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
        window.add(loss, samples, tokens)
        window.rate, window.norm = rate, norm
        for batch in batches:
            self.skipped += batch.skipped
            self.cut += batch.cut
        if skipped and self.ranks.first:
            self.monitor.say(f"step {step + 1}: {skipped:.0f} samples left out over all ranks")

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
            "data/skipped_samples": float(len(self.skipped)),
        }
        line = (
            f"step {step + 1}  epoch {step // self.per_epoch + 1}  loss {numbers['train/loss']:.4f}"
            f"  lr {window.rate:.2e}  grad {window.norm:.3f}  {numbers['speed/samples_per_second']:.1f} samples/s"
            f"  {numbers['speed/tokens_per_second']:.0f} tokens/s  {numbers['speed/tflops']:.3g} TFLOP/s"
            f"  {numbers['memory/peak_gib']:.2f} GiB"
        )
        self.monitor.record(step + 1, numbers, line)

    def _end_of_epoch(self, epoch: int, step: int) -> None:
        training = self.recipe.training
        if epoch % training.checkpoint_epochs and epoch != training.epochs:
            return
        values, moments = self.trainer.masters.values(), self.trainer.masters.moments()
        if self.ranks.first:
            folder = save_checkpoint(self.run, epoch, step, as_dict(self.recipe), values, moments)
            self.monitor.say(f"epoch {epoch}: saved {folder}")
        self.ranks.wait()

    def _report(self) -> None:
        """What was left out or shortened, over all ranks."""
        skipped, cut = self.ranks.sums(len(self.skipped), self.cut)
        messages = self.ranks.gather(sorted(set(self.skipped)))
        if cut:
            self.monitor.say(f"{cut:.0f} contexts were cut to data.max_length = {self.recipe.data.max_length} tokens")
        if skipped:
            self.monitor.say(f"{skipped:.0f} times a sample was left out:")
            for message in sorted(set(messages)):
                self.monitor.say(f"  {message}")


@dataclass
class _Window:
    """Sums since the last line in the log, over all ranks."""

    start: float
    loss: float = 0.0
    samples: float = 0.0
    tokens: float = 0.0
    steps: int = 0
    rate: float = 0.0
    norm: float = 0.0

    def add(self, loss: float, samples: float, tokens: float) -> None:
        self.loss += loss
        self.samples += samples
        self.tokens += tokens
        self.steps += 1


def _missing(key: str) -> str:
    raise ValueError(f"{key}: give the folder of shards")
