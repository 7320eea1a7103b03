"""What the feed-forward memory does in a forward: measured by hooks, beside the model, at every token and layer.

With x a layer's feed-forward input, K and V the memory, s its output scale (prompts/memvp.py):

    activation    a_n = silu(x . K_n)                   how strongly slot n fires; before dropout
    contribution  c_n = s a_n (V_n . o)                 o = s sum_n a_n V_n the branch's output, so sum_n c_n = |o|^2
    change        |s a_n V_n - s a'_n V'_n|             what slot n writes against what it would write, for the same x,
                                                        with another memory (K', V'): that of no picture, or the mean
                                                        of many pictures' memories

A slot fires on every picture because of its learned position, which is why a picture shows best as a change.

Hooks run inside the forward, so that under ZeRO-3 a probe works like any other forward: all ranks call it together,
and each measures its own batch. Y layers, B samples, L places, T tokens in the pack, N slots, d width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dsmemvp.backbones.vision import image_tokens
from dsmemvp.counting import counted
from dsmemvp.data.batch import Batch
from dsmemvp.errors import UserError
from dsmemvp.model import VisualLanguageModel
from dsmemvp.prompts.memvp import MemVP, slot_activations

What = Literal["change", "activation", "contribution"]
Forward = Callable[[Batch], Any]


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

    activation: torch.Tensor
    """[Y, T, N]"""
    contribution: torch.Tensor
    """[Y, T, N]"""
    change: torch.Tensor | None
    """[Y, T, N]; None where no other memory was given"""
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
    patches: int
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
            raise UserError("a change wants another memory to compare with: give it to probe()")
        return measured[:, rows].mean(1)


def memory_of(model: VisualLanguageModel, forward: Forward, batch: Batch) -> Memory:
    """The memory of every sample of a batch; that of a sample without picture is the learned positions alone."""
    states: list[tuple[torch.Tensor, ...]] = []
    hook = _memvp(model).register_forward_hook(lambda module, given, state: states.append(state))
    try:
        with torch.no_grad():
            forward(batch)
    finally:
        hook.remove()
    key, value = states[0][2:]
    return Memory(key.float(), value.float())


def probe(model: VisualLanguageModel, forward: Forward, batch: Batch, other: Memory | None = None) -> Probe:
    """One forward of `batch`, in which `other`, [1 or B, N, d], is what changes are measured against. Raises UserError
    for another method than memvp."""
    method = _memvp(model)
    memory: list[Memory] = []
    layers: list[list[torch.Tensor]] = []

    def keep_memory(module: Any, given: Any, state: tuple[torch.Tensor, ...]) -> None:
        memory.append(Memory(state[2].float(), state[3].float()))

    def measure(module: Any, given: tuple[torch.Tensor, ...], out_BLd: torch.Tensor) -> None:
        x_BLd = given[0].float()
        place = batch.place.to(x_BLd.device)
        found = [*_slots(x_BLd, memory[0], other, method.output_scale), out_BLd.float().norm(dim=-1)]
        layers.append([tensor.flatten(0, 1)[place].cpu() for tensor in found])

    hooks = [method.register_forward_hook(keep_memory)]
    hooks += [layer.mlp.register_forward_hook(measure) for layer in model.language.layers]
    try:
        with torch.no_grad():
            forward(batch)
    finally:
        for hook in hooks:
            hook.remove()
    activation, contribution, branch, *change, feed_forward = (torch.stack(t) for t in zip(*layers, strict=True))
    assert model.vision is not None
    return Probe(
        activation=activation,
        contribution=contribution,
        change=change[0] if change else None,
        branch_norm=branch,
        feed_forward_norm=feed_forward,
        key_norm=memory[0].key.norm(dim=-1).cpu(),
        value_norm=memory[0].value.norm(dim=-1).cpu(),
        offsets=tuple(batch.offsets.tolist()),
        patches=image_tokens(model.vision.config),
    )


def _slots(x_BLd: torch.Tensor, memory: Memory, other: Memory | None, scale: float) -> list[torch.Tensor]:
    """Activation and contribution [B, L, N], the branch's norm [B, L], and where there is another memory the change."""
    active_BLN = slot_activations(x_BLd, memory.key)
    branch_BLd = scale * (active_BLN @ memory.value)
    contribution_BLN = scale * active_BLN * (branch_BLd @ memory.value.transpose(1, 2))
    found = [active_BLN, contribution_BLN, branch_BLd.norm(dim=-1)]
    if other is not None:
        key, value = (t.to(x_BLd.device).expand_as(memory.key) for t in (other.key, other.value))
        other_BLN = slot_activations(x_BLd, key)
        # |a V - a' V'|^2 multiplied out: differences of all slots at all places would be [B, L, N, d]
        own, both, others = ((p * q).sum(-1)[:, None] for p, q in _pairs(memory.value, value))
        square_BLN = active_BLN**2 * own - 2 * active_BLN * other_BLN * both + other_BLN**2 * others
        found.append(scale * square_BLN.clamp(min=0).sqrt().float())
    return found


def _pairs(a: torch.Tensor, b: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    a, b = a.double(), b.double()  # nearly equal values leave little of the sum
    return (a, a), (a, b), (b, b)


def _square(norm_YT: torch.Tensor) -> torch.Tensor:
    """|o|^2 summed over tokens, [Y, 1]; not zero."""
    return (norm_YT**2).sum(1, keepdim=True).clamp(min=torch.finfo(norm_YT.dtype).tiny)


def _memvp(model: VisualLanguageModel) -> MemVP:
    if not isinstance(model.method, MemVP):
        raise UserError(
            "method.name: only memvp has a feed-forward memory to look into; other methods show a picture to attention"
        )
    return model.method
