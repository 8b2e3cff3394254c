"""Differences of activations on a CPU in one pass, compiled by Numba; nntk.kernels.activations has the formulas.

A row has the pre-activations of one member of a displacement. There is no branch and no call in a loop over it, so that
LLVM vectorises it: exponentials and the normal distribution function are polynomials, to 3e-8. NaN stays NaN, since
``larger`` then returns its second argument.
"""

import math

import numpy as np

from nntk.kernels.cpu.compiler import exact, inlined
from nntk.kernels.cpu.intrinsics import (
    add,
    bits_of,
    both,
    either,
    float_of,
    larger,
    multiply_add,
    select,
    shift_left,
    shift_right,
)

_f, _u = np.float32, np.uint32
_ONE, _SIGN, _MAGNITUDE = _u(0x3F800000), _u(0x80000000), _u(0x7FFFFFFF)
_ROUND = _f(1.5 * 2.0**23)
"""Number that rounds another to an integer when it is added, and has it in its last bits."""
_SMALL = _f(0.25)
"""Largest change of z whose difference of the normal distribution function is a Taylor series."""
_DENSITY = _f(1 / math.sqrt(2 * math.pi))
_SLOPE = _f(math.sqrt(2 / math.pi))


@inlined
def _absolute(x):
    return float_of(both(bits_of(x), _MAGNITUDE))


@inlined
def _with_sign(size, x):
    """Return a number that is not negative with the sign of another."""
    return float_of(either(bits_of(size), both(bits_of(x), _SIGN)))


@inlined
def _is_negative(x):
    return shift_right(bits_of(x), _u(31))


@inlined
def _expm1_parts(x):
    """Return 2^n and exp(r) - 1, for x = n log 2 + r in [-87, 0]; below it is taken for -87."""
    x = larger(_f(-87.0), x)
    rounded = multiply_add(x, _f(1.4426950408889634), _ROUND)
    n = rounded - _ROUND
    r = multiply_add(n, _f(2.12194440e-4), multiply_add(n, _f(-0.693359375), x))
    p = multiply_add(r, _f(0.000198459582), _f(0.00139416525))
    p = multiply_add(r, p, _f(0.00833339164))
    p = multiply_add(r, p, _f(0.0416663487))
    p = multiply_add(r, p, _f(0.166666664))
    p = multiply_add(r, p, _f(0.5))
    return float_of(add(_ONE, shift_left(bits_of(rounded), _u(23)))), multiply_add(r * r, p, r)


@inlined
def _exp(x):
    """Return exp(x) for x <= 0."""
    power, e = _expm1_parts(x)
    return multiply_add(power, e, power)


@inlined
def _expm1(x):
    """Return exp(x) - 1 for x <= 0, to its last digits near zero."""
    power, e = _expm1_parts(x)
    return multiply_add(power, e, power - _f(1.0))


@inlined
def _sigmoid(x):
    e = _exp(-_absolute(x))
    return select(_is_negative(x), e, _f(1.0)) / (_f(1.0) + e)


@inlined
def _sigmoid_difference(z, u):
    """Return sigmoid(z + u) - sigmoid(z)."""
    other = z + u
    is_falling = _is_negative(u)
    high, low = select(is_falling, z, other), select(is_falling, other, z)
    return _with_sign(-_expm1(-_absolute(u)), u) * _sigmoid(high) * _sigmoid(-low)


@inlined
def _normal_cdf(x):
    """Return the normal distribution function."""
    size = _absolute(x)
    t = _f(1.0) / multiply_add(size, _f(0.26), _f(1.0))
    p = multiply_add(t, _f(0.0302301548), _f(-0.15149377))
    p = multiply_add(t, p, _f(0.24873192))
    p = multiply_add(t, p, _f(-0.147787978))
    p = multiply_add(t, p, _f(0.158757887))
    p = multiply_add(t, p, _f(0.0519651651))
    p = multiply_add(t, p, _f(0.102788601))
    p = multiply_add(t, p, _f(0.103050984))
    p = multiply_add(t, p, _f(0.103757022))
    tail = _exp(_f(-0.5) * size * size) * (t * p)
    return select(_is_negative(x), tail, _f(1.0) - tail)


@inlined
def _gelu_difference(z, u):
    cdf = _normal_cdf(z + u)
    m = multiply_add(_f(0.5), u, z)
    m2, u2 = m * m, u * u
    quartic = multiply_add(m2, m2 - _f(6.0), _f(3.0)) * _f(1 / 1920)
    series = multiply_add(u2, multiply_add(u2, quartic, (m2 - _f(1.0)) * _f(1 / 24)), _f(1.0))
    series = series * (u * _exp(_f(-0.5) * m2) * _DENSITY)
    is_small = _is_negative(_absolute(u) - _SMALL)
    return multiply_add(u, cdf, z * select(is_small, series, cdf - _normal_cdf(z)))


@exact
def tanh(z, dz, s, inverse, out):
    """Write the differences of tanh, as those of 2 sigmoid(2 z)."""
    for r in range(len(out)):
        d, row, step, scale = dz[r], out[r], s[r], inverse[r]
        for i in range(len(row)):
            row[i] = _f(2.0) * _sigmoid_difference(_f(2.0) * z[i], _f(2.0) * (step * d[i])) * scale


@exact
def sigmoid(z, dz, s, inverse, out):
    """Write the differences of the sigmoid."""
    for r in range(len(out)):
        d, row, step, scale = dz[r], out[r], s[r], inverse[r]
        for i in range(len(row)):
            row[i] = _sigmoid_difference(z[i], step * d[i]) * scale


@exact
def silu(z, dz, s, inverse, out):
    """Write the differences of z sigmoid(z)."""
    for r in range(len(out)):
        d, row, step, scale = dz[r], out[r], s[r], inverse[r]
        for i in range(len(row)):
            u = step * d[i]
            row[i] = multiply_add(u, _sigmoid(z[i] + u), z[i] * _sigmoid_difference(z[i], u)) * scale


@exact
def gelu(z, dz, s, inverse, out):
    """Write the differences of gelu."""
    for r in range(len(out)):
        d, row, step, scale = dz[r], out[r], s[r], inverse[r]
        for i in range(len(row)):
            row[i] = _gelu_difference(z[i], step * d[i]) * scale


@exact
def gelu_tanh(z, dz, s, inverse, out):
    """Write the differences of the tanh form of gelu, z sigmoid(2 v)."""
    for r in range(len(out)):
        d, row, step, scale = dz[r], out[r], s[r], inverse[r]
        for i in range(len(row)):
            x, u = z[i], step * d[i]
            v = _SLOPE * multiply_add(_f(0.044715) * x * x, x, x)
            square = multiply_add(_f(3.0) * x, x + u, u * u)
            dv = _SLOPE * u * multiply_add(_f(0.044715), square, _f(1.0))
            displaced = _sigmoid(_f(2.0) * (v + dv))
            row[i] = multiply_add(u, displaced, x * _sigmoid_difference(_f(2.0) * v, _f(2.0) * dv)) * scale


@exact
def relu(z, dz, s, inverse, out):
    """Write the differences of relu: max(dz, -z/s) for z > 0, else max(dz + z/s, 0), exact where no kink is crossed."""
    largest = _f(np.finfo(np.float32).max)
    for r in range(len(out)):
        d, row, scale = dz[r], out[r], inverse[r]
        for i in range(len(row)):
            kink = z[i] * scale
            kink = larger(-largest, -larger(-largest, -kink))
            row[i] = larger(-kink, d[i]) + -larger(_f(0.0), -kink)


ROWS = {"tanh": tanh, "sigmoid": sigmoid, "silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh, "relu": relu}
"""Kernels by the names of the activations; each takes z [n], dz [rows, n], s and 1 / s [rows], and the array for the
result."""
