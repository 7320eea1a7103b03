"""When a run saves and validates, and what its checkpoints say."""

from collections.abc import Sequence
from dataclasses import replace

from dsmemvp.prompts.interface import Callback
from dsmemvp.training.checkpoint_manager import CheckpointManager
from dsmemvp.training.context import RunContext
from dsmemvp.training.engine import Trainer
from dsmemvp.training.health import Health
from dsmemvp.training.monitor import Monitor
from dsmemvp.training.preparation import Prepared
from dsmemvp.training.stages import Span, span_before
from dsmemvp.training.validation import Evaluator, validation_loss, validation_scores


class Saving:
    """All ranks call the same methods at the same steps."""

    def __init__(
        self,
        context: RunContext,
        prepared: Prepared,
        trainer: Trainer,
        manager: CheckpointManager,
        monitor: Monitor,
        health: Health,
        evaluator: Evaluator | None,
        callbacks: Sequence[Callback],
    ):
        self._context, self._prepared, self._trainer = context, prepared, trainer
        self._manager, self._monitor, self._health, self._evaluator = manager, monitor, health, evaluator
        self._callbacks = callbacks
        manager.saved = prepared.start.step

    def requested(self) -> bool:
        """Whether somebody has asked for a checkpoint; known to the first rank alone."""
        return self._manager.requested()

    def is_due(self, step: int) -> bool:
        span = self._span(step)
        every = span.recipe.training.checkpoint_steps
        by_steps = every and step % every == 0
        return bool(by_steps) or step == self._prepared.until or span.is_judged(step)

    def save(self, step: int) -> None:
        """A checkpoint, and before it the loss and the score on data.validation if they are due."""
        loss = score = None
        if self._span(step).validation is not None and self._span(step).is_judged(step):
            try:
                loss, score = self._validate(step)
            except (ValueError, OSError):  # on all ranks alike; what was trained is not to be lost with it
                self.begin(step)
                self._manager.finish()
                raise
        self.begin(step, loss, score)

    def begin(self, step: int, loss: float | None = None, score: float | None = None) -> None:
        self._context.at("saving", step)
        state = replace(
            self._prepared.start,
            epoch=self._span(step).finished_epochs(step),
            step=step,
            updates=self._trainer.master_weights.updates(),
            not_finite=self._health.not_finite,
            validation_loss=loss,
            validation_score=score,
            callbacks=[callback.state_dict() for callback in self._callbacks],
            stage=self._span(step).name if len(self._prepared.spans) > 1 else "",
        )
        self._manager.begin(state, self._trainer)

    def begin_if_new(self, step: int) -> None:
        """A second save of a step would lack its validation loss."""
        if step > self._manager.saved:
            self.begin(step)

    def finish(self, step: int) -> None:
        """Wait for the last one. Raises OSError on all ranks if it could not be written."""
        self._context.at("saving", step)
        self._manager.finish()

    def _span(self, step: int) -> Span:
        return span_before(self._prepared.spans, step)

    def _validate(self, step: int) -> tuple[float, float | None]:
        """Loss, and the main score if it is wanted."""
        span = self._span(step)
        assert span.validation is not None
        given = (self._context, self._trainer, span.inputs.collator, span.validation, step)
        loss = validation_loss(*given)
        numbers, score = {"loss/validation": loss}, None
        line = f"step {step}  validation loss {loss:.4f}"
        scores = validation_scores(*given, self._evaluator) if self._evaluator is not None else {}
        if scores:
            main, score = next(iter(scores.items()))
            numbers["score/validation"] = score
            numbers |= {f"score/validation/{name}": value for name, value in scores.items()}
            line += f"  {main} {score:.2f}"
        if step == self._prepared.start.step:  # a start before this one may have died between the record and the save
            numbers = {name: value for name, value in numbers.items() if name not in self._monitor.recorded(step)}
        self._monitor.record(step, numbers, line)
        return loss, score
