"""Random stream on a CPU: Philox, normals and signs, compiled by Numba into vector instructions.

The integers are those of integers.py, bit for bit; README.md draws the layouts. A call fills a slab for one sample, on
the thread that calls it. Blocks are taken ``_CHUNK`` at a time, so that their words stay in the first-level cache. The
loops over a chunk have no branch and no call: only then does LLVM vectorise them, and tests/ops/test_compiled.py looks
for vector instructions in what it compiled.
"""

import numpy as np

from nntk.kernels.cpu.compiler import compiled, compiled_sum, exact, inlined
from nntk.kernels.cpu.intrinsics import (
    add,
    bits_of,
    both,
    either,
    exclusive_or,
    float_of,
    high_half,
    larger,
    low_half,
    multiply_add,
    select,
    shift_left,
    shift_right,
    shift_right_signed,
    signed_to_float,
    square_root,
    subtract,
    to_float,
    wide_add,
    wide_exclusive_or,
    wide_product,
)

_CHUNK = 256
"""Blocks whose words are generated together: 1024 normals or 32,768 signs."""

_u, _w, _f = np.uint32, np.uint64, np.float32
_M0, _M1 = _w(0xD2511F53), _w(0xCD9E8D57)
_W0, _W1 = _w(0x9E3779B9), _w(0xBB67AE85)
_ONE, _TWO, _BYTE2, _SIGN, _HIGH = _u(1), _u(2), _u(16), _u(0x80000000), _u(0xFFFF0000)


@inlined
def _round(c0, c1, c2, c3, k0, k1):
    """Apply one round of Philox to wide numbers, of whose high halves nothing is read."""
    p0, p1 = wide_product(c0, _M0), wide_product(c2, _M1)
    return (
        wide_exclusive_or(wide_exclusive_or(high_half(p1), c1), k0),
        p1,
        wide_exclusive_or(wide_exclusive_or(high_half(p0), c3), k1),
        p0,
    )


@inlined
def _philox(c0, c1, c2, c3, k0, k1):
    """Apply Philox-4x32-10. The rounds are written out: LLVM does not vectorise a loop around a loop."""
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    k0, k1 = wide_add(k0, _W0), wide_add(k1, _W1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    k0, k1 = wide_add(k0, _W0), wide_add(k1, _W1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    k0, k1 = wide_add(k0, _W0), wide_add(k1, _W1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    k0, k1 = wide_add(k0, _W0), wide_add(k1, _W1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    k0, k1 = wide_add(k0, _W0), wide_add(k1, _W1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    k0, k1 = wide_add(k0, _W0), wide_add(k1, _W1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    k0, k1 = wide_add(k0, _W0), wide_add(k1, _W1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    k0, k1 = wide_add(k0, _W0), wide_add(k1, _W1)
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0, k1)
    return _round(c0, c1, c2, c3, wide_add(k0, _W0), wide_add(k1, _W1))


@inlined
def _minus_log(u):
    """Return -ln u for a normal number; a polynomial on [sqrt(1/2), sqrt(2)], to 1e-7."""
    exponent = shift_right_signed(subtract(bits_of(u), _u(0x3F3504F3)), _u(23))
    t = float_of(subtract(bits_of(u), shift_left(exponent, _u(23)))) - _f(1.0)
    p = multiply_add(t, _f(0.0870035996), _f(-0.142674763))
    p = multiply_add(t, p, _f(0.14914787))
    p = multiply_add(t, p, _f(-0.16577586))
    p = multiply_add(t, p, _f(0.199630623))
    p = multiply_add(t, p, _f(-0.25001337))
    p = multiply_add(t, p, _f(0.333339108))
    p = multiply_add(t * t, multiply_add(t, p, _f(-0.5)), t)
    return multiply_add(signed_to_float(exponent), _f(-0.6931471805599453), -p)


@inlined
def _rounded_bits(x):
    """Round to the nearest bfloat16, ties to even, in the high half."""
    bits = bits_of(x)
    return both(add(bits, add(_u(0x7FFF), both(shift_right(bits, _BYTE2), _ONE))), _HIGH)


@inlined
def _normal_pair(word, angle):
    """Return two unit normals from the words of radius and angle: packed bfloat16, the cosine low."""
    u = multiply_add(to_float(word), _f(2.0**-32), _f(2.0**-33))
    radius = square_root(larger(_f(2.0) * _minus_log(u), _f(0.0)))
    # Sine and cosine of a turn by its nearest quarter q and the rest x, an eighth of a turn at most.
    q = shift_right(add(angle, _u(0x20000000)), _u(30))
    x = signed_to_float(subtract(angle, shift_left(q, _u(30)))) * _f(2.0**-32)
    y = x * x
    near = multiply_add(y, _f(42.05869394), _f(-76.70585975))
    near = multiply_add(y, near, _f(81.60524928))
    near = multiply_add(y, near, _f(-41.34170224))
    near = x * multiply_add(y, near, _f(6.283185307))
    far = multiply_add(y, _f(-26.42625678), _f(60.24464137))
    far = multiply_add(y, far, _f(-85.45681720))
    far = multiply_add(y, far, _f(64.93939402))
    far = multiply_add(y, far, _f(-19.73920880))
    far = multiply_add(y, far, _f(1.0))
    odd = both(q, _ONE)
    sine_sign = shift_left(both(q, _TWO), _u(30))
    cosine_sign = shift_left(both(add(q, _ONE), _TWO), _u(30))
    cosine = float_of(exclusive_or(bits_of(radius * select(odd, near, far)), cosine_sign))
    sine = float_of(exclusive_or(bits_of(radius * select(odd, far, near)), sine_sign))
    return either(shift_right(_rounded_bits(cosine), _BYTE2), _rounded_bits(sine))


@exact
def fill_words(first, count, ordinal, sample, high, key0, key1, words):
    """Write the words of ``count`` consecutive blocks to ``words`` [4, _CHUNK]."""
    for b in range(count):
        w0, w1, w2, w3 = _philox(wide_add(first, _w(b)), ordinal, sample, high, key0, key1)
        words[0, b] = low_half(w0)
        words[1, b] = low_half(w1)
        words[2, b] = low_half(w2)
        words[3, b] = low_half(w3)


@exact
def fill_pairs(words, count, pairs01, pairs23):
    """Write the two pairs of normals of ``count`` blocks, each packed into a word.

    Apart from :func:`fill_words`, since one loop for both has too few registers and takes twice as long.
    """
    for b in range(count):
        pairs01[b] = _normal_pair(words[0, b], words[1, b])
        pairs23[b] = _normal_pair(words[2, b], words[3, b])


@inlined
def _chunk_length(block, stop):
    """Return how many blocks are generated together: they end where the low half of the block number overflows."""
    return min(_CHUNK, stop - block, (1 << 32) - (block & 0xFFFFFFFF))


@compiled
def _arrange_rows(pairs01, pairs23, count, pairs):
    """Order pairs by column: four of words (0, 1), then four of words (2, 3), are 16 columns of a row."""
    for group in range(count // 4):
        for j in range(4):
            pairs[8 * group + j] = pairs01[4 * group + j]
            pairs[8 * group + 4 + j] = pairs23[4 * group + j]


@compiled
def _arrange_vector(pairs01, pairs23, count, pairs):
    """Order pairs as a vector has them: block after block."""
    for b in range(count):
        pairs[2 * b] = pairs01[b]
        pairs[2 * b + 1] = pairs23[b]


@compiled
def _unpack_normals(pairs, out):
    """Write pairs of normals as numbers."""
    for i in range(len(out) // 2):
        out[2 * i] = float_of(shift_left(pairs[i], _BYTE2))
        out[2 * i + 1] = float_of(both(pairs[i], _HIGH))
    if len(out) % 2:
        out[-1] = float_of(shift_left(pairs[len(out) // 2], _BYTE2))


@compiled
def _displace_by_normals(pairs, step, weight, out):
    """Write W + s E, where E are pairs of normals."""
    for i in range(len(out) // 2):
        out[2 * i] = weight[2 * i] + step * float_of(shift_left(pairs[i], _BYTE2))
        out[2 * i + 1] = weight[2 * i + 1] + step * float_of(both(pairs[i], _HIGH))
    if len(out) % 2:
        out[-1] = weight[-1] + step * float_of(shift_left(pairs[len(out) // 2], _BYTE2))


@compiled_sum
def _sum_of_squares(pairs, length):
    """Return the sum of squares of so many normals."""
    total = 0.0
    for i in range(length // 2):
        low, high = float_of(shift_left(pairs[i], _BYTE2)), float_of(both(pairs[i], _HIGH))
        total += np.float64(low * low) + np.float64(high * high)
    if length % 2:
        last = float_of(shift_left(pairs[length // 2], _BYTE2))
        total += np.float64(last * last)
    return total


@compiled
def fill_normals(stream, samples, rows, shape, noise, weight, steps, displaced, squares):
    """Fill a slab with normals E, and with displaced weights W + s E, for some samples.

    Args:
        stream: Ordinal, high half of the last counter (version and purpose), low and high half of the key: int64, [4].
        samples: Stream numbers m of the samples, int64, [T].
        rows: First row and end of the rows; of a vector the first index, a multiple of 4, and the end.
        shape: Rows and columns of the tensor; of a vector 0 and its length.
        noise: Array for E, [T, rows, columns], or [T, 1, length] for a vector; empty to leave it out.
        weight: W, [rows, columns].
        steps: Signed steps s of the members, [T, members].
        displaced: Array for W + s E, [T, members, rows, columns]; empty to leave it out.
        squares: Array to which the squared norms of E are added, float64, [T]; empty to leave it out.
    """
    ordinal, key0, key1 = _w(stream[0]), _w(stream[2]), _w(stream[3])
    is_vector = shape[0] == 0
    # A vector is one row of consecutive blocks.
    width = rows[1] - rows[0] if is_vector else shape[1]
    padded = (width + 3) // 4 * 4 if is_vector else (width + 15) // 16 * 16
    begin, stop = rows[0] * padded // 4, rows[1] * padded // 4
    if is_vector:
        begin, stop = rows[0] // 4, rows[0] // 4 + padded // 4
    words, pairs = np.empty((4, _CHUNK), _u), np.empty(2 * _CHUNK, _u)
    pairs01, pairs23 = np.empty(_CHUNK, _u), np.empty(_CHUNK, _u)
    for t in range(len(samples)):
        sample, block = _w(samples[t]), begin
        while block < stop:
            count = _chunk_length(block, stop)
            high = _w(stream[1] | (block >> 32))
            fill_words(_w(block & 0xFFFFFFFF), count, ordinal, sample, high, key0, key1, words)
            fill_pairs(words, count, pairs01, pairs23)
            if is_vector:
                _arrange_vector(pairs01, pairs23, count, pairs)
            else:
                _arrange_rows(pairs01, pairs23, count, pairs)
            first, end = 4 * (block - begin), 4 * (block - begin + count)
            while first < end:
                row, column = first // padded, first % padded
                length = min(width - column, end - first)
                here = pairs[(first - 4 * (block - begin)) // 2 :]
                if noise.size > 0:
                    _unpack_normals(here, noise[t, row, column : column + length])
                if displaced.size > 0:
                    for member in range(displaced.shape[1]):
                        _displace_by_normals(
                            here,
                            steps[t, member],
                            weight[row, column : column + length],
                            displaced[t, member, row, column : column + length],
                        )
                if squares.size > 0:
                    squares[t] += _sum_of_squares(here, length)
                first = min((row + 1) * padded, end)
            block += count


@inlined
def _sign_of(word, bit):
    """Return -1 where a bit of the word is set, else 1."""
    return float_of(either(both(shift_left(word, _u(31 - bit)), _SIGN), _u(0x3F800000)))


@compiled
def _unpack_signs(words, out):
    """Write random signs, 32 a word."""
    for w in range(len(out) // 32):
        for bit in range(32):
            out[32 * w + bit] = _sign_of(words[w], bit)
    w = len(out) // 32
    for bit in range(len(out) % 32):
        out[32 * w + bit] = _sign_of(words[w], bit)


@compiled
def _displace_by_signs(words, step, weight, out):
    """Write W + s E, where E are signs."""
    for w in range(len(out) // 32):
        for bit in range(32):
            out[32 * w + bit] = weight[32 * w + bit] + step * _sign_of(words[w], bit)
    w = len(out) // 32
    for bit in range(len(out) % 32):
        out[32 * w + bit] = weight[32 * w + bit] + step * _sign_of(words[w], bit)


@compiled
def fill_signs(stream, samples, rows, shape, noise, weight, steps, displaced):
    """Fill a slab with random signs E, and with W + s E; arguments as for :func:`fill_normals`.

    The first row is a multiple of 4, the first index of a vector a multiple of 128.
    """
    ordinal, key0, key1 = _w(stream[0]), _w(stream[2]), _w(stream[3])
    is_vector = shape[0] == 0
    width = rows[1] - rows[0] if is_vector else shape[1]
    # Words of a row; a block has a word for each of four rows, or four words of a vector.
    columns = (width + 31) // 32
    begin = rows[0] // 128 if is_vector else rows[0] // 4 * columns
    count_blocks = (columns + 3) // 4 if is_vector else (rows[1] - rows[0] + 3) // 4 * columns
    num_rows = 1 if is_vector else rows[1] - rows[0]
    words, line = np.empty((4, _CHUNK), _u), np.empty(4 * _CHUNK, _u)
    for t in range(len(samples)):
        sample, block = _w(samples[t]), begin
        while block < begin + count_blocks:
            count = _chunk_length(block, begin + count_blocks)
            high = _w(stream[1] | (block >> 32))
            fill_words(_w(block & 0xFFFFFFFF), count, ordinal, sample, high, key0, key1, words)
            first, end = block - begin, block - begin + count
            if is_vector:
                for b in range(count):
                    for j in range(4):
                        line[4 * b + j] = words[j, b]
                length = min(width - 128 * first, 128 * count)
                if noise.size > 0:
                    _unpack_signs(line, noise[t, 0, 128 * first : 128 * first + length])
            else:
                while first < end:
                    quad, column = first // columns, first % columns
                    taken = min(columns - column, end - first)
                    length = min(width - 32 * column, 32 * taken)
                    for r in range(min(4, num_rows - 4 * quad)):
                        row, here = 4 * quad + r, words[r, first - (block - begin) :]
                        span = slice(32 * column, 32 * column + length)
                        if noise.size > 0:
                            _unpack_signs(here, noise[t, row, span])
                        if displaced.size > 0:
                            for member in range(displaced.shape[1]):
                                _displace_by_signs(
                                    here, steps[t, member], weight[row, span], displaced[t, member, row, span]
                                )
                    first += taken
            block += count
