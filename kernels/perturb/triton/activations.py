"""Differences of the activations in Triton kernels: [phi(z + s dz) - phi(z)] / s without cancellation, in float32.

The formulas are those of nntk.kernels.activations. The state that the unperturbed pass keeps of z is ``a`` and, for
quantise, also ``b``.
"""

import triton
import triton.language as tl

from nntk.kernels.philox.triton.kernel import sine_cosine

_EXP2_PTX: tl.constexpr = tl.constexpr("ex2.approx.ftz.f32 $0, $1;")
_RECIPROCAL_PTX: tl.constexpr = tl.constexpr("rcp.approx.ftz.f32 $0, $1;")


@triton.jit
def _larger(x, y):
    """Return the larger number, or NaN where either is NaN: an overflow must not become a finite number again."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _smaller(x, y):
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _exp(x, PTX: tl.constexpr):
    """Return exp(x) for x <= 80 by one special function, without a branch for denormal results, which become zero."""
    x *= 1.4426950408889634
    if PTX:
        return tl.inline_asm_elementwise(_EXP2_PTX, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    return tl.exp2(x)


@triton.jit
def _reciprocal(x, PTX: tl.constexpr):
    if PTX:
        return tl.inline_asm_elementwise(_RECIPROCAL_PTX, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    return 1.0 / x


@triton.jit
def _expm1(x, e):
    """Return exp(x) - 1, given e = exp(x), to 1e-7; below one half by a Taylor series."""
    tail = 1.0 / 120 + x * (1.0 / 720 + x * (1.0 / 5040 + x * (1.0 / 40320)))
    series = x + x * x * (0.5 + x * (1.0 / 6 + x * (1.0 / 24 + x * tail)))
    return tl.where(tl.abs(x) < 0.5, series, e - 1.0)


@triton.jit
def _log1p(x, PTX: tl.constexpr):
    """Return log(1 + x) for x in [-0.64, 1.72], as 2 atanh(x / (2 + x)), to 1e-7."""
    t = x * _reciprocal(2.0 + x, PTX)
    y = t * t
    tail = 1.0 / 9 + y * (1.0 / 11 + y * (1.0 / 13 + y * (1.0 / 15 + y * (1.0 / 17 + y * (1.0 / 19)))))
    return 2.0 * t * (1.0 + y * (1.0 / 3 + y * (0.2 + y * (1.0 / 7 + y * tail))))


@triton.jit
def _sigmoid(x, PTX: tl.constexpr):
    return _reciprocal(1.0 + _exp(_smaller(-x, 80.0), PTX), PTX)


@triton.jit
def _sigmoid_difference(z, u, PTX: tl.constexpr):
    """Return sigmoid(z + u) - sigmoid(z).

    For high > low the difference is (1 - exp(low - high)) sigmoid(high) sigmoid(-low). The two denominators are
    multiplied out, so that there is one reciprocal.
    """
    fall = -tl.abs(u)
    e = _exp(fall, PTX)
    p = _exp(_smaller(-_larger(z, z + u), 80.0), PTX)
    r = _exp(_smaller(_smaller(z, z + u), 80.0), PTX)
    rise = -_expm1(fall, e) * _reciprocal(1.0 + e + (p + r), PTX)
    return tl.where(u < 0, -rise, rise)


@triton.jit
def _softplus(x, PTX: tl.constexpr):
    return _larger(x, 0.0) + _log1p(_exp(-tl.abs(x), PTX), PTX)


@triton.jit
def _normal_cdf(z, PTX: tl.constexpr):
    """Return Phi(z), the normal distribution function.

    The relative error is 1e-6 near zero and 4e-6 down to z = -9, where 0.5 + 0.5 erf(z) has no digits left. With
    t = 1 / (1 + 0.35 |z|) the tail is exp(-z^2 / 2) t P(t), P fitted to 4e-8.
    """
    t = _reciprocal(1.0 + 0.35 * tl.abs(z), PTX)
    high = 0.158932239 + t * (-0.255507261 + t * (0.143873587 + t * -0.0291261505))
    fit = 0.139621571 + t * (0.13985911 + t * (0.11985226 + t * (0.105433702 + t * (-0.0229390636 + t * high))))
    tail = t * fit * _exp(-0.5 * z * z, PTX)
    return tl.where(z < 0, tail, 1.0 - tail)


@triton.jit
def _normal_cdf_difference(z, u, PTX: tl.constexpr):
    middle, u2 = z + 0.5 * u, u * u
    m2 = middle * middle
    density = 0.3989422804014327 * _exp(-0.5 * m2, PTX)
    series = u * density * (1.0 + u2 * ((m2 - 1.0) * (1.0 / 24) + u2 * (m2 * m2 - 6.0 * m2 + 3.0) * (1.0 / 1920)))
    return tl.where(tl.abs(u) < 0.25, series, _normal_cdf(z + u, PTX) - _normal_cdf(z, PTX))


@triton.jit
def relu(z):
    """Return max(z, 0), or NaN where z is NaN."""
    return _larger(z, 0.0)


@triton.jit
def _relu_difference(z, dz, inverse):
    """Return max(dz + n / s, -p / s) for z = p + n, its parts above and below zero; where n / s overflows, zero."""
    above = relu(z)
    return _larger(dz + (z - above) * inverse, -above * inverse)


@triton.jit
def _step(z, u):
    return tl.where(z + u >= 0, 1.0, 0.0) - tl.where(z >= 0, 1.0, 0.0)


@triton.jit
def difference(a, b, dz, s, inverse, p0, p1, ACTIVATION: tl.constexpr, PTX: tl.constexpr):
    """Return [phi(z + s dz) - phi(z)] / s of a tile.

    Args:
        a: First tensor of the state, the shape of ``dz`` or broadcastable to it, float32.
        b: Second tensor of the state; only quantise reads it.
        dz: Unit difference of z, a tile, float32.
        s: Scale of the displacement, a number.
        inverse: 1 / s.
        p0: First parameter of the activation.
        p1: Second parameter of the activation.
        ACTIVATION: Name of the activation.
        PTX: True where inline PTX can be used.
    """
    u = s * dz
    if ACTIVATION == "identity":
        return dz
    elif ACTIVATION == "relu":
        return _relu_difference(a, dz, inverse)
    elif ACTIVATION == "leaky_relu":
        return p0 * dz + (1.0 - p0) * _relu_difference(a, dz, inverse)
    elif ACTIVATION == "tanh":
        return 2.0 * _sigmoid_difference(2.0 * a, 2.0 * u, PTX) * inverse
    elif ACTIVATION == "sigmoid":
        return _sigmoid_difference(a, u, PTX) * inverse
    elif ACTIVATION == "silu":
        return (u * _sigmoid(a + u, PTX) + a * _sigmoid_difference(a, u, PTX)) * inverse
    elif ACTIVATION == "softplus":
        z, v = p0 * a, p0 * u
        clamped = _smaller(_larger(v, -1.0), 1.0)
        small = _log1p(_sigmoid(z, PTX) * _expm1(clamped, _exp(clamped, PTX)), PTX)
        return tl.where(tl.abs(v) < 1, small, _softplus(z + v, PTX) - _softplus(z, PTX)) * (inverse / p0)
    elif ACTIVATION == "gelu":
        return (u * _normal_cdf(a + u, PTX) + a * _normal_cdf_difference(a, u, PTX)) * inverse
    elif ACTIVATION == "gelu_tanh":
        v = 1.5957691216057308 * a * (1.0 + 0.044715 * a * a)
        dv = 1.5957691216057308 * u * (1.0 + 0.044715 * (3.0 * a * a + 3.0 * a * u + u * u))
        return (u * _sigmoid(v + dv, PTX) + a * _sigmoid_difference(v, dv, PTX)) * inverse
    elif ACTIVATION == "sin":
        half = 0.5 * u
        sine, _ = sine_cosine(half * 0.15915494309189535)
        _, cosine = sine_cosine((a + half) * 0.15915494309189535)
        return 2.0 * cosine * sine * inverse
    elif ACTIVATION == "step":
        return _step(a, u) * inverse
    elif ACTIVATION == "sign":
        return 2.0 * _step(a, u) * inverse
    elif ACTIVATION == "quantise":
        spacing, top = 2.0 * p1 / (p0 - 1.0), p0 - 1.0
        displaced_cell = _smaller(_larger(a + tl.floor(b + u / spacing), 0.0), top)
        base_cell = _smaller(_larger(a + tl.floor(b), 0.0), top)
        return (displaced_cell - base_cell) * (spacing * inverse)
    else:
        tl.static_assert(ACTIVATION == "sawtooth", "no difference is written for this activation")
        dv = dz / p0
        return dv - (tl.floor(a + s * dv) - tl.floor(a)) * inverse
