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


def sign(m, ordinal, shape, index, seed):
    """Sign of one entry: [h, k...] of a matrix, or [i] of a vector."""
    if len(shape) == 1:
        block, word, bit = index[0] // 128, index[0] % 128 // 32, index[0] % 32
    else:
        h, k = index[0], int(np.ravel_multi_index(index[1:], shape[1:]))
        columns = -(-int(np.prod(shape[1:])) // 32)
        block, word, bit = h // 4 * columns + k // 32, h % 4, k % 32
    words = block_words(block, ordinal, m, seed)
    return -1.0 if int(words[word]) >> bit & 1 else 1.0


def normal(m, ordinal, shape, index, seed):
    """One normal before its rounding to bfloat16."""
    if len(shape) == 1:
        block, place = index[0] // 4, index[0] % 4
    else:
        h, k = index[0], int(np.ravel_multi_index(index[1:], shape[1:]))
        groups = -(-int(np.prod(shape[1:])) // 16)
        column = k % 16
        block = h * groups * 4 + k // 16 * 4 + column % 8 // 2
        place = column // 8 * 2 + column % 2
    words = block_words(block, ordinal, m, seed)
    radius_word, angle_word = words[0:2] if place < 2 else words[2:4]
    radius = np.sqrt(-2 * np.log(float(radius_word) / 2**32 + 2.0**-33))
    angle = 2 * np.pi * float(angle_word) / 2**32
    return radius * (np.cos(angle) if place % 2 == 0 else np.sin(angle))
