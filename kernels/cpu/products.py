"""Differences of products on a CPU in one pass, compiled by Numba."""

from nntk.kernels.cpu.compiler import exact
from nntk.kernels.cpu.intrinsics import multiply_add


@exact
def product_rows(a, b, da, db, s, out):
    """Write the differences da b + (a + s da) db of products.

    Args:
        a: Unperturbed values, [n].
        b: Unperturbed values of the other factor, [n].
        da: Differences of a divided by s, [R, n].
        db: Differences of b divided by s, [R, n].
        s: Divisors, [R].
        out: Array for the differences, [R, n].
    """
    for r in range(len(out)):
        first, second, row, step = da[r], db[r], out[r], s[r]
        for i in range(len(row)):
            row[i] = multiply_add(multiply_add(step, first[i], a[i]), second[i], first[i] * b[i])


@exact
def scaled_rows(a, da, slope, db, dc, out):
    """Write the differences da b' + a db + dc, where b and c are numbers for each channel.

    Args:
        a: Unperturbed values, [N, C, n].
        da: Their differences, [R, N, C, n].
        slope: Displaced factors b', [R, C].
        db: Differences of the factors, [R, C].
        dc: Differences of the summands, [R, C].
        out: Array for the differences, [R, N, C, n].
    """
    for r in range(out.shape[0]):
        for n in range(out.shape[1]):
            for c in range(out.shape[2]):
                change, value, row = da[r, n, c], a[n, c], out[r, n, c]
                factor, step, summand = slope[r, c], db[r, c], dc[r, c]
                for i in range(len(row)):
                    row[i] = multiply_add(change[i], factor, multiply_add(value[i], step, summand))
