"""Dropout whose masks are functions of counters: of the seed and step, the sample or image, the token's position in it,
the layer, and the channel. There is no generator whose state could differ, so a mask is the same when a block is run
again in the backward, after a resume, and on any number of ranks.

R rows (tokens), C channels. The mixing function is splitmix64's finaliser (Steele, Lea, Flood, OOPSLA 2014, section 5).
"""

import zlib
from dataclasses import dataclass
from typing import Any

import torch

from dsmemvp.host_values import from_host

MASK_64 = 2**64 - 1
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ROW, _COLUMN = 0x2C1B3C6D, 0x297A2D39


@dataclass(frozen=True)
class Dropout:
    """What decides the masks of one place in the model."""

    keys: torch.Tensor
    """int64, of each row one; any shape"""

    def at(self, *place: object) -> "Dropout":
        """For a place inside, such as ("layers", 3, "q_proj")."""
        salt = mix_number(zlib.crc32(repr(place).encode()))
        return Dropout(mix(self.keys ^ _signed(salt)))

    def __call__(self, x: torch.Tensor, p: float) -> torch.Tensor:
        """[.., C], whose leading dimensions hold as many rows as there are keys -> the same, each element zero with
        probability `p` and else divided by 1 - p."""
        if not p:
            return x
        return _Dropped.apply(x, self.keys, p)


class _Dropped(torch.autograd.Function):
    """Keeps the keys, not the mask."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, keys: torch.Tensor, p: float) -> torch.Tensor:
        ctx.save_for_backward(keys)
        ctx.p = p
        return dropped(x, keys, p)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return dropped(gradient, ctx.saved_tensors[0], ctx.p), None, None


def dropped(x: torch.Tensor, keys: torch.Tensor, p: float) -> torch.Tensor:
    """`x` times its mask; no gradient."""
    mask = kept(keys, x.shape[-1], p).view(x.shape)
    return torch.where(mask, x, 0).mul_(1 / (1 - p))


def kept(keys: torch.Tensor, channels: int, p: float) -> torch.Tensor:
    """[R, C] bool: the elements that stay."""
    keys_R1 = keys.reshape(-1, 1)
    column_C = mix(torch.arange(channels, device=keys.device)).to(torch.int32)
    bits = keys_R1.to(torch.int32) ^ column_C
    bits = bits.mul_(_ROW)
    bits ^= (bits >> 15) & 0x1FFFF
    bits += (keys_R1 >> 32).to(torch.int32)
    bits *= _COLUMN
    bits ^= (bits >> 16) & 0xFFFF
    return (bits & 0x7FFFFFFF) >= int(p * 2**31)


def step_seed(seed: int, step: int) -> int:
    """Of a run's seed and a step."""
    return mix_number(mix_number(seed) + step)


def token_keys(ids_B: torch.Tensor, lengths: tuple[int, ...], positions_T: torch.Tensor, seed: int) -> torch.Tensor:
    """[T]: of each token, by its sample and its position in it."""
    keys_B = mix(ids_B ^ _signed(mix_number(seed)))
    repeats = from_host(lengths, ids_B.device)
    return mix(keys_B.repeat_interleave(repeats, output_size=positions_T.shape[0]) + positions_T)


def image_keys(ids_I: torch.Tensor, tokens: int, seed: int) -> torch.Tensor:
    """[I, tokens]: of each of an image's tokens."""
    keys_I = mix(ids_I ^ _signed(mix_number(seed + 1)))
    return mix(keys_I[:, None] + torch.arange(tokens, device=ids_I.device))


def mix(x: torch.Tensor) -> torch.Tensor:
    """int64 -> int64, one to one, each bit depending on all. Products wrap around."""
    x = (x ^ _shifted(x, 30)) * _signed(_FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(_SECOND)
    return x ^ _shifted(x, 31)


def mix_number(x: int) -> int:
    """As `mix`, of one number; not negative."""
    x &= MASK_64
    x = (x ^ (x >> 30)) * _FIRST & MASK_64
    x = (x ^ (x >> 27)) * _SECOND & MASK_64
    return x ^ (x >> 31)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """The logical shift to the right."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    x &= MASK_64
    return x - 2**64 if x >= 2**63 else x
