"""In the first step every trainable parameter must receive a gradient: one that does not is silently never trained,
and under ZeRO-3 would be updated with whatever its buffer holds."""

from torch import nn

from dsmemvp.distributed.ranks import Ranks
from dsmemvp.errors import UserError


class GradientWatch:
    def __init__(self, trainables: dict[str, nn.Parameter]):
        self._names = list(trainables)
        self._seen: set[str] = set()
        self._hooks = [p.register_hook(self._mark(name)) for name, p in trainables.items()]

    def _mark(self, name: str):
        def mark(gradient):
            self._seen.add(name)

        return mark

    def check_all_received(self, ranks: Ranks) -> None:
        """Raises UserError on every rank, naming the parameters that had none on this or another rank."""
        for hook in self._hooks:
            hook.remove()
        received = ranks.sums(*(float(name in self._seen) for name in self._names))
        without = [name for name, ranks_with in zip(self._names, received, strict=True) if ranks_with < ranks.world]
        if without:
            raise UserError(f"step 1: no gradient reached {', '.join(without)}; the method does not use them")
