"""The random stream once more, in NumPy and one number at a time, from its written definition only."""

import numpy as np

VERSION = 1


def philox(counter, key):
    """Philox-4x32-10 of uint32 counters [..., 4] and a key (low, high)."""
    c = [np.asarray(counter)[..., i].astype(np.uint64) for i in range(4)]
    k = [int(key[0]), int(key[1])]
    mask = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p, q = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            (q >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]),
            q & mask,
            (p >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]),
            p & mask,
        ]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return np.stack(c, axis=-1)


def block_words(block, ordinal, m, seed, purpose=0):
    """The four words of one block."""
    counter = [block % 2**32, ordinal, m, (VERSION << 24) | (purpose << 16) | (block >> 32)]
    return philox(np.array(counter, dtype=np.uint64), (seed % 2**32, seed >> 32))


def sign(m, ordinal, shape, index, seed, purpose=0):
    """Sign of one entry: [h, k...] of a matrix, or [i] of a vector."""
    if len(shape) == 1:
        block, word, bit = index[0] // 128, index[0] % 128 // 32, index[0] % 32
    else:
        h, k = index[0], int(np.ravel_multi_index(index[1:], shape[1:]))
        columns = -(-int(np.prod(shape[1:])) // 32)
        block, word, bit = h // 4 * columns + k // 32, h % 4, k % 32
    words = block_words(block, ordinal, m, seed, purpose)
    return -1.0 if int(words[word]) >> bit & 1 else 1.0


def normal(m, ordinal, shape, index, seed, purpose=0):
    """One normal before its rounding to bfloat16."""
    if len(shape) == 1:
        block, place = index[0] // 4, index[0] % 4
    else:
        h, k = index[0], int(np.ravel_multi_index(index[1:], shape[1:]))
        groups = -(-int(np.prod(shape[1:])) // 16)
        column = k % 16
        block = h * groups * 4 + k // 16 * 4 + column % 8 // 2
        place = column // 8 * 2 + column % 2
    words = block_words(block, ordinal, m, seed, purpose)
    radius_word, angle_word = words[0:2] if place < 2 else words[2:4]
    radius = np.sqrt(-2 * np.log(float(radius_word) / 2**32 + 2.0**-33))
    angle = 2 * np.pi * float(angle_word) / 2**32
    return radius * (np.cos(angle) if place % 2 == 0 else np.sin(angle))


def bfloat16(x):
    """The nearest number of eight significant bits, ties to even."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 256) / 256, exponent)


def flipout(m, ordinal, shape, index, seed, bases):
    """One entry of flipout's displacement: the base of row m mod B, times the signs of row m for its unit and input."""
    if len(shape) == 1:
        return sign(m, ordinal, shape, index, seed)
    h, k = index[0], int(np.ravel_multi_index(index[1:], shape[1:]))
    base = sign(m % bases, ordinal, shape, index, seed, purpose=1)
    s = sign(m, ordinal, (int(np.prod(shape[1:])),), (k,), seed, purpose=2)
    return base * s * sign(m, ordinal, (shape[0],), (h,), seed, purpose=3)


def lowrank(m, ordinal, shape, seed, rank):
    """A whole displacement of low rank: products of two normal factors, scaled to the norm of as many signs."""
    if len(shape) == 1:
        return np.array([sign(m, ordinal, shape, (i,), seed) for i in range(shape[0])])

    def factor(width, purpose):
        entries = [normal(m, ordinal, (rank, width), (r, i), seed, purpose) for r in range(rank) for i in range(width)]
        return bfloat16(np.array(entries)).reshape(rank, width)

    product = factor(shape[0], 4).T @ factor(int(np.prod(shape[1:])), 5)
    return (product * np.sqrt(product.size / np.sum(product**2))).reshape(shape)
