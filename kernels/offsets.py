"""Offsets into tensors on the device: 64 bits to the start of a tile, and 32 bits inside of it where these are enough.

Offsets of 32 bits take half the registers of those of 64 bits, and main loops count in 32 bits. A launcher asks
``is_wide`` whether the offsets inside of a tile exceed 32 bits, and tells the kernel by its argument ``WIDE``.
"""

import triton
import triton.language as tl


def is_wide(largest: int) -> bool:
    """Return True if numbers up to ``largest`` exceed the range of int32."""
    return largest >= 2**31


@triton.jit
def sized(number, WIDE: tl.constexpr):
    """Return a tensor of indices or offsets in 64 bits where WIDE, else in 32 bits."""
    if WIDE:
        number = number.to(tl.int64)
    else:
        number = number.to(tl.int32)
    return number


@triton.jit
def widened(number):
    """Return a number in 64 bits; also an argument of value 1, which Triton makes a constant."""
    return tl.zeros((), tl.int64) + number
