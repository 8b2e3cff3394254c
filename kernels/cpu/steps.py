"""Differences of the unit step on a CPU in one pass, compiled by Numba; they tell where rounding may have decided."""

import numpy as np

from nntk.kernels.cpu.compiler import exact, inlined
from nntk.kernels.cpu.intrinsics import bits_of, both, either, float_of, larger_word, smaller_word

_f, _u = np.float32, np.uint32
_HALF, _SIGN, _MAGNITUDE, _INFINITY = _u(0x3F000000), _u(0x80000000), _u(0x7FFFFFFF), _u(0x7F800000)


@inlined
def _side(x):
    """Return a half with the sign of a number."""
    return float_of(either(both(bits_of(x), _SIGN), _HALF))


@exact
def _step_row(z, dz, s, height, out):
    """Write the differences of a row, and return the least size of displaced values and the largest of changes.

    Numbers that are not negative are ordered as their bits are, which vectors compare; NaN is the largest.

    Returns:
        The bits of both sizes.
    """
    least, most = _INFINITY, _u(0)
    for i in range(len(out)):
        change = s * dz[i]
        displaced = change + z[i]
        least = smaller_word(least, both(bits_of(displaced), _MAGNITUDE))
        most = larger_word(most, both(bits_of(change), _MAGNITUDE))
        out[i] = (_side(displaced) - _side(z[i])) * height
    return least, most


@exact
def step_rows(z, dz, s, height, out, least, most):
    """Write the differences of the unit step times a height.

    Args:
        z: Unperturbed values, none of them -0, [N, n].
        dz: Their differences divided by s, [R, N, n].
        s: Divisors, [R].
        height: Heights of the jump, divided by s, [R].
        out: Array for the differences, [R, N, n].
        least: Array for the least size of displaced values of each row, [R, N].
        most: Array for the largest size of their changes, [R, N].
    """
    for r in range(out.shape[0]):
        for n in range(out.shape[1]):
            near, far = _step_row(z[n], dz[r, n], s[r], height[r], out[r, n])
            least[r, n], most[r, n] = float_of(near), float_of(far)
