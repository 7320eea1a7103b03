"""Frozen linear weights in 8 or 4 bits: how they are stored, and the products with them.

    int8   a byte per element, one scale per block of 64 (per row, if rows are no multiples): w = scale * code
    nf4    four bits per element, one scale per block of 64: w = scale * LEVELS[code] (QLoRA, arXiv 2305.14314)
    fp8    a float8 (e4m3) per element, one scale per row; both factors of a product are float8

Codes are bytes, [out, in x bits / 8], so that nothing that casts floating-point tensors touches them; scales are of the
model's type, and codes are made for the scales as they are rounded. T rows, I and O channels in and out, U units of
elements that share a scale, S elements of one.
"""

import logging
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch.nn import functional as F

from dsmemvp.errors import UserError

Form = Literal["int8", "nf4", "fp8"]
BLOCK = 64
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""NF4's, from appendix E of the paper."""
FP8 = torch.float8_e4m3fn
LARGEST = {"int8": 127.0, "nf4": 1.0, "fp8": torch.finfo(FP8).max}
"""What a unit's largest element is scaled to."""
FITS = (1.0, -1.0, 0.9, -0.9, 0.8, -0.8)
"""Scales of nf4 that are tried for a unit, as parts of its largest element; QLoRA has the first alone. Of both signs,
since there are more levels above zero than below; below 1, since most elements are small and gain what the largest
one loses."""
GRID = 2048
"""Steps between -1 and 1."""
FP8_FROM = (8, 9)
"""Compute capability of the first GPUs with float8 products (Ada; then Hopper, Blackwell)."""


@dataclass(frozen=True)
class Layout:
    """How a weight [O, I] is stored."""

    form: Form
    shape: tuple[int, int]
    fitted: bool = False
    """Whether scales of nf4 are those that lose least, or follow from the largest element of each unit."""

    def __post_init__(self) -> None:
        """Raises UserError for a shape that the form cannot store."""
        multiple, (rows, columns) = {"int8": 1, "nf4": BLOCK, "fp8": 16}[self.form], self.shape
        if columns % multiple or (self.form == "fp8" and rows % multiple):
            raise UserError(
                f"model.quantize: {self.form} takes linear layers whose widths are multiples of {multiple}, and the"
                f" model has one of {rows} x {columns}; take int8"
            )

    @property
    def unit(self) -> int:
        """Elements that share a scale."""
        blocks = self.form != "fp8" and self.shape[1] % BLOCK == 0
        return BLOCK if blocks else self.shape[1]

    @property
    def units(self) -> int:
        return self.shape[0] * self.shape[1] // self.unit

    @property
    def unit_bytes(self) -> int:
        """Of a unit's codes."""
        return self.unit // 2 if self.form == "nf4" else self.unit

    @property
    def codes_shape(self) -> tuple[int, int]:
        return self.shape[0], self.units * self.unit_bytes // self.shape[0]


def quantize(layout: Layout, values_US: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 units -> codes as bytes, [U, bytes of a unit], and scales [U] of `dtype`."""
    largest = LARGEST[layout.form]
    scales_U = (_fitted(values_US) if layout.fitted else values_US.abs().amax(1) / largest).to(dtype)
    if layout.form == "nf4":
        codes_US = _nearest(values_US, scales_U).to(torch.uint8)
        return codes_US[:, ::2] << 4 | codes_US[:, 1::2], scales_U
    relative_US = _relative(values_US, scales_U).clamp_(-largest, largest)
    if layout.form == "int8":
        return relative_US.round_().to(torch.int8).view(torch.uint8), scales_U
    return relative_US.to(FP8).view(torch.uint8), scales_U


def _fitted(values_US: torch.Tensor) -> torch.Tensor:
    """Scales of nf4, [U]: that of FITS which loses least, then the best one for its codes, by least squares."""
    largest_U = values_US.abs().amax(1)
    least_U, chosen_US = torch.full_like(largest_U, torch.inf), torch.empty_like(values_US)
    # the nearest levels at points of a grid: twenty times as fast as a search, and nearly as good
    grid = torch.linspace(-1, 1, GRID + 1, device=values_US.device)
    near = torch.tensor(LEVELS, device=values_US.device)[_nearest(grid[None], torch.ones_like(grid[:1]))[0]]
    for part in FITS:
        scales_U = part * largest_U
        places_US = _relative(values_US, scales_U).clamp_(-1, 1).add_(1).mul_(GRID / 2).round_().int()
        taken_US = near.index_select(0, places_US.view(-1)).view_as(values_US)
        lost_U = (taken_US * scales_U[:, None] - values_US).square_().sum(1)
        better_U = lost_U < least_U
        least_U = torch.where(better_U, lost_U, least_U)
        chosen_US = torch.where(better_U[:, None], taken_US, chosen_US)
    return (values_US * chosen_US).sum(1) / chosen_US.square().sum(1).clamp_(min=torch.finfo(torch.float32).tiny)


def _nearest(values_US: torch.Tensor, scales_U: torch.Tensor) -> torch.Tensor:
    """Codes of nf4, int32."""
    levels = torch.tensor(LEVELS, device=values_US.device)
    return torch.bucketize(_relative(values_US, scales_U), (levels[1:] + levels[:-1]) / 2, out_int32=True)


def _relative(values_US: torch.Tensor, scales_U: torch.Tensor) -> torch.Tensor:
    return values_US / torch.where(scales_U == 0, 1, scales_U).float()[:, None]


def product(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, layout: Layout) -> torch.Tensor:
    """x [..., I] times the transposed weight -> [..., O]"""
    if layout.form != "fp8":
        return F.linear(x, _restored(codes, scales, layout))
    return _scaled(x, codes.view(FP8).T, scales)


def product_backward(gradient: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, layout: Layout) -> torch.Tensor:
    """To the input: gradient [..., O] times the weight -> [..., I]"""
    if layout.form != "fp8":
        return gradient @ _restored(codes, scales, layout)
    # the products of GPUs take the second factor in columns, which is the other way round than for the forward
    in_columns = codes.T.contiguous().T.view(FP8)
    return _scaled(gradient * scales, in_columns, torch.ones_like(scales[:1]).expand(layout.shape[1]))


def check_form(form: str, device: torch.device) -> None:
    """Whether products of that form can be computed here. Raises UserError."""
    if form != "fp8":
        return
    found = torch.cuda.get_device_capability(device) if device.type == "cuda" and torch.version.cuda else (0, 0)
    if found < FP8_FROM:
        here = f"this GPU has {found[0]}.{found[1]}" if found[0] else f"this is {_named(device)}"
        raise UserError(
            "model.quantize: fp8 needs an NVIDIA GPU with float8 products (compute capability 8.9 or more: Ada, Hopper"
            f" or later), and {here}; take int8"
        )


def _named(device: torch.device) -> str:
    return "a CPU" if device.type == "cpu" else "a GPU of another make"


def _scaled(x: torch.Tensor, other_in_columns: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x [..., K] @ float8 [K, N] with a scale for each of the N; rows of x become float8 with a scale each."""
    rows_TK = x.flatten(0, -2).float()
    of_rows_T1 = rows_TK.abs().amax(1, keepdim=True).div_(LARGEST["fp8"]).clamp_(min=torch.finfo(torch.float32).tiny)
    rows_TK = rows_TK.div_(of_rows_T1).clamp_(-LARGEST["fp8"], LARGEST["fp8"]).to(FP8)
    of_columns_1N = scales.float()[None].contiguous()
    out_TN = torch._scaled_mm(
        rows_TK, other_in_columns, scale_a=of_rows_T1, scale_b=of_columns_1N, out_dtype=torch.bfloat16
    )
    # an autograd function's result that is a view could not be added to in place
    return torch.ops.aten._unsafe_view(out_TN, [*x.shape[:-1], out_TN.shape[1]])


def _restored(codes: torch.Tensor, scales: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The weight, [O, I] of the scales' type."""
    if layout.form == "nf4":
        return _from_nf4(codes, scales, layout)
    units_US = codes.view(torch.int8).to(scales.dtype).view(-1, layout.unit)
    return units_US.mul_(scales[:, None]).view(layout.shape)


def _from_nf4(codes: torch.Tensor, scales: torch.Tensor, layout: Layout) -> torch.Tensor:
    """By bitsandbytes' kernel if it is installed, else in torch's operations
    with the same values."""
    if _bitsandbytes():
        flat = codes.view(-1, 1)
        shape = list(layout.shape)
        return torch.ops.bitsandbytes.dequantize_4bit(flat, scales.float(), BLOCK, "nf4", shape, scales.dtype)
    pairs = _pairs(codes.device).index_select(0, codes.view(-1).int()).view(torch.float32)
    return (pairs.view(-1, BLOCK) * scales.float()[:, None]).to(scales.dtype).view(layout.shape)


@cache
def _pairs(device: torch.device) -> torch.Tensor:
    """Byte -> the two levels of its codes, the high half first: [256], two float32 in each int64. Made once: a copy
    from the host would wait for the GPU in every product."""
    levels = torch.tensor(LEVELS, device=device)
    return torch.stack([levels.repeat_interleave(16), levels.repeat(16)], 1).view(torch.int64).view(-1)


@cache
def _bitsandbytes() -> bool:
    if find_spec("bitsandbytes") is None:
        return False
    # says on every CPU that a further package would have one more kernel, of a product that is not used here
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import bitsandbytes  # noqa: F401  registers its operations

    return True
