"""Which layers compute what again, if training.recompute=auto chooses it for every micro-batch: for the log and
TensorBoard, when it changes."""

from collections import Counter
from collections.abc import Callable, Sequence

from dsmemvp.backbones.recompute import KEPT, Policy
from dsmemvp.counting import counted
from dsmemvp.data.batch import Batch

Choose = Callable[[int, int], Sequence[Policy]]


class Mixture:
    def __init__(self, choose: Choose | None):
        """`choose`: (tokens, images) of a micro-batch -> the layers' policies; None if the recipe names one."""
        self._choose = choose
        self._told: Counter[Policy] = Counter()

    def of(self, batches: Sequence[Batch]) -> tuple[dict[str, float], str]:
        """Numbers under their TensorBoard names and a line, of the micro-batch with the most tokens; nothing if they
        are the same as at the last call. A policy that no layer has any more is there once, as 0."""
        if self._choose is None:
            return {}, ""
        tokens, images = max((batch.tokens.shape[0], batch.images.shape[0]) for batch in batches)
        layers = Counter(self._choose(tokens, images))
        if layers == self._told:
            return {}, ""
        numbers = {
            f"training/layers_{policy}": float(layers[policy])
            for policy in KEPT
            if policy in layers or policy in self._told
        }
        self._told = layers
        named = ", ".join(f"{layers[policy]} {policy}" for policy in KEPT if policy in layers)
        return numbers, f"for {tokens} tokens and {counted(images, 'image')} layers keep {named}"
