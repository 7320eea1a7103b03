"""The learning rate as a function of the step: linear warm-up from zero, then half a cosine (as published: MemVP,
util/lr_sched.py:5-9), a straight line, or steps.
"""

import math

from dsmemvp.config.recipe import Training


def learning_rate(step: int, steps_per_epoch: int, training: Training, epochs: float | None = None) -> float:
    """For the update with number `step` of a stage, counted from 0; `epochs` of it (None: training.epochs)."""
    epochs = training.epochs if epochs is None else epochs
    epoch = step / steps_per_epoch
    if epoch < training.warmup_epochs:
        return training.learning_rate * epoch / training.warmup_epochs
    if training.schedule == "steps":
        return training.learning_rate * training.step_factor ** sum(epoch >= end for end in training.step_epochs)
    done = min(1.0, (epoch - training.warmup_epochs) / max(1e-9, epochs - training.warmup_epochs))
    left = 1 - done if training.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    low, high = training.min_learning_rate, training.learning_rate
    return low + (high - low) * left
