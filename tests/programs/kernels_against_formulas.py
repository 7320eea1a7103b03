"""The Triton kernels against float64 formulas, autograd and transformers, on "cpu" (in Triton's interpreter, with
TRITON_INTERPRET=1) or "cuda" (compiled). Prints, as JSON, what went wrong in each check, or null.

Arguments: the device, and the checks to make; none: all. With some named, the exit code says whether they passed.
"""

import json
import sys
import traceback
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

EPS = 0.5  # as large as it must be to be seen
MASK_32, MASK_64 = 2**32 - 1, 2**64 - 1
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""The largest relative error of one rounding; float32's is in the 1e-6 that all arithmetic has."""


def randn(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, dtype=torch.float64) * scale).to(dtype)


def near(found: torch.Tensor, exact: torch.Tensor, roundings: int = 1) -> None:
    """Within 1e-6 of the largest and so many roundings of each."""
    assert found.shape == exact.shape, (found.shape, exact.shape)
    if not found.numel():
        return
    error = (found.cpu().double() - exact).abs()
    allowed = exact.abs() * ROUNDING[found.dtype] * roundings + 1e-6 * exact.abs().max()
    assert (error <= allowed).all(), f"{found.dtype}: {(error / allowed).max():.2f} times what is allowed"


def normed64(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt()


def rows(dtype: torch.dtype) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """x and a weight: one row, none, some that leave blocks unfilled, rows longer than a block."""
    for shape in ((1, 64), (0, 64), (1, 1, 96), (2, 35, 48), (3, 7, 100), (3, 4096), (2, 20000)):
        yield randn(*shape, dtype=dtype, scale=3), 1 + randn(shape[-1], dtype=dtype, scale=0.2)
    yield randn(100, 3, dtype=dtype).t(), randn(100, dtype=dtype)


def norm(device: str, dtype: torch.dtype) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from dsmemvp.backbones.kernels.norm import rms_norm

    for x, weight in rows(dtype):
        found = rms_norm(x.to(device), weight.to(device), EPS)
        assert found.dtype == dtype
        near(found, normed64(x.double(), weight.double()), roundings=2)
        golden = LlamaRMSNorm(x.shape[-1], EPS).to(dtype)
        golden.weight.data = weight
        if (
            dtype != torch.float32 and x.numel()
        ):  # the quotient is rounded before the product, or a quarter would differ
            assert (found.cpu() == golden(x)).double().mean() > 0.99
    x, weight = randn(2, 3, 40, dtype=dtype), randn(40, dtype=torch.float32)
    found = rms_norm(x.to(device), weight.to(device), EPS)
    assert found.dtype == torch.float32
    near(found, weight.double() * normed64(x.double(), torch.ones(40)).to(dtype).double())


def norm_backward(device: str, dtype: torch.dtype) -> None:
    from dsmemvp.backbones.kernels.norm import rms_norm_backward

    for x, weight in rows(dtype):
        gradient = randn(*x.shape, dtype=dtype)
        x64 = x.double().requires_grad_()
        (exact,) = torch.autograd.grad(normed64(x64, weight.double()), x64, gradient.double())
        near(rms_norm_backward(gradient.to(device), x.to(device), weight.to(device), EPS), exact)


def heads(dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """[1, H, T, D] and [T, H, D] in the layouts that layers have."""
    yield randn(1, 5, 7, 20, dtype=dtype)
    yield randn(1, 37, 4 * 32, dtype=dtype).view(1, 37, 4, 32).transpose(1, 2)  # of a linear layer
    yield randn(1, 6, 3 * 4 * 16, dtype=dtype)[..., 64:128].view(1, 6, 4, 16).transpose(1, 2)  # of a wider one
    yield randn(9, 3, 48, dtype=dtype)
    yield randn(130, 2, 128, dtype=dtype)[..., ::2]
    yield randn(1, 2, 1, 64, dtype=dtype)
    yield randn(1, 2, 0, 64, dtype=dtype)
    yield randn(0, 2, 64, dtype=dtype)


def rotary(device: str, dtype: torch.dtype) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    from dsmemvp.backbones.kernels.rotary import rotate

    for x in heads(dtype):
        tokens, width = x.shape[-2] if x.dim() == 4 else x.shape[0], x.shape[-1]
        angles = torch.rand(1, tokens, width // 2).repeat(1, 1, 2) * 100
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        x64 = x.double().requires_grad_()
        axis = 1 if x.dim() == 4 else 2
        exact, _ = apply_rotary_pos_emb(x64 if axis == 1 else x64[None], x64[None], cos.double(), sin.double(), axis)
        exact = exact.view(x.shape)
        found = rotate(x.to(device), cos.to(device), sin.to(device))
        near(found, exact.detach())
        assert found.stride() == torch.empty_like(x).stride()
        gradient = randn(*x.shape, dtype=dtype)
        (turned_back,) = torch.autograd.grad(exact, x64, gradient.double())
        near(rotate(gradient.to(device), cos.to(device), sin.to(device), inverse=True), turned_back)


def gated(device: str, dtype: torch.dtype) -> None:
    from dsmemvp.backbones.kernels.activation import silu_mul, silu_mul_backward

    for shape in ((1, 1, 88), (0, 88), (1, 50, 173), (7,)):
        gate, up, gradient = (randn(*shape, dtype=dtype, scale=scale) for scale in (20, 1, 1))
        gate64, up64 = gate.double().requires_grad_(), up.double().requires_grad_()
        exact = F.silu(gate64) * up64
        near(silu_mul(gate.to(device), up.to(device)), exact.detach())
        found = silu_mul_backward(gradient.to(device), gate.to(device), up.to(device))
        for one, other in zip(found, torch.autograd.grad(exact, (gate64, up64), gradient.double()), strict=True):
            near(one, other)
    gate, up = randn(40, 30, dtype=dtype).t(), randn(30, 40, dtype=dtype)
    near(silu_mul(gate.to(device), up.to(device)), F.silu(gate.double()) * up.double())


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK_64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK_64
    return x ^ (x >> 31)


def bits(key: int, column: int) -> int:
    """31 of them, that decide whether an element is kept; in numbers without a width."""
    key &= MASK_64
    h = ((key ^ mix(column)) & MASK_32) * 0x2C1B3C6D & MASK_32
    h = (h ^ (h >> 15)) + (key >> 32) & MASK_32
    h = h * 0x297A2D39 & MASK_32
    return (h ^ (h >> 16)) & 0x7FFFFFFF


def slots(device: str, dtype: torch.dtype) -> None:
    from dsmemvp.backbones.kernels.slots import slot_activation, slot_activation_backward

    ends = torch.tensor([0, -1, 2**63 - 1, -(2**63), 2**31, -(2**31), 2**32])
    keys = torch.cat((ends, torch.randint(-(2**63), 2**63 - 1, (30,))))
    for tokens, columns in ((37, 300), (1, 64), (0, 64), (5, 3)):
        key_T = keys[:tokens]
        bits_TN = torch.tensor([[bits(key, n) for n in range(columns)] for key in key_T.tolist()]).view(-1, columns)
        scores, gradient = randn(1, tokens, columns, dtype=dtype, scale=5), randn(1, tokens, columns, dtype=dtype)
        edge = [bits_TN.min().item() / 2**31] if tokens else []  # where one element is kept that > would drop
        for p in [0.0, 0.1, 0.5, 0.9, *edge]:
            kept = (bits_TN >= int(p * 2**31))[None]
            ones = slot_activation(torch.ones_like(scores).to(device), key_T.to(device), p)
            assert torch.equal(ones.cpu() != 0, kept)
            scores64 = scores.double().requires_grad_()
            exact = F.silu(scores64) * kept / (1 - p)
            near(slot_activation(scores.to(device), key_T.to(device), p), exact.detach())
            found = slot_activation_backward(gradient.to(device), scores.to(device), key_T.to(device), p)
            near(found, *torch.autograd.grad(exact, scores64, gradient.double()))


CHECKS: dict[str, Callable[[str, torch.dtype], None]] = {
    check.__name__: check for check in (norm, norm_backward, rotary, gated, slots)
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(device: str, *names: str) -> None:
    wrong = {}
    for name, check in CHECKS.items():
        if names and name not in names:
            continue
        for label, dtype in DTYPES.items():
            torch.manual_seed(0)
            try:
                check(device, dtype)
                wrong[f"{name} {label}"] = None
            except Exception:  # each is told, so that one run shows all that fail
                wrong[f"{name} {label}"] = traceback.format_exc()
    print(json.dumps(wrong))
    if names and any(wrong.values()):
        sys.exit("\n".join(filter(None, wrong.values())))


if __name__ == "__main__":
    main(*sys.argv[1:])
