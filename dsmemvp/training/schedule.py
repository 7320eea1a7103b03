"""The learning rate as a function of the step: linear warm-up from zero, then half a cosine.

As published: MemVP, util/lr_sched.py:5-9.
"""

import math

from dsmemvp.config.recipe import Training


def learning_rate(step: int, steps_per_epoch: int, training: Training, epochs: float | None = None) -> float:
    """For the update with number `step` of a stage, counted from 0; `epochs` of it (None: training.epochs)."""
    epochs = training.epochs if epochs is None else epochs
    epoch = step / steps_per_epoch
    if epoch < training.warmup_epochs:
        return training.learning_rate * epoch / training.warmup_epochs
    done = (epoch - training.warmup_epochs) / max(1e-9, epochs - training.warmup_epochs)
    low, high = training.min_learning_rate, training.learning_rate
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
