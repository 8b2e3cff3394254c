"""Elementwise kernels of perturbation evaluation on a CPU, compiled by Numba: one pass between two products.

A row has the units of one input at one displacement; its parts stay in the first-level cache while the loops below pass
over it. Activations that jump or bend are evaluated here, in the formulas of nntk.kernels.activations; smooth ones
follow in PyTorch, whose exponentials are vectorised.
"""

import numpy as np

from nntk.kernels.cpu.compiler import compiled

IDENTITY, RELU, LEAKY_RELU, STEP, SIGN, QUANTISE, SAWTOOTH = range(7)
KINDS = {
    "identity": IDENTITY, "relu": RELU, "leaky_relu": LEAKY_RELU, "step": STEP, "sign": SIGN, "quantise": QUANTISE,
    "sawtooth": SAWTOOTH,
}  # fmt: skip
"""Numbers of the activations that are evaluated here."""


@compiled
def _add_rows(own, product, shared, signs, bias_noise, factor, sign, out):
    """Write dz = own + factor [signs product + sign (signs shared + bias_noise)]; a row that is None is left out."""
    for u in range(len(out)):
        dz = out.dtype.type(0) if own is None else own[u]
        if product is not None:
            dz += factor * (product[u] if signs is None else signs[u] * product[u])
        if shared is not None:
            dz += (sign * factor) * (shared[u] if signs is None else signs[u] * shared[u])
        if bias_noise is not None:
            dz += (sign * factor) * bias_noise[u]
        out[u] = dz


@compiled
def _add_multiple(number, factor, row):
    """Add a multiple of one row to another."""
    for u in range(len(row)):
        row[u] += number * factor[u]


@compiled
def _relu_row(z, sigma, slope, row):
    """Replace dz by the difference of relu, or of leaky relu with a slope below zero."""
    zero, largest = row.dtype.type(0), row.dtype.type(np.finfo(row.dtype).max)
    for u in range(len(row)):
        kink = min(max(z[u] / sigma, -largest), largest)
        d = max(row[u], -kink) + min(kink, zero)
        row[u] = slope * row[u] + (row.dtype.type(1) - slope) * d


@compiled
def _sign_row(z, sigma, size, row):
    """Replace dz by the difference of ``size`` times sign."""
    for u in range(len(row)):
        after = size if z[u] + sigma * row[u] >= 0 else -size
        before = size if z[u] >= 0 else -size
        row[u] = (after - before) / sigma


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
def finish_differences(
    own, product, shared, signs, inner, factors, bias_noise, mantissas, powers, states, kind, parameters, place, out
):
    """Add the parts of dz and apply the difference of the activation.

    Args:
        own: Products of each member, [T, members, n, U]; None for zero.
        product: Products of q with noise, of each member, multiplied by rho, [T, members, n, U]; None for zero.
        shared: Products with noise that both members share, multiplied by +-rho, [T, n, U]; None for zero.
        signs: Factors r of flipout for ``product`` and ``shared``, [T, 1, H]; None for one.
        inner: Inner products of low rank, +-rho c q B^T, [T, members, N, R]; None for zero.
        factors: Their factors A, [T, R, H]; None with ``inner``.
        bias_noise: Unit displacements of the bias, multiplied by +-rho, [T, 1, H]; None for zero.
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
            sign = number(1 - 2 * member)
            for n in range(place[1]):
                row, z = out[t, member, first_input + n, units], states[0, first_input + n, units]
                _add_rows(
                    None if own is None else own[t, member, n],
                    None if product is None else product[t, member, n],
                    None if shared is None else shared[t, n],
                    None if signs is None else signs[t, 0, units],
                    None if bias_noise is None else bias_noise[t, 0, units],
                    rho,
                    sign,
                    row,
                )
                if inner is not None:
                    for r in range(factors.shape[1]):
                        _add_multiple(inner[t, member, first_input + n, r], factors[t, r, units], row)
                if kind == RELU:
                    _relu_row(z, sigma, number(0), row)
                elif kind == LEAKY_RELU:
                    _relu_row(z, sigma, number(parameters[0]), row)
                elif kind == STEP:
                    _sign_row(z, sigma, number(0.5), row)
                elif kind == SIGN:
                    _sign_row(z, sigma, number(1), row)
                elif kind == QUANTISE:
                    _quantise_row(z, states[-1, first_input + n, units], sigma, parameters[0], parameters[1], row)
                elif kind == SAWTOOTH:
                    _sawtooth_row(z, sigma, number(parameters[0]), row)


@compiled
def _value_row(kind, slope, row):
    """Replace pre-activations by values of the activation."""
    zero, one = row.dtype.type(0), row.dtype.type(1)
    if kind == RELU:
        for u in range(len(row)):
            row[u] = max(row[u], zero)
    elif kind == LEAKY_RELU:
        for u in range(len(row)):
            row[u] = row[u] if row[u] > zero else slope * row[u]
    elif kind == STEP:
        for u in range(len(row)):
            row[u] = one if row[u] >= zero else zero
    elif kind == SIGN:
        for u in range(len(row)):
            row[u] = one if row[u] >= zero else -one


VALUE_KINDS = (IDENTITY, RELU, LEAKY_RELU, STEP, SIGN)
"""Activations whose values :func:`finish_values` computes."""


@compiled
def finish_values(products, bias, bias_noise, steps, kind, parameters, place, out):
    """Add a displaced bias and apply the activation.

    Args:
        products: Products with displaced weights, [T, members, n, U].
        bias: b, [H]; None for zero.
        bias_noise: Unit displacements of the bias, [T, 1, H]; None if it is not displaced.
        steps: Signed scales of the members, [T, members].
        kind: Number of the activation, one of ``VALUE_KINDS``; that of the identity leaves pre-activations.
        parameters: Two parameters of the activation.
        place: First input and number of inputs n, first unit and number of units U.
        out: Array for the values, [T, members, N, H].
    """
    slope, first_input, units = out.dtype.type(parameters[0]), place[0], slice(place[2], place[2] + place[3])
    for t in range(products.shape[0]):
        for member in range(products.shape[1]):
            step = steps[t, member]
            for n in range(place[1]):
                product, row = products[t, member, n], out[t, member, first_input + n, units]
                if bias is None:
                    row[:] = product
                else:
                    b = bias[units]
                    if bias_noise is None:
                        for u in range(len(row)):
                            row[u] = product[u] + b[u]
                    else:
                        e = bias_noise[t, 0, units]
                        for u in range(len(row)):
                            row[u] = product[u] + b[u] + step * e[u]
                _value_row(kind, slope, row)


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
def write_differences(d, divisors, pairs, positions, first_input, out):
    """Write unit differences to their place in the result.

    Args:
        d: Differences, or values of f in direct evaluation, [T, members, n, C].
        divisors: Divisors that make them unit differences, [T].
        pairs: 0 for one-sided differences, 1 for the odd part of a pair, 2 for both members.
        positions: Positions of the displacements in the result, int64, [T].
        first_input: Position of the first input in the result.
        out: Result, [1 or 2, M, N, C].
    """
    for t in range(d.shape[0]):
        m, divisor = positions[t], divisors[t]
        for n in range(d.shape[2]):
            if pairs == 1:
                plus, minus, row = d[t, 0, n], d[t, 1, n], out[0, m, first_input + n]
                for c in range(len(row)):
                    row[c] = (plus[c] - minus[c]) * row.dtype.type(0.5) / divisor
            else:
                for member in range(d.shape[1]):
                    part, row = d[t, member, n], out[member, m, first_input + n]
                    for c in range(len(row)):
                        row[c] = part[c] / divisor
