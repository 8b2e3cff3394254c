"""Integer words of the random stream: Philox-4x32-10 and its counters, in torch integer arithmetic.

README.md beside this file draws the layout of key and counter. A word is a function of (seed, sample, tensor, block)
alone, so any part of a displacement can be generated anywhere, in any order.
"""

import torch
from torch import Tensor

STREAM_VERSION = 1
"""Version of the stream, stored in every result. It changes whenever the same seed would give other displacements."""

DISPLACEMENT, BASE, INPUT_SIGNS, OUTPUT_SIGNS, LEFT, RIGHT, RADIUS, PROJECTION = range(8)
"""Purposes of words: the displacement itself; the bases and the two sign vectors of flipout; the two factors of
lowrank; the radii of fixed kernels; projections for attention. Streams of one seed with different purposes are
independent."""

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

Words = tuple[Tensor, Tensor, Tensor, Tensor]
"""Four int64 tensors of words in [0, 2**32)."""


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Apply Philox-4x32-10 (Salmon et al., SC 2011) to broadcastable counters.

    Args:
        counter: Four int64 tensors with values in [0, 2**32), of shapes that broadcast.
        key: Low and high 32 bits of the seed.

    Returns:
        Four int64 tensors of words in [0, 2**32), each of the broadcast shape or one that broadcasts to it.

    Example:
        >>> zero = torch.zeros((), dtype=torch.int64)
        >>> [f"{int(word):08x}" for word in philox((zero, zero, zero, zero), (0, 0))]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for round_index in range(10):
        # A 64-bit product may wrap to a negative number: its bits are right, and the mask recovers the high half.
        # The low halves keep garbage above bit 31 until the next XOR is masked, which saves two masks a round.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        if round_index < 3:
            c0, c2 = ((p1 >> 32) ^ c1 ^ k0) & _MASK, ((p0 >> 32) ^ c3 ^ k1) & _MASK
        else:
            # By now c0 and c2 have the broadcast shape and belong to this function. Writing in place spares the caches.
            torch.bitwise_right_shift(p1, 32, out=c0).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
            torch.bitwise_right_shift(p0, 32, out=c2).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = p1, p0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


def stream_words(
    sample_ids: Tensor, blocks: Tensor, ordinals: Tensor, key: tuple[int, int], purposes: Tensor | int = DISPLACEMENT
) -> Words:
    """Return the four words of each (sample, block).

    Args:
        sample_ids: Stream numbers m of the samples, [M], int64 in [0, 2**32).
        blocks: Block numbers, [B], int64 in [0, 2**48).
        ordinals: Position of each block's parameter in registration order, [B] or [1], int64.
        key: Low and high 32 bits of the seed.
        purposes: Purposes of the words, [B] or one number, in [0, 256).

    Returns:
        Four int64 tensors, [M, B].
    """
    high = (STREAM_VERSION << 24) | (purposes << 16) | (blocks >> 32)
    shape = (len(sample_ids), len(blocks))
    w0, w1, w2, w3 = philox((blocks & _MASK, ordinals, sample_ids[:, None], high), key)
    return w0.expand(shape), w1.expand(shape), w2.expand(shape), w3.expand(shape)
