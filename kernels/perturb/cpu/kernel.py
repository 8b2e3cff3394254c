"""Elementwise kernels of perturbation evaluation on a CPU, compiled by Numba: one pass between two products.

A row has the units of one input at one displacement; its parts stay in the first-level cache while the loops below pass
over it. Activations that jump or bend are evaluated here, in the formulas of nntk.kernels.activations; smooth ones
follow in PyTorch, whose exponentials are vectorised.
"""

import numpy as np

from nntk.kernels.cpu.compiler import compiled, compiled_sum

IDENTITY, RELU, LEAKY_RELU, STEP, SIGN, QUANTISE, SAWTOOTH = range(7)
KINDS = {
    "identity": IDENTITY, "relu": RELU, "leaky_relu": LEAKY_RELU, "step": STEP, "sign": SIGN, "quantise": QUANTISE,
    "sawtooth": SAWTOOTH,
}  # fmt: skip
"""Numbers of the activations that are evaluated here."""

_ROWS = 16
"""Rows that are added together before the activation passes over them, in the first-level cache."""


@compiled
def _add_shared(own, shared, bias_noise, signed, out):
    """Write own + signed (shared + bias_noise)."""
    for u in range(len(out)):
        out[u] = own[u] + signed * (shared[u] + bias_noise[u])


@compiled
def _multiply_shared(shared, bias_noise, signed, out):
    """Write signed (shared + bias_noise)."""
    for u in range(len(out)):
        out[u] = signed * (shared[u] + bias_noise[u])


@compiled
def _add_flipped(own, signs, product, bias_noise, factor, signed, out):
    """Write own + factor signs product + signed bias_noise."""
    for u in range(len(out)):
        out[u] = own[u] + (factor * signs[u]) * product[u] + signed * bias_noise[u]


@compiled
def _multiply_flipped(signs, product, bias_noise, signed, out):
    """Write signed (signs product + bias_noise)."""
    for u in range(len(out)):
        out[u] = signed * (signs[u] * product[u] + bias_noise[u])


@compiled
def _add_bias(own, bias_noise, signed, out):
    """Write own + signed bias_noise."""
    for u in range(len(out)):
        out[u] = own[u] + signed * bias_noise[u]


@compiled
def _add_multiple(number, part, out):
    """Add a multiple of a row."""
    for u in range(len(out)):
        out[u] += number * part[u]


@compiled
def _relu_row(z, inverse, slope, row):
    """Replace dz by the difference of relu, or of leaky relu with a slope below zero; ``inverse`` is 1 / sigma."""
    zero, largest = row.dtype.type(0), row.dtype.type(np.finfo(row.dtype).max)
    for u in range(len(row)):
        kink = min(max(z[u] * inverse, -largest), largest)
        d = max(row[u], -kink) + min(kink, zero)
        row[u] = slope * row[u] + (row.dtype.type(1) - slope) * d


@compiled
def _sign_row(z, sigma, inverse, size, row):
    """Replace dz by the difference of ``size`` times sign; ``inverse`` is 1 / sigma."""
    for u in range(len(row)):
        after = size if z[u] + sigma * row[u] >= 0 else -size
        before = size if z[u] >= 0 else -size
        row[u] = (after - before) * inverse


@compiled
def _quantise_row(boundary, offset, sigma, levels, clamp, row):
    """Replace dz by the difference of a quantiser, whose state is a cell boundary and the distance from it."""
    number = row.dtype.type
    zero, top, spacing = number(0), number(levels - 1), number(2 * clamp / (levels - 1))
    rate, size = sigma / spacing, spacing / sigma
    for u in range(len(row)):
        after = min(max(boundary[u] + np.floor(offset[u] + rate * row[u]), zero), top)
        before = min(max(boundary[u] + np.floor(offset[u]), zero), top)
        row[u] = (after - before) * size


@compiled
def _sawtooth_row(offset, sigma, period, row):
    """Replace dz by the difference of a sawtooth, whose state is the distance from the nearest tooth's edge."""
    for u in range(len(row)):
        dv = row[u] / period
        row[u] = dv - (np.floor(offset[u] + sigma * dv) - np.floor(offset[u])) / sigma


@compiled
def _difference_rows(kind, parameters, sigma, states, t, member, inputs, units, out):
    """Replace dz of some inputs by the difference of an activation, whose state has one part or two."""
    number = out.dtype.type
    inverse = number(1) / sigma
    if kind == RELU or kind == LEAKY_RELU:
        slope = number(0 if kind == RELU else parameters[0])
        for n in range(inputs[0], inputs[1]):
            _relu_row(states[0, n, units], inverse, slope, out[t, member, n, units])
    elif kind == STEP or kind == SIGN:
        size = number(0.5 if kind == STEP else 1)
        for n in range(inputs[0], inputs[1]):
            _sign_row(states[0, n, units], sigma, inverse, size, out[t, member, n, units])
    elif kind == QUANTISE:
        levels, clamp = parameters
        for n in range(inputs[0], inputs[1]):
            boundary, offset = states[0, n, units], states[states.shape[0] - 1, n, units]
            _quantise_row(boundary, offset, sigma, levels, clamp, out[t, member, n, units])
    elif kind == SAWTOOTH:
        for n in range(inputs[0], inputs[1]):
            _sawtooth_row(states[0, n, units], sigma, number(parameters[0]), out[t, member, n, units])


@compiled
def finish_differences(
    own, product, shared, signs, inner, factors, bias_noise, mantissas, powers, states, kind, parameters, place, out
):
    """Add the parts of dz and apply the difference of the activation.

    Args:
        own: Products of each member, [T, members, n, U]; None for zero.
        product: Products of q with flipout's base, of each member, multiplied by rho r, [T, members, n, U], beside
            ``own``; None for zero.
        shared: Products with noise that both members share, multiplied by +-rho and by r, [T, n, U]; None for zero.
        signs: Factors r of flipout, [T, 1, H]; None for one.
        inner: Inner products of low rank, +-rho c q B^T, [T, members, N, R]; None for zero.
        factors: Their factors A, [T, R, H]; None with ``inner``.
        bias_noise: Unit displacements of the bias, multiplied by +-rho, [T, 1, H]; zeros if it is not displaced.
        mantissas: Mantissas rho of the scales, [T].
        powers: Powers of two sigma of the scales, [T].
        states: State of the activation's unperturbed z, [parts, N, H].
        kind: Number of the activation in ``KINDS``; that of the identity leaves dz.
        parameters: Two parameters of the activation.
        place: First input and number of inputs n, first unit and number of units U.
        out: Array for the differences divided by sigma, [T, members, N, H].
    """
    number, first_input, units = out.dtype.type, place[0], slice(place[2], place[2] + place[3])
    for t in range(out.shape[0]):
        rho, sigma = mantissas[t], powers[t]
        for member in range(out.shape[1]):
            signed = number(1 - 2 * member) * rho
            for begin in range(0, place[1], _ROWS):
                end = min(begin + _ROWS, place[1])
                for n in range(begin, end):
                    row, e = out[t, member, first_input + n, units], bias_noise[t, 0, units]
                    # Which parts are None is known when this is compiled; one of these branches remains.
                    if product is not None:
                        _add_flipped(own[t, member, n], signs[t, 0, units], product[t, member, n], e, rho, signed, row)
                    elif shared is None:
                        if own is None:
                            row[:] = 0
                            _add_multiple(signed, e, row)
                        else:
                            _add_bias(own[t, member, n], e, signed, row)
                    elif signs is not None:
                        _multiply_flipped(signs[t, 0, units], shared[t, n], e, signed, row)
                    elif own is None:
                        _multiply_shared(shared[t, n], e, signed, row)
                    else:
                        _add_shared(own[t, member, n], shared[t, n], e, signed, row)
                    if inner is not None:
                        for k in range(factors.shape[1]):
                            _add_multiple(inner[t, member, first_input + n, k], factors[t, k, units], row)
                inputs = (first_input + begin, first_input + end)
                _difference_rows(kind, parameters, sigma, states, t, member, inputs, units, out)


@compiled
def _linear_values(product, bias, out):
    """Write product + bias."""
    for u in range(len(out)):
        out[u] = product[u] + bias[u]


@compiled
def _relu_values(product, bias, slope, out):
    """Write relu of product + bias, or leaky relu with a slope below zero."""
    for u in range(len(out)):
        z = product[u] + bias[u]
        out[u] = max(z, slope * z)


@compiled
def _steep_values(product, bias, slope, out):
    """Write leaky relu of product + bias with a slope below zero that exceeds one."""
    for u in range(len(out)):
        z = product[u] + bias[u]
        out[u] = min(z, slope * z)


@compiled
def _sign_values(product, bias, low, out):
    """Write 1 where product + bias is not negative, else ``low``."""
    one = out.dtype.type(1)
    for u in range(len(out)):
        out[u] = one if product[u] + bias[u] >= 0 else low


@compiled
def _shift(product, bias, out):
    """Write product + bias for one unit at some inputs."""
    for n in range(len(out)):
        out[n] = product[n] + bias


VALUE_KINDS = (IDENTITY, RELU, LEAKY_RELU, STEP, SIGN)
"""Activations whose values :func:`finish_values` computes."""


@compiled
def _displace_bias(bias, bias_noise, step, out):
    """Write b + s e."""
    for u in range(len(out)):
        out[u] = bias[u] + step * bias_noise[u]


@compiled
def finish_values(products, bias, bias_noise, steps, kind, parameters, place, out):
    """Add a displaced bias and apply the activation.

    Args:
        products: Products with displaced weights, [T, members, n, U].
        bias: b, [H]; zeros where there is none.
        bias_noise: Unit displacements of the bias, [T, 1, H]; zeros if it is not displaced.
        steps: Signed scales of the members, [T, members].
        kind: Number of the activation, one of ``VALUE_KINDS``; that of the identity leaves pre-activations.
        parameters: Two parameters of the activation.
        place: First input and number of inputs n, first unit and number of units U.
        out: Array for the values, [T, members, N, H].
    """
    number, first_input, units = out.dtype.type, place[0], slice(place[2], place[2] + place[3])
    slope, low = number(0 if kind == RELU else parameters[0]), number(0 if kind == STEP else -1)
    b = np.empty(place[3], out.dtype)
    for t in range(products.shape[0]):
        for member in range(products.shape[1]):
            _displace_bias(bias[units], bias_noise[t, 0, units], steps[t, member], b)
            if kind == IDENTITY and place[3] == 1:
                # Rows of one number would cost a call each.
                last = first_input + place[1]
                _shift(products[t, member, :, 0], b[0], out[t, member, first_input:last, units.start])
                continue
            for n in range(place[1]):
                product, row = products[t, member, n], out[t, member, first_input + n, units]
                if kind == RELU or (kind == LEAKY_RELU and slope <= 1):
                    _relu_values(product, b, slope, row)
                elif kind == LEAKY_RELU:
                    _steep_values(product, b, slope, row)
                elif kind == STEP or kind == SIGN:
                    _sign_values(product, b, low, row)
                else:
                    _linear_values(product, b, row)


@compiled
def flip_operands(h, d, powers, signs, out):
    """Write the operands q o s of flipout's products, q = +-(h + sigma d).

    Args:
        h: Unperturbed inputs of the layer, [n, K].
        d: Their differences divided by sigma, [T, members, n, K]; None for zero, with one member.
        powers: Powers of two sigma, [T].
        signs: Signs s, [T, 1, K].
        out: Array for the operands, [T, members, n, K].
    """
    for t in range(out.shape[0]):
        for member in range(out.shape[1]):
            sign = out.dtype.type(1 - 2 * member)
            for n in range(out.shape[2]):
                row, h_row, flips = out[t, member, n], h[n], signs[t, 0]
                if d is None:
                    for k in range(len(row)):
                        row[k] = h_row[k] * flips[k]
                else:
                    d_row, sigma = d[t, member, n], powers[t]
                    for k in range(len(row)):
                        row[k] = (sign * flips[k]) * (h_row[k] + sigma * d_row[k])


@compiled_sum
def _inner_product(a, b):
    """Return the inner product of two rows, in float64."""
    total = 0.0
    for i in range(len(a)):
        total += np.float64(a[i]) * np.float64(b[i])
    return total


@compiled
def scale_factors(left, right, out):
    """Write the scales c of the products of factors A [T, R, H] and B [T, R, K], as ``lowrank_scale`` defines them."""
    size = np.float64(left.shape[2] * right.shape[2])
    for t in range(len(out)):
        squared = 0.0
        for j in range(left.shape[1]):
            for k in range(left.shape[1]):
                squared += _inner_product(left[t, j], left[t, k]) * _inner_product(right[t, j], right[t, k])
        out[t] = np.sqrt(size / squared) if squared > 0 else 0.0


@compiled
def combine_inner(h, d, coefficients, mantissas, powers, out):
    """Write the inner products of low rank, +-rho c (h + sigma d) B^T, from those of h and d.

    Args:
        h: h B^T, [T, N, R].
        d: d B^T, [T, members, N, R]; None for zero.
        coefficients: Scales c of the products of factors, [T].
        mantissas: Mantissas rho of the scales, [T].
        powers: Powers of two sigma, [T].
        out: Array for the inner products, [T, members, N, R].
    """
    for t in range(out.shape[0]):
        for member in range(out.shape[1]):
            factor = out.dtype.type(1 - 2 * member) * (mantissas[t] * coefficients[t])
            for n in range(out.shape[2]):
                for r in range(out.shape[3]):
                    q = h[t, n, r]
                    if d is not None:
                        q += powers[t] * d[t, member, n, r]
                    out[t, member, n, r] = factor * q


@compiled
def _write_odd_part(plus, minus, divisor, out):
    """Write half of the difference of two members over their divisor."""
    for u in range(len(out)):
        out[u] = (plus[u] - minus[u]) * out.dtype.type(0.5) / divisor


@compiled
def _write_quotients(part, divisor, out):
    """Write numbers over their divisor."""
    for u in range(len(out)):
        out[u] = part[u] / divisor


@compiled
def write_differences(d, divisors, pairs, positions, first, out):
    """Write unit differences to their place in the result.

    Args:
        d: Differences, or values of f in direct evaluation, [T, members, n C].
        divisors: Divisors that make them unit differences, [T].
        pairs: 0 for one-sided differences, 1 for the odd part of a pair, 2 for both members.
        positions: Positions of the displacements in the result, int64, [T].
        first: Position of the first number in the result.
        out: Result, [1 or 2, M, N C].
    """
    stop = first + d.shape[2]
    for t in range(d.shape[0]):
        m, divisor = positions[t], divisors[t]
        if pairs == 1:
            _write_odd_part(d[t, 0], d[t, 1], divisor, out[0, m, first:stop])
        else:
            for member in range(d.shape[1]):
                _write_quotients(d[t, member], divisor, out[member, m, first:stop])
