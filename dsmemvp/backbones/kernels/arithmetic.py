"""What the kernels share: silu, the last rounding, the sizes of blocks."""

import triton
from triton import language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
ELEMENTS = 4096
"""Of a block, where a row is shorter."""
LONGEST = 16384
"""Columns that a program holds in registers at once."""


@triton.jit
def narrow(value, dtype: tl.constexpr):
    """float32 -> dtype, to the nearest, ties to even."""
    # The interpreter cuts bf16's bits off instead of rounding: it is given float32 numbers that bf16 can hold.
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        value = bits.to(tl.float32, bitcast=True)
    return value.to(dtype)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


def tile(columns: int, widest: int) -> tuple[int, int]:
    """Rows and columns of a block, powers of two, for rows of so many columns; at most `widest` columns."""
    width = min(triton.next_power_of_2(columns), widest)
    return max(1, ELEMENTS // width), width


def warps(elements: int) -> int:
    """At most 32 elements of a block for each thread."""
    return min(max(elements // 1024, 4), 16)
