"""What the feed-forward memory does in a forward: measured by hooks, beside the model, at every token and layer.

With x a layer's feed-forward input, K and V the memory, s its output scale, and active(x, K) = silu(x K^T) unless the
method has other scores:

    activation    a_n = active(x, K)_n                  how strongly slot n fires; before dropout
    contribution  c_n = s a_n (V_n . o)                 o = s sum_n a_n V_n the branch's output, so sum_n c_n = |o|^2
    change        |s a_n V_n - s a'_n V'_n|             what slot n writes against what it would write, for the same x,
                                                        with another memory (K', V'): that of no picture, or the mean
                                                        of many pictures' memories

A slot fires on every picture because of its learned position, which is why a picture shows best as a change.

The memory is what the method's `memory` finds in the state that a first step of decoding returns; hooks run inside the
same forward, so that under ZeRO-3 a probe works like any other: all ranks call it together, and each measures its own
batch. Y layers, B samples, L a sample's tokens, T tokens in the pack, N slots, d width, S supervised tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from dsmemvp.backbones.key_value_cache import KeyValueCache
from dsmemvp.counting import counted
from dsmemvp.data.batch import Batch
from dsmemvp.errors import UserError
from dsmemvp.model import Decoding, VisualLanguageModel
from dsmemvp.prompts.interface import FeedForwardMemory, VisualPrompt

What = Literal["change", "activation", "contribution"]
Forward = Callable[[Batch, Decoding], Any]
"""The model's or its engine's."""


@dataclass(frozen=True)
class Memory:
    """Keys and values, [B, N, d], as the layers read them, in float32."""

    key: torch.Tensor
    value: torch.Tensor
    of: str = "this picture"
    """In words."""

    def mean(self) -> "Memory":
        """Of all samples: [1, N, d]."""
        of = f"the mean memory of {counted(len(self.key), 'picture')}"
        return Memory(self.key.mean(0, keepdim=True), self.value.mean(0, keepdim=True), of)


@dataclass(frozen=True)
class Probe:
    """float32, on the CPU."""

    logits: torch.Tensor
    """[S, V] of the same forward"""
    activation: torch.Tensor
    """[Y, T, N]"""
    contribution: torch.Tensor
    """[Y, T, N]"""
    change: torch.Tensor | None
    """[Y, T, N]; None if no other memory was given"""
    branch_norm: torch.Tensor
    """[Y, T] |o|"""
    feed_forward_norm: torch.Tensor
    """[Y, T] of the frozen feed-forward's output, to which o is added"""
    key_norm: torch.Tensor
    """[B, N]"""
    value_norm: torch.Tensor
    """[B, N]"""
    offsets: tuple[int, ...]
    """Sample b's tokens are offsets[b] to offsets[b + 1] of T."""
    visual: int
    """The first so many slots carry a picture, the others are purely learned."""

    @property
    def layers(self) -> int:
        return self.activation.shape[0]

    def at(self, tokens: Sequence[int], what: What, sample: int = 0) -> torch.Tensor:
        """Mean over some of a sample's tokens, [Y, N]. Contributions as shares of the branch's output at these tokens:
        they may be negative, and add up to 1 over the slots. Raises UserError for a change that was not measured."""
        rows = [self.offsets[sample] + token for token in tokens]
        if what == "contribution":
            return self.contribution[:, rows].sum(1) / _square(self.branch_norm[:, rows])
        measured = self.change if what == "change" else self.activation
        if measured is None:
            raise UserError("a change needs another memory to compare with: give it to probe()")
        return measured[:, rows].mean(1)


def memory_of(model: VisualLanguageModel, forward: Forward, batch: Batch) -> Memory:
    """The memory of every sample of a batch; that of a sample without picture is the learned positions alone."""
    found, _ = _remembered(model, forward, batch)
    return Memory(found.key, found.value)


def probe(model: VisualLanguageModel, forward: Forward, batch: Batch, other: Memory | None = None) -> Probe:
    """One forward of `batch`, in which `other`, [1 or B, N, d], is what changes are measured against. Raises UserError
    for a method without a feed-forward memory."""
    inputs: list[torch.Tensor] = []
    norms: list[torch.Tensor] = []

    def keep_input(module: Any, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        inputs.append(given[0][0])

    def keep_norm(module: Any, given: tuple[torch.Tensor, ...], out_1Td: torch.Tensor) -> None:
        norms.append(out_1Td[0].float().norm(dim=-1).cpu())

    feed_forwards = [layer.mlp for layer in model.language.layers]
    hooks = [mlp.gate_proj.register_forward_hook(keep_input) for mlp in feed_forwards]
    hooks += [mlp.down_proj.register_forward_hook(keep_norm) for mlp in feed_forwards]
    # the last block computes supervised tokens alone
    everywhere = torch.arange(batch.tokens.shape[0], device=batch.tokens.device)
    whole = replace(batch, supervised=everywhere, supervised_counts=batch.lengths)
    try:
        memory, logits_TV = _remembered(model, forward, whole)
    finally:
        for hook in hooks:
            hook.remove()
    layers = [_layer(x_Td, batch, memory, other) for x_Td in inputs]
    activation, contribution, branch, *change = (torch.stack(t) for t in zip(*layers, strict=True))
    return Probe(
        logits=logits_TV[batch.supervised.cpu()],
        activation=activation,
        contribution=contribution,
        change=change[0] if change else None,
        branch_norm=branch,
        feed_forward_norm=torch.stack(norms),
        key_norm=memory.key.norm(dim=-1).cpu(),
        value_norm=memory.value.norm(dim=-1).cpu(),
        offsets=(0, *(stop for _, stop in batch.bounds)),
        visual=memory.visual,
    )


def has_memory(method: type[VisualPrompt]) -> bool:
    """Whether a method has a feed-forward memory to look into."""
    return method.memory is not VisualPrompt.memory


def _remembered(model: VisualLanguageModel, forward: Forward, batch: Batch) -> tuple[FeedForwardMemory, torch.Tensor]:
    with torch.no_grad():
        logits, state = forward(batch, Decoding(KeyValueCache()))
    memory = model.method.memory(state)
    if memory is None:
        raise UserError(
            "method.name: this method has no feed-forward memory to look into; it shows a picture to attention"
        )
    return memory, logits.float().cpu()


def _layer(x_Td: torch.Tensor, batch: Batch, memory: FeedForwardMemory, other: Memory | None) -> list[torch.Tensor]:
    """What one layer measures at all tokens, sample by sample, on the CPU."""
    samples = []
    for b, (start, stop) in enumerate(batch.bounds):
        own = memory.key[b], memory.value[b]
        row = None if other is None else b if len(other.key) > 1 else 0
        another = None if other is None or row is None else (other.key[row], other.value[row])
        samples.append(_slots(x_Td[start:stop].float(), own, another, memory))
    return [torch.cat(parts).cpu() for parts in zip(*samples, strict=True)]


def _slots(
    x_Ld: torch.Tensor,
    own: tuple[torch.Tensor, torch.Tensor],
    other: tuple[torch.Tensor, torch.Tensor] | None,
    memory: FeedForwardMemory,
) -> list[torch.Tensor]:
    """Activation and contribution [L, N], the branch's norm [L], and if there is another memory the change."""
    (key_Nd, value_Nd), scale = own, memory.scale
    active_LN = memory.active(x_Ld, key_Nd)
    branch_Ld = scale * (active_LN @ value_Nd)
    contribution_LN = scale * active_LN * (branch_Ld @ value_Nd.T)
    found = [active_LN, contribution_LN, branch_Ld.norm(dim=-1)]
    if other is not None:
        key, value = (t.to(x_Ld.device) for t in other)
        other_LN = memory.active(x_Ld, key)
        # |a V - a' V'|^2 multiplied out: differences of all slots at all places would be [L, N, d]
        mine, both, others = ((p * q).sum(-1) for p, q in _pairs(value_Nd, value))
        square_LN = active_LN**2 * mine - 2 * active_LN * other_LN * both + other_LN**2 * others
        found.append(scale * square_LN.clamp(min=0).sqrt().float())
    return found


def _pairs(a: torch.Tensor, b: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    a, b = a.double(), b.double()  # nearly equal values leave little of the sum
    return (a, a), (a, b), (b, b)


def _square(norm_YT: torch.Tensor) -> torch.Tensor:
    """|o|^2 summed over tokens, [Y, 1]; not zero."""
    return (norm_YT**2).sum(1, keepdim=True).clamp(min=torch.finfo(norm_YT.dtype).tiny)
