"""What is summed up between two lines of the log, and the numbers that become of it."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import nn

from dsmemvp.backbones.decoder import DecoderTower
from dsmemvp.backbones.linear import stored_shapes
from dsmemvp.backbones.text_encoder import TextEncoder


def multiplied(language: DecoderTower | TextEncoder | None) -> int:
    """Parameters by which every token is multiplied: the embedding is looked up, and the head and a decoder's last
    layer behind its queries, keys and values see supervised tokens alone. None in a stage without a language model."""
    if language is None:
        return 0
    *layers, last = language.layers
    if isinstance(language, TextEncoder):
        return sum(map(_multiplied, language.layers))
    projections = (last.self_attn.q_proj, last.self_attn.k_proj, last.self_attn.v_proj)
    return sum(map(_multiplied, (*layers, *projections)))


def _multiplied(module: nn.Module) -> int:
    """Elements of its matrices."""
    return sum(math.prod(shape) for shape in stored_shapes(module).values() if len(shape) > 1)


@dataclass
class Throughput:
    """Sums since the last line in the log, over all ranks; steps that updated nothing are not among them."""

    start: float = field(default_factory=time.monotonic)
    loss: float = 0.0
    samples: float = 0.0
    tokens: float = 0.0
    imbalance: float = 0.0
    steps: int = 0
    rate: float = 0.0
    norm: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)

    def add(
        self,
        loss: float,
        samples: float,
        tokens: float,
        imbalance: float,
        losses: Mapping[str, float] = MappingProxyType({}),
        measures: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """`losses` are the parts that `loss` is made of, by name, if there are several; `measures` no part of it."""
        self.loss += loss
        for sums, values in ((self.losses, losses), (self.measures, measures)):
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
        self.samples += samples
        self.tokens += tokens
        self.imbalance += imbalance
        self.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What validation and saving take is no time of training."""
        before = time.monotonic()
        yield
        self.start += time.monotonic() - before

    def numbers(self, language_parameters: int) -> dict[str, float]:
        """Under their names in TensorBoard, which sorts them: loss comes first, then score. Wants at least one step;
        `language_parameters` as `multiplied` counts them; without any, no token is computed and none is counted."""
        seconds = time.monotonic() - self.start
        # a frozen layer needs no weight gradient: 2N forward + 2N backward, recomputation not counted
        flops = 4 * language_parameters * self.tokens
        of_tokens = {
            "speed/tokens_per_second": self.tokens / seconds,
            "speed/tflops": flops / seconds / 1e12,
        }
        return {
            "loss/train": self.loss / self.steps,
            **{f"loss/{name}": value / self.steps for name, value in self.losses.items()},
            **{f"measure/{name}": value / self.steps for name, value in self.measures.items()},
            "training/learning_rate": self.rate,
            "training/gradient_norm": self.norm,
            "speed/samples_per_second": self.samples / seconds,
            **(of_tokens if language_parameters else {}),
            "training/imbalance": self.imbalance / self.steps,
        }
